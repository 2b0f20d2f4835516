"""How a handle reaches the object it wraps, from any thread or loop."""

from __future__ import annotations

import asyncio
import copy
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from mqttquic_lab.errors import BlockingCallError, OperationTimeoutError
from mqttquic_lab.session.advice import carried
from mqttquic_lab.session.options import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mqttquic_lab.runtime import Runtime

T = TypeVar("T")

GRACE = 2.0
"""Seconds that a verb may take beyond its own timeout, which ends it by itself: more, and its loop stands still."""

LOOK_TIMEOUT = 2.0
"""Seconds to wait for a look at something on its loop."""


class Caller:
    """Reaches one runtime. Holds nothing else, so that finalizers can have one."""

    __slots__ = ("runtime",)

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def call(
        self,
        timeout: float | str | None,
        verb: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Call `verb` on its loop and wait; `timeout` is the verb's own, of which this one is the backstop."""
        seconds = check_timeout(timeout, zero=True)
        return self.runtime.run(carried(verb, *args, **kwargs), None if seconds is None else seconds + GRACE)

    async def hop(self, verb: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> T:
        """Await `verb` on its loop, from any loop."""
        return await self.runtime.hop(carried(verb, *args, **kwargs))

    def look(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the loop, copied there one level deep, so that it no longer changes.

        Where the loop cannot be asked (it has ended, stands still, or is what calls) the look is taken right here.
        """

        async def on_loop() -> T:
            return _copy(function())

        try:
            return self.runtime.run(on_loop(), LOOK_TIMEOUT)
        except (BlockingCallError, OperationTimeoutError):
            return _copy(function())

    def spawn(self, verb: Callable[[], Coroutine[Any, Any, object]], /) -> None:
        """Start `verb` without waiting; does nothing when the loop has ended. For finalizers."""
        if self.runtime.is_alive:
            self.runtime.spawn(verb())


def on_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what awaits `function` on a thread of its own, so that it may block; a coroutine function stays so."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        return function

    async def called(*args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    return called


def _copy(value: T) -> T:
    copied = copy.copy(value)
    for name in getattr(type(copied), "__dataclass_fields__", ()):
        member = getattr(copied, name)
        if isinstance(member, (dict, list, set)):
            object.__setattr__(copied, name, copy.copy(member))
    return copied
