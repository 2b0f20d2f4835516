"""The embedded broker as a person meets it."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from mqttquic_lab.errors import BlockingCallError, UsageError
from mqttquic_lab.handles.calling import Caller
from mqttquic_lab.net.address import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    import pandas as pd

    from mqttquic_lab.broker import BrokerProcess, BrokerServer, BrokerStats, ClientInfo
    from mqttquic_lab.runtime import Runtime


class Broker:
    """A broker of one's own. Made by :func:`mqttquic_lab.start_broker`.

    Pass it to :func:`mqttquic_lab.connect` as it is: its certificate authority is then trusted, for that session
    only. A context manager; a broker that nobody keeps, and no session is connected to by its handle, closes itself.
    """

    def __init__(self, core: BrokerServer | BrokerProcess, runtime: Runtime) -> None:
        self._core = core
        self._runtime = runtime
        self._caller = Caller(runtime)
        self._closed = False
        self._withdraw = runtime.on_exit(core.close)
        self._finalizer = weakref.finalize(self, _forgotten, core, self._caller, self._withdraw)
        self._finalizer.atexit = False

    # Where and who

    @property
    def urls(self) -> dict[str, str]:
        """Scheme -> URL of every listener: ``"quic"``, ``"mqtts"``, ``"mqtt"``."""
        return self._core.urls

    @property
    def url(self) -> str:
        """The QUIC URL, or the next best one."""
        return self._core.url

    @property
    def ca_file(self) -> Path:
        """PEM file with the certificate authority to trust for this broker, for other programs; gone after close."""
        return self._core.ca_file

    def address(self, scheme: str = "quic") -> tuple[str, int]:
        """Return host and port of a listener, for programs that want them apart.

        Parameters
        ----------
        scheme : {"quic", "mqtts", "mqtt"}
            Which one.

        Raises
        ------
        UsageError
            The broker has no such listener.
        """
        url = self.urls.get(scheme)
        if url is None:
            raise UsageError(f"this broker has no {scheme!r} listener; it has {', '.join(self.urls)}")
        address = parse_url(url)
        return address.host, address.port

    @property
    def state(self) -> str:
        """``"listening"`` or ``"closed"``."""
        return "closed" if self._closed else "listening"

    def clients(self) -> list[ClientInfo]:
        """Return who is connected, over what, in the order in which they connected."""
        return self._caller.look(self._core.clients)

    @property
    def stats(self) -> BrokerStats:
        """Counters since the start, and how much is held now."""
        return self._caller.look(self._core.stats)

    def frame(self) -> pd.DataFrame:
        """Return :meth:`clients` as a DataFrame."""
        from dataclasses import asdict

        from mqttquic_lab.views.frame import rows_frame

        return rows_frame([asdict(client) for client in self.clients()])

    @property
    def aio(self) -> BrokerAio:
        """The same verbs, awaitable from any event loop."""
        return BrokerAio(self)

    # Ending

    def close(self, *, timeout: float | str | None = 10.0) -> None:
        """Disconnect every client and stop listening; again is no error."""
        if self._closed:
            return
        try:
            self._caller.call(timeout, self._core.close)
        except BlockingCallError:
            if self._runtime.is_alive:
                raise
        self._is_closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aio.close()

    def _is_closed(self) -> None:
        self._closed = True
        self._finalizer.detach()
        self._withdraw()

    # Showing

    def __repr__(self) -> str:
        if self._closed:
            return "<Broker: closed>"
        count = len(self.clients())
        return f"<Broker at {', '.join(self.urls.values())}: {count} client{'s' * (count != 1)}>"

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.summary import broker_html

        if self._closed:
            return broker_html({}, state="closed")
        return broker_html(self.urls, clients=self.clients(), ca_file=self._ca())

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
        import asyncio

        from mqttquic_lab.session.options import check_timeout

        if not self._broker._closed:  # noqa: SLF001
            async with asyncio.timeout(check_timeout(timeout)):
                await self._caller.hop(self._broker._core.close)  # noqa: SLF001
            self._broker._is_closed()  # noqa: SLF001


def _forgotten(core: Any, caller: Caller, withdraw: Callable[[], None]) -> None:
    """Close a broker whose handle is gone, without waiting."""
    withdraw()
    with suppress(BlockingCallError):
        caller.spawn(core.close)
