"""What the handles of our own servers have in common: where they listen, who is connected, and how they end."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mqttquic_lab.errors import BlockingCallError, UsageError
from mqttquic_lab.handles.calling import Caller
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.session.options import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from mqttquic_lab.runtime import Runtime


class Serving:
    """The handle of a server that runs on a loop of its own.

    A context manager; one that nobody keeps, and no session is connected to by its handle, closes itself.
    """

    _kind: ClassVar[str]
    """What it is, for messages."""

    def __init__(self, core: Any, runtime: Runtime) -> None:
        self._core = core
        self._runtime = runtime
        self._caller = Caller(runtime)
        self._closed = False
        self._withdraw = runtime.on_exit(core.close)
        self._finalizer = weakref.finalize(self, _forgotten, core, self._caller, self._withdraw)
        self._finalizer.atexit = False

    # Where

    @property
    def urls(self) -> dict[str, str]:
        """Scheme -> URL of every listener: ``"quic"``, ``"mqtts"``, ``"mqtt"``."""
        urls: dict[str, str] = self._core.urls
        return urls

    @property
    def url(self) -> str:
        """The QUIC URL, or the next best one."""
        url: str = self._core.url
        return url

    @property
    def ca_file(self) -> Path:
        """PEM file with the certificate authority to trust for this server, for other programs; gone after close."""
        path: Path = self._core.ca_file
        return path

    def address(self, scheme: str = "quic") -> tuple[str, int]:
        """Return host and port of a listener, for programs that want them apart.

        Parameters
        ----------
        scheme : {"quic", "mqtts", "mqtt"}
            Which one.

        Raises
        ------
        UsageError
            There is no such listener.
        """
        url = self.urls.get(scheme)
        if url is None:
            raise UsageError(f"this {self._kind} has no {scheme!r} listener; it has {', '.join(self.urls)}")
        address = parse_url(url)
        return address.host, address.port

    @property
    def state(self) -> str:
        """``"listening"`` or ``"closed"``."""
        return "closed" if self._closed else "listening"

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
        await self._close_awaited(10.0)

    async def _close_awaited(self, timeout: float | str | None) -> None:
        if not self._closed:
            async with asyncio.timeout(check_timeout(timeout)):
                await self._caller.hop(self._core.close)
            self._is_closed()

    def _is_closed(self) -> None:
        self._closed = True
        self._finalizer.detach()
        self._withdraw()


def _forgotten(core: Any, caller: Caller, withdraw: Callable[[], None]) -> None:
    """Close a server whose handle is gone, without waiting."""
    withdraw()
    with suppress(BlockingCallError):
        caller.spawn(core.close)
