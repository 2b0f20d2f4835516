"""The embedded broker as a person meets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mqttquic_lab.errors import UsageError
from mqttquic_lab.handles.serving import Serving

if TYPE_CHECKING:
    import pandas as pd

    from mqttquic_lab.broker import BrokerProcess, BrokerServer, BrokerStats, ClientInfo
    from mqttquic_lab.trace import Trace


class Broker(Serving):
    """A broker of one's own. Made by :func:`mqttquic_lab.start_broker`.

    Pass it to :func:`mqttquic_lab.connect` as it is: its certificate authority is then trusted, for that session
    only. A context manager; a broker that nobody keeps, and no session is connected to by its handle, closes itself.
    """

    _kind: ClassVar[str] = "broker"
    _core: BrokerServer | BrokerProcess

    def clients(self) -> list[ClientInfo]:
        """Return who is connected, over what, in the order in which they connected."""
        return self._caller.look(self._core.clients)

    @property
    def stats(self) -> BrokerStats:
        """Counters since the start, and how much is held now."""
        return self._caller.look(self._core.stats)

    @property
    def trace(self) -> Trace:
        """Control packets from and to clients, while ``broker.trace.detail`` is set (``start_broker(trace=True)``).

        Raises
        ------
        UsageError
            The broker runs in a process of its own.
        """
        return self._core.trace

    def frame(self) -> pd.DataFrame:
        """Return :meth:`clients` as a DataFrame."""
        from dataclasses import asdict

        from mqttquic_lab.views.frame import rows_frame

        return rows_frame([asdict(client) for client in self.clients()])

    @property
    def aio(self) -> BrokerAio:
        """The same verbs, awaitable from any event loop."""
        return BrokerAio(self)

    # Showing

    def __repr__(self) -> str:
        if self._closed:
            return "<Broker: closed>"
        from mqttquic_lab.views.quantities import counted

        count = len(self.clients())
        refusals = [counted(number, words) for words, number in self.stats.refusals().items() if number]
        if self.stats.store_error:
            refusals.append(f"the store cannot be written: {self.stats.store_error}")
        notes = f"; {', '.join(refusals)}" if refusals else ""
        return f"<Broker at {', '.join(self.urls.values())}: {count} client{'s' * (count != 1)}{notes}>"

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.summary import broker_html

        if self._closed:
            return broker_html({}, state="closed")
        stats = self.stats
        return broker_html(
            self.urls,
            state="store cannot be written" if stats.store_error else "running",
            clients=self.clients(),
            counters={"messages in the store": stats.stored_messages, **stats.refusals()},
            ca_file=self._ca(),
        )

    def _ca(self) -> str:
        try:
            return str(self.ca_file)
        except UsageError:
            return "none (plain TCP only)"


class BrokerAio:
    """The verbs of a :class:`Broker`, awaitable from any event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._caller = broker._caller  # noqa: SLF001 - a twin of the same module

    async def clients(self) -> list[ClientInfo]:
        """See :meth:`Broker.clients`."""
        core = self._broker._core  # noqa: SLF001

        async def on_loop() -> list[ClientInfo]:
            return core.clients()

        return await self._caller.hop(on_loop)

    async def close(self, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Broker.close`."""
        await self._broker._close_awaited(timeout)  # noqa: SLF001
