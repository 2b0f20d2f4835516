"""Where the user's callbacks run: off the event loop, in order, bounded."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class CallbackRunner:
    """Runs the user's callbacks off the loop, one after the other, on one daemon thread.

    The thread begins with the first callback. Callbacks may block and may call blocking verbs. When `maxsize` of them
    wait, further ones are dropped and counted: the loop never waits for a user.

    Parameters
    ----------
    maxsize : int
        How many callbacks may wait.
    on_error : callable(BaseException)
        Called on the callbacks' thread with what a callback raised.
    name : str
        Name of the thread.

    Attributes
    ----------
    dropped, failed : int
        Callbacks that were not run because too many waited, and those that raised.
    """

    def __init__(
        self,
        maxsize: int = 10_000,
        on_error: Callable[[BaseException], object] | None = None,
        *,
        name: str = "callbacks",
    ) -> None:
        if maxsize < 1:
            raise UsageError(f"maxsize must be at least 1, not {maxsize!r}")
        self.maxsize = maxsize
        self.dropped = 0
        self.failed = 0
        self._on_error = on_error
        self._name = f"mqttquic-lab {name}"
        self._queue: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, function: Callable[..., object], *args: Any) -> bool:
        """Have `function` called with `args`; False if it was dropped. Never waits."""
        if self._closed or self._queue.qsize() >= self.maxsize:
            with self._lock:
                self.dropped += 1
            return False
        self._queue.put((function, args))
        if self._thread is None:
            self._start()
        return True

    @property
    def waiting(self) -> int:
        """Callbacks that wait for their turn."""
        return self._queue.qsize()

    def close(self, timeout: float | None = 0.0) -> bool:
        """Accept no more callbacks, run those that wait, and end the thread; True if it ended within `timeout` seconds.

        May be called by a callback, and more than once.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            function, args = item
            try:
                function(*args)
            except BaseException as error:  # noqa: BLE001  # a user's code: whatever it raises, the next one runs
                self.failed += 1
                self._report(error)
            del item, function, args  # do not hold the last message while waiting for the next

    def _report(self, error: BaseException) -> None:
        _log.warning("a callback failed: %r", error, exc_info=error)
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:  # noqa: BLE001  # it must not end the thread that runs the next callback
                _log.exception("reporting a failed callback failed")
