"""Sync over async: which loop a session lives on, and how any thread or loop gets there and back.

One rule: a session, broker or link lives on exactly one event loop, that of its :class:`Runtime`, and is touched
nowhere else. Blocking verbs go there with :meth:`Runtime.run`, awaitable ones with :meth:`Runtime.hop`, finalizers
and widget callbacks with :meth:`Runtime.post` and :meth:`Runtime.spawn`, which never wait.

:class:`ThreadRuntime` is the default: a background thread, so that keep-alives and acknowledgements go on while a
notebook cell computes. :class:`NotebookRuntime` is the kernel's own loop, on request. :class:`CallbackRunner` runs
what the user hands in, off the loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import importlib
import logging
import os
import signal
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mqttquic_lab.callbacks import CallbackRunner
from mqttquic_lab.errors import BlockingCallError, UsageError
from mqttquic_lab.work import Work, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from types import FrameType

    Closer = Callable[[], Coroutine[Any, Any, object]]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_WAKE = 0.2
"""Seconds between two looks while waiting. Windows does not interrupt a lock by Ctrl-C, ipykernel cancels an awaiting
cell without waking its loop, and a loop thread that died answers nobody: all three are noticed within this time."""

_CANCEL_GRACE = 1.0
"""Seconds that cancelled work gets to clean up before the caller stops waiting for it."""

_EXIT_LIMIT = 2.0
"""Seconds that the end of the process may wait for sessions to say goodbye."""

_DRAIN_SHARE = 0.75
"""Part of that for orderly closing; the rest is for cancelling what is left."""

THREAD_NAME = "mqttquic-lab loop"
"""Name of the thread that all sessions share by default."""

__all__ = ["CallbackRunner", "NotebookRuntime", "Runtime", "ThreadRuntime", "default_runtime", "get_runtime"]

_ENDED = "the runtime has ended (stopped, or the process is about to exit): open a new session"
_FORKED = (
    "this process was forked after the session was opened, and threads and connections do not survive a fork: "
    "open a new session in the child process"
)


class Runtime(ABC):
    """An event loop that sessions live on, and the ways to it.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        That loop.
    thread : threading.Thread
        The thread it runs on.
    """

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    _pid: int
    _closers: dict[object, Closer]
    _spawned: set[asyncio.Task[object]]

    @abstractmethod
    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run `coro` on the loop and wait for its result.

        Timeout and Ctrl-C cancel the work and give it up to a second to clean up. A result that arrives in that time
        is returned: a call either brings its result or has been cancelled, never both.

        Parameters
        ----------
        coro : coroutine
            The work; closed unstarted where this raises BlockingCallError.
        timeout : float, optional
            Seconds; None waits for ever.

        Raises
        ------
        OperationTimeoutError
            If `timeout` ran out. A ``TimeoutError`` of the coroutine itself comes through as it is.
        BlockingCallError
            If waiting here would wait for itself, if the process was forked since, or if the runtime has ended.
        DisconnectedError
            If something else cancelled the work.
        KeyboardInterrupt
            On Ctrl-C, after the work was cancelled; the session stays usable.
        """

    async def hop(self, coro: Coroutine[Any, Any, T]) -> T:
        """Await `coro` on this runtime's loop, from any loop; cancelling the await cancels the work.

        Raises
        ------
        BlockingCallError
            If the process was forked since, or the runtime has ended.
        DisconnectedError
            If something else cancelled the work.
        """
        here = asyncio.get_running_loop()
        if here is self.loop:
            return await coro
        arrived = here.create_future()
        ticker: asyncio.TimerHandle

        def wake() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def done() -> None:
            try:
                here.call_soon_threadsafe(wake)
            except RuntimeError:
                _log.debug("a loop was closed while it awaited %s()", work.name)

        def tick() -> None:
            nonlocal ticker
            ticker = here.call_later(_WAKE, tick)
            if not self.is_alive:
                wake()

        work = Work(coro, done)
        self._submit(work)
        ticker = here.call_later(_WAKE, tick)
        try:
            await arrived
        except asyncio.CancelledError:
            arrived = here.create_future()  # the first one was cancelled along with the await
            self.post(work.cancel)
            if not work.finished:
                await asyncio.wait((arrived,), timeout=_CANCEL_GRACE)
            raise
        finally:
            ticker.cancel()
        if not work.finished:
            raise BlockingCallError(_ENDED)
        return work.result()

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Call `function` on the loop soon, from any thread, without waiting; False if the loop is gone.

        Safe in finalizers. It runs in an empty context: a session must not keep alive what belongs to the notebook
        cell that happened to open it. An exception goes to the loop's exception handler, which logs it.
        """
        if not self.is_alive:
            return False
        try:
            self.loop.call_soon_threadsafe(function, *args, context=contextvars.Context())
        except RuntimeError:  # closed since
            return False
        return True

    def spawn(self, coro: Coroutine[Any, Any, object]) -> bool:
        """Start `coro` on the loop without waiting for it; False if the loop is gone (`coro` is closed then).

        For finalizers. At the end of the process it gets up to two seconds to finish; an exception is logged.
        """
        if self.post(self._start_spawned, coro):
            return True
        coro.close()
        return False

    def on_exit(self, closer: Closer) -> Callable[[], None]:
        """Have `closer` called on the loop and awaited at the end of the process; returns what takes that back.

        All closers run at once and have two seconds together.
        """
        key = object()
        closers = self._closers
        closers[key] = closer

        def withdraw() -> None:
            closers.pop(key, None)

        return withdraw

    @property
    def is_alive(self) -> bool:
        """Whether the loop can still do work, in this process."""
        return os.getpid() == self._pid and not self.loop.is_closed()

    def _submit(self, work: Work[T]) -> None:
        """Send work to the loop, or say why that is impossible."""
        if not self.post(work.start, self.loop):
            work.cancel()
            raise BlockingCallError(_ENDED if os.getpid() == self._pid else _FORKED)

    def _run_across(self, coro: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Run `coro` from another thread than the loop's."""
        finished = threading.Lock()  # a lock is the cheapest thing one thread can wait for and another can end
        finished.acquire()
        work = Work(coro, finished.release)
        try:
            self._submit(work)
            in_time = self._wait(finished, timeout)
            if not in_time:
                self.post(work.cancel)
                finished.acquire(timeout=_CANCEL_GRACE)
        except BlockingCallError:
            raise
        except BaseException:  # Ctrl-C: the work ends as well as the wait
            self.post(work.cancel)
            if not work.finished:
                finished.acquire(timeout=_CANCEL_GRACE)
            raise
        if not in_time:
            assert timeout is not None
            return work.late_result(timeout)
        return work.result()

    def _wait(self, finished: threading.Lock, timeout: float | None) -> bool:
        """Wait in short steps until `finished` can be had; False if the time ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            step = _WAKE if deadline is None else min(_WAKE, max(0.0, deadline - time.monotonic()))
            if finished.acquire(timeout=step):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if not self.is_alive:
                raise BlockingCallError(_ENDED)

    def _start_spawned(self, coro: Coroutine[Any, Any, object]) -> None:
        task = self.loop.create_task(coro)
        self._spawned.add(task)
        task.add_done_callback(self._end_spawned)

    def _end_spawned(self, task: asyncio.Task[object]) -> None:
        self._spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("background work failed: %r", error, exc_info=error)


class ThreadRuntime(Runtime):
    """A daemon thread with an event loop of its own, always a selector loop, also on Windows.

    It goes on while a cell computes, while a debugger waits, and whatever is done to the kernel's loop.

    Parameters
    ----------
    name : str
        Name of the thread. :func:`default_runtime` gives the one that all sessions share.
    """

    thread: _LoopThread

    def __init__(self, name: str = "mqttquic-lab private loop") -> None:
        self.adopt(_LoopThread(name))
        self.thread.start()
        atexit.register(self.stop)

    def adopt(self, thread: _LoopThread) -> None:
        """Take over a thread. All state is the thread's, so that a reloaded module's instances share it."""
        self.thread = thread
        self.loop = thread.mqttquic_lab_loop
        self._pid = thread.pid
        self._closers = thread.closers
        self._spawned = thread.spawned

    @classmethod
    def running(cls, name: str) -> ThreadRuntime | None:
        """Find a running thread of that name, which may be older than this module's present incarnation."""
        for thread in threading.enumerate():
            if thread.name == name and hasattr(thread, "mqttquic_lab_loop") and not getattr(thread, "stopping", True):
                runtime = cls.__new__(cls)
                runtime.adopt(thread)  # type: ignore[arg-type]  # a _LoopThread, perhaps of an earlier import
                return runtime
        return None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, in this process."""
        return os.getpid() == self._pid and not self.thread.stopping and self.thread.is_alive()

    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:  # noqa: D102
        if threading.current_thread() is self.thread:
            name = name_of(coro)
            coro.close()
            raise BlockingCallError(
                f"{name}() blocks, and would wait for itself on the thread that serves it: use its twin under .aio "
                f"(await session.aio.{name}(...)), or call it from another thread"
            )
        return self._run_across(coro, timeout)

    def stop(self, limit: float = _EXIT_LIMIT) -> None:
        """Close what lives here in order, cancel the rest and end the thread, within `limit` seconds.

        Called at the end of the process. Does nothing if the thread has ended, or belongs to the process this one
        was forked from.
        """
        if not self.is_alive or threading.current_thread() is self.thread:
            return
        end = time.monotonic() + limit
        drained = threading.Lock()
        drained.acquire()
        self._submit(Work(_drain(self._closers.values(), self._spawned, limit, everything=True), drained.release))
        drained.acquire(timeout=limit)
        self.thread.stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(max(0.0, end - time.monotonic()))
        atexit.unregister(self.stop)

    def __repr__(self) -> str:
        return f"<ThreadRuntime: {self.thread.name}, {'running' if self.is_alive else 'ended'}>"


class _LoopThread(threading.Thread):
    """The thread of a :class:`ThreadRuntime`, found again by name and attribute after a module reload."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.mqttquic_lab_loop = asyncio.SelectorEventLoop()
        self.mqttquic_lab_loop.set_exception_handler(_log_loop_error)
        self.pid = os.getpid()
        self.stopping = False
        self.closers: dict[object, Closer] = {}
        self.spawned: set[asyncio.Task[object]] = set()

    def run(self) -> None:
        loop = self.mqttquic_lab_loop
        while not self.stopping:
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as error:  # asyncio lets these two out of a task
                _log.warning("%s raised on the session's loop was ignored", type(error).__name__)
        loop.close()


class NotebookRuntime(Runtime):
    """The running loop of this thread (a notebook kernel's), made re-entrant by nest_asyncio.

    A cell that computes stops everything that lives here: keep-alives, acknowledgements, live views. Importing and
    applying nest_asyncio slows every loop in the process. Hence only on request.

    Raises
    ------
    UsageError
        If no loop runs in this thread, nest_asyncio is missing, or the loop cannot be patched (uvloop).
    """

    def __init__(self) -> None:
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "the notebook runtime needs a running event loop, as a notebook kernel has: use it in a notebook, "
                'or leave the default runtime="thread"'
            ) from None
        _make_reentrant(self.loop)
        self.thread = threading.current_thread()
        self._pid = os.getpid()
        self._closers = {}
        self._spawned = set()
        atexit.register(self.stop)

    def run(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:  # noqa: D102
        if threading.current_thread() is not self.thread:
            return self._run_across(coro, timeout)
        gate = self.loop.create_future()

        def leave() -> None:
            if not gate.done():
                gate.set_result(None)

        work = Work(coro, leave)
        if not self.is_alive:
            self._submit(work)
        ended_by: list[Literal["timeout", "interrupt"]] = []

        def end(why: Literal["timeout", "interrupt"]) -> None:
            if not work.finished:
                ended_by.append(why)
                work.cancel()
                self.loop.call_later(_CANCEL_GRACE, leave)

        contextvars.Context().run(work.start, self.loop)
        timer = None if timeout is None else self.loop.call_later(timeout, end, "timeout")
        try:
            with _interrupts(lambda: self.loop.call_soon_threadsafe(end, "interrupt")):
                self.loop.run_until_complete(gate)
        except KeyboardInterrupt:  # a second Ctrl-C, or one that no handler of ours could catch
            work.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if "interrupt" in ended_by:
            raise KeyboardInterrupt
        if ended_by:
            assert timeout is not None
            return work.late_result(timeout)
        return work.result()

    def stop(self, limit: float = _EXIT_LIMIT) -> None:
        """Close what lives here in order, within `limit` seconds; the loop itself is the kernel's and goes on.

        Called at the end of the process, where the kernel's loop has stopped; while it runs, only from its thread.
        """
        atexit.unregister(self.stop)
        if self.is_alive and threading.current_thread() is self.thread:
            self.loop.run_until_complete(_drain(self._closers.values(), self._spawned, limit, everything=False))

    def __repr__(self) -> str:
        return f"<NotebookRuntime: {self.loop!r}>"


_default: ThreadRuntime | None = None
_default_lock = threading.Lock()
_notebooks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, NotebookRuntime] = weakref.WeakKeyDictionary()


def default_runtime() -> ThreadRuntime:
    """Return the thread runtime that all sessions of this process share; starts it at the first call.

    After a reload of this module the thread that runs already is found again; after a fork, or a stop, a new one
    begins.
    """
    global _default
    with _default_lock:
        if _default is None or not _default.is_alive:
            _default = ThreadRuntime.running(THREAD_NAME) or ThreadRuntime(THREAD_NAME)
        return _default


def get_runtime(kind: Literal["thread", "notebook"] | Runtime = "thread") -> Runtime:
    """Return the runtime that `kind` names: ``"thread"``, ``"notebook"``, or a Runtime as it is.

    Raises
    ------
    UsageError
        If there is no such kind, or :class:`NotebookRuntime` cannot work here.
    """
    if isinstance(kind, Runtime):
        return kind
    if kind == "thread":
        return default_runtime()
    if kind == "notebook":
        try:
            known = _notebooks.get(asyncio.get_running_loop())
        except RuntimeError:
            known = None
        if known is None:
            known = NotebookRuntime()
            _notebooks[known.loop] = known
        return known
    raise UsageError(f'runtime must be "thread" (default) or "notebook", not {kind!r}')


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread that does not exist there may have held it."""
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log under our own name: asyncio's would be printed, into whichever notebook cell runs at that moment."""
    error = context.get("exception")
    _log.error("on the session's loop: %s", context.get("message"), exc_info=error)


async def _drain(
    closers: Iterable[Closer], spawned: Iterable[asyncio.Task[object]], limit: float, *, everything: bool
) -> None:
    """Await closers and background work, then cancel what is left: of these, or of `everything` on this loop."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    pending = {loop.create_task(_close(closer)) for closer in tuple(closers)} | set(spawned)
    if pending:
        _, pending = await asyncio.wait(pending, timeout=limit * _DRAIN_SHARE)
    if everything:
        pending = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=max(0.0, end - loop.time()))


async def _close(closer: Closer) -> None:
    try:
        await closer()
    except Exception:  # noqa: BLE001  # one session's failure to say goodbye must not keep the others from it
        _log.debug("closing at the end of the process failed", exc_info=True)


def _make_reentrant(loop: asyncio.AbstractEventLoop) -> None:
    """Apply nest_asyncio, or its successor where it is broken: from 3.14 on, ``current_task()`` is None under it."""
    names = ("nest_asyncio2",) if sys.version_info >= (3, 14) else ("nest_asyncio", "nest_asyncio2")
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        try:
            module.apply(loop)
        except ValueError as error:
            raise UsageError(
                f'the notebook runtime cannot use this event loop ({error}): leave the default runtime="thread"'
            ) from error
        return
    raise UsageError(
        f"the notebook runtime needs {names[0]} on Python {sys.version_info[0]}.{sys.version_info[1]}: "
        f'pip install {names[0].replace("_asyncio", "-asyncio")}, or leave the default runtime="thread"'
    )


@contextmanager
def _interrupts(on_interrupt: Callable[[], object]) -> Iterator[None]:
    """Turn the first Ctrl-C into a call, so that it does not hit whatever task happens to run; the second one is real.

    Does nothing off the main thread, where no signal handler runs, and where Ctrl-C is not handled in Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    if not callable(former):
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_interrupt()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
