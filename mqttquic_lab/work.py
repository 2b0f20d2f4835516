"""One coroutine on its way to another loop, and its outcome on the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Work(Generic[T]):
    """A coroutine that one thread waits for and another one's loop runs.

    Made on the caller's thread; :meth:`start` and :meth:`cancel` run on the loop.

    Parameters
    ----------
    coro : coroutine
        The work.
    done : callable()
        Called on the loop, once, when the outcome stands.

    Attributes
    ----------
    name : str
        Name of the coroutine's function: the verb.
    finished : bool
        Whether the outcome stands: `value`, `error` or `cancelled`.
    """

    __slots__ = ("_coro", "_done", "_task", "cancelled", "error", "finished", "name", "value")

    def __init__(self, coro: Coroutine[Any, Any, T], done: Callable[[], object]) -> None:
        self._coro = coro
        self._done = done
        self._task: asyncio.Task[T] | None = None
        self.name = name_of(coro)
        self.finished = False
        self.cancelled = False
        self.error: BaseException | None = None
        self.value: T

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the coroutine a task of `loop`, unless :meth:`cancel` was there first."""
        if not self.finished:
            self._task = loop.create_task(self._coro)
            self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """Cancel the task, or close the coroutine if it has none yet."""
        if self._task is not None:
            self._task.cancel()
        elif not self.finished:  # the caller was interrupted before the start was on its way
            self._coro.close()
            self.finished = self.cancelled = True
            self._done()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.cancelled = True
        else:
            self.error = task.exception()
            if self.error is None:
                self.value = task.result()
        self.finished = True
        self._task = None  # it holds the error, whose traceback holds the caller's frame, which holds this: a cycle
        self._done()

    def result(self) -> T:
        """Return or raise the outcome."""
        if self.cancelled:
            raise DisconnectedError(f"{self.name}() was cancelled: its session or runtime was closed meanwhile")
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # likewise
        return self.value

    def late_result(self, timeout: float) -> T:
        """Return or raise the outcome of work that was cancelled at its deadline; a result in hand is not lost."""
        if self.finished and not self.cancelled:
            return self.result()
        raise OperationTimeoutError(f"{self.name}() took longer than its timeout of {timeout:g} s and was cancelled")


def name_of(coro: Coroutine[Any, Any, Any]) -> str:
    """Return the name of the function that a coroutine runs, for messages."""
    return getattr(coro, "__name__", None) or type(coro).__name__
