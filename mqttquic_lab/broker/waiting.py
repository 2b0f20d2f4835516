"""Waiting for the broker to get into a state, without polling."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable


class Waiting:
    """Conditions that somebody waits for.

    Parameters
    ----------
    owner : object
        Whose state they look at; its repr goes into the message of a timeout.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._conditions: dict[asyncio.Future[None], Callable[[], object]] = {}
        self._closed: str | None = None

    def __bool__(self) -> bool:
        return bool(self._conditions)

    async def wait_for(self, condition: Callable[[], object], timeout: float | None) -> None:
        """Return once `condition()` is true. See :meth:`mqttquic_lab.broker.server.BrokerServer.wait_for`."""
        if condition():
            return
        if self._closed is not None:
            raise DisconnectedError(self._closed)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._conditions[future] = condition
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise OperationTimeoutError(
                f"{self._owner!r} did not get into the state waited for within {timeout:g} s"
            ) from None
        finally:
            del self._conditions[future]

    def check(self) -> None:
        """Ask every condition again."""
        for future, condition in list(self._conditions.items()):
            if not future.done():
                try:
                    if condition():
                        future.set_result(None)
                except Exception as error:  # noqa: BLE001 - belongs to the one who waits, not to the broker's loop
                    future.set_exception(error)

    async def next_change(self) -> None:
        """Return when :meth:`check` is called next."""
        asked = False

        def second_time() -> bool:
            nonlocal asked
            asked, before = True, asked
            return before

        await self.wait_for(second_time, None)

    def close(self, reason: str = "the broker was closed") -> None:
        """Fail whoever waits, now or later."""
        self._closed = reason
        for future in self._conditions:
            if not future.done():
                future.set_exception(DisconnectedError(reason))
