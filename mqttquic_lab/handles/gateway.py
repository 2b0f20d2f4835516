"""The gateway as a person meets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mqttquic_lab.handles.serving import Serving

if TYPE_CHECKING:
    import pandas as pd

    from mqttquic_lab.gateway import GatewayClient, GatewayError, GatewayServer, GatewayStats


class Gateway(Serving):
    """A QUIC listener in front of a broker that has none. Made by :func:`mqttquic_lab.start_gateway`.

    Pass it to :func:`mqttquic_lab.connect` as if it were that broker: the gateway's certificate authority is then
    trusted, for that session only. A context manager; a gateway that nobody keeps, and no session is connected to by
    its handle, closes itself.
    """

    _kind: ClassVar[str] = "gateway"
    _core: GatewayServer

    @property
    def upstream(self) -> str:
        """URL of the broker behind it."""
        return self._core.config.address.url

    def clients(self) -> list[GatewayClient]:
        """Return who is connected and what their streams carry, in the order in which they connected."""
        return self._caller.look(self._core.clients)

    @property
    def stats(self) -> GatewayStats:
        """Counters since the start, and how much is held now."""
        return self._caller.look(self._core.stats)

    @property
    def errors(self) -> list[GatewayError]:
        """What went wrong, newest last: a broker that cannot be reached, streams that were refused. Bounded."""
        return self._caller.look(lambda: list(self._core.errors))

    def frame(self) -> pd.DataFrame:
        """Return the streams of all clients as a DataFrame, one row each."""
        from dataclasses import asdict

        from mqttquic_lab.views.frame import rows_frame

        rows = [
            {"transport": client.transport, "address": client.address, **asdict(stream)}
            for client in self.clients()
            for stream in client.streams
        ]
        return rows_frame(rows)

    @property
    def aio(self) -> GatewayAio:
        """The same verbs, awaitable from any event loop."""
        return GatewayAio(self)

    # Showing

    def __repr__(self) -> str:
        if self._closed:
            return "<Gateway: closed>"
        count = len(self.clients())
        return f"<Gateway at {', '.join(self.urls.values())} to {self.upstream}: {count} client{'s' * (count != 1)}>"

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.summary import gateway_html

        if self._closed:
            return gateway_html({}, self.upstream, state="closed")
        errors = [(error.time, error.where, error.message) for error in self.errors]
        return gateway_html(self.urls, self.upstream, clients=self.clients(), errors=errors, ca_file=str(self.ca_file))


class GatewayAio:
    """The verbs of a :class:`Gateway`, awaitable from any event loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._caller = gateway._caller  # noqa: SLF001 - a twin of the same module

    async def clients(self) -> list[GatewayClient]:
        """See :meth:`Gateway.clients`."""
        core = self._gateway._core  # noqa: SLF001

        async def on_loop() -> list[GatewayClient]:
            return core.clients()

        return await self._caller.hop(on_loop)

    async def close(self, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Gateway.close`."""
        await self._gateway._close_awaited(timeout)  # noqa: SLF001
