"""Blocking and awaiting across loops: results, timeouts, Ctrl-C, forks, reloads, the end of the process.

What changes a whole process (forks, reloads, signals to a notebook's loop, the end) happens in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab import runtime as runtime_module
from mqttquic_lab.errors import BlockingCallError, DisconnectedError, OperationTimeoutError, UsageError
from mqttquic_lab.runtime import NotebookRuntime, Runtime, ThreadRuntime, default_runtime, get_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
"""Seconds after which something that should have happened long ago counts as hanging."""


@pytest.fixture
def runtime() -> Iterator[ThreadRuntime]:
    runtime = ThreadRuntime("test loop")
    yield runtime
    runtime.stop()
    assert not runtime.thread.is_alive()


class Work:
    """A coroutine function that tells what became of it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()

    async def endless(self) -> None:
        self.started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def give(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


# The thread runtime: results and errors -------------------------------------------------------------------------------


def test_result_and_error_come_back(runtime: ThreadRuntime) -> None:
    assert runtime.run(give(3)) == 3
    with pytest.raises(ZeroDivisionError):
        runtime.run(fail(ZeroDivisionError()))


def test_the_thread_is_a_named_daemon_with_a_selector_loop(runtime: ThreadRuntime) -> None:
    async def where() -> tuple[threading.Thread, asyncio.AbstractEventLoop]:
        return threading.current_thread(), asyncio.get_running_loop()

    thread, loop = runtime.run(where())
    assert (thread, loop) == (runtime.thread, runtime.loop)
    assert thread.daemon
    assert thread.name == "test loop"
    assert isinstance(loop, asyncio.SelectorEventLoop)


def test_an_error_leaves_no_cycle_behind(runtime: ThreadRuntime) -> None:
    """A traceback that waits for the collector keeps alive whatever the session held."""

    class HeldError(Exception):
        pass

    async def publish() -> None:
        raise HeldError

    gc.disable()
    try:
        try:  # pytest.raises would hold the traceback itself
            runtime.run(publish())
        except HeldError as error:
            held = weakref.ref(error)
        runtime.run(give(1))  # the loop's last handle lets go of the task
        assert held() is None
    finally:
        gc.enable()


def test_many_threads_share_it(runtime: ThreadRuntime) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(runtime.run(give(n), 5))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == list(range(20))


def test_a_session_does_not_keep_the_callers_context(runtime: ThreadRuntime) -> None:
    """A long-lived task that inherited a notebook cell's context would print into that cell for ever."""
    cell = contextvars.ContextVar("cell", default="none")
    cell.set("cell 7")

    async def look() -> str:
        return cell.get()

    assert runtime.run(look()) == "none"


def test_system_exit_on_the_loop_does_not_end_it(runtime: ThreadRuntime, caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    runtime.post(leave)
    assert runtime.run(give(1), PATIENCE) == 1
    assert "SystemExit" in caplog.text


# Timeout --------------------------------------------------------------------------------------------------------------


def test_timeout_cancels_the_work_and_names_the_verb(runtime: ThreadRuntime) -> None:
    work = Work()
    with pytest.raises(OperationTimeoutError, match=r"endless\(\) took longer than its timeout of 0\.05 s"):
        runtime.run(work.endless(), 0.05)
    assert work.cancelled.is_set()
    assert runtime.run(give(1)) == 1


def test_the_works_own_timeout_error_is_not_ours(runtime: ThreadRuntime) -> None:
    with pytest.raises(TimeoutError, match="the broker's own") as caught:
        runtime.run(fail(TimeoutError("the broker's own")), PATIENCE)
    assert type(caught.value) is TimeoutError


def test_a_result_at_the_deadline_is_not_lost(runtime: ThreadRuntime) -> None:
    """The loop is busy while the time runs out; the result stands before the cancellation gets its turn."""
    passed = threading.Event()

    async def finish_late() -> str:
        passed.wait(PATIENCE)
        return "acknowledged"

    results: list[str] = []
    caller = threading.Thread(target=lambda: results.append(runtime.run(finish_late(), 0.01)))
    caller.start()
    time.sleep(0.1)  # the deadline has to pass: nothing tells of that, and later does no harm
    passed.set()
    caller.join(PATIENCE)
    assert results == ["acknowledged"]


def test_an_error_at_the_deadline_is_not_lost(runtime: ThreadRuntime) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise KeyError("cleanup") from None

    with pytest.raises(KeyError, match="cleanup"):
        runtime.run(stubborn(), 0.01)


def test_work_that_resists_cancelling_is_left_behind(runtime: ThreadRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "_CANCEL_GRACE", 0.05)
    release = asyncio.Event()

    async def deaf() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(OperationTimeoutError):
        runtime.run(deaf(), 0.01)
    runtime.post(release.set)


# Blocking where it must not -------------------------------------------------------------------------------------------


def test_a_blocking_call_on_its_own_loop_names_the_fix(runtime: ThreadRuntime) -> None:
    async def publish() -> None: ...

    async def callback() -> None:
        runtime.run(publish())

    with pytest.raises(BlockingCallError, match=r"await session\.aio\.publish"):
        runtime.run(callback())
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors


def test_after_stop_calls_say_so(runtime: ThreadRuntime) -> None:
    runtime.stop()
    assert not runtime.is_alive
    with pytest.raises(BlockingCallError, match="has ended"):
        runtime.run(give(1))
    with pytest.raises(BlockingCallError, match="has ended"):
        asyncio.run(runtime.hop(give(1)))
    assert runtime.post(print) is False
    assert runtime.spawn(give(1)) is False
    runtime.stop()
    gc.collect()


def test_a_loop_that_dies_under_a_call_does_not_hang_it() -> None:
    runtime = ThreadRuntime("test loop")

    async def die() -> None:
        runtime.thread.stopping = True
        runtime.loop.stop()
        await asyncio.get_running_loop().create_future()

    async def hop() -> None:
        await runtime.hop(give(1))

    with pytest.raises(BlockingCallError, match="has ended"):
        runtime.run(die())
    runtime.thread.join(PATIENCE)
    with pytest.raises(BlockingCallError, match="has ended"):
        asyncio.run(hop())
    gc.collect()


async def test_a_loop_that_dies_under_an_await_does_not_hang_it() -> None:
    runtime = ThreadRuntime("test loop")
    work = Work()
    task = asyncio.ensure_future(runtime.hop(work.endless()))
    await asyncio.to_thread(work.started.wait, PATIENCE)
    tasks = await runtime.hop(all_tasks_but_this())
    runtime.thread.stopping = True
    runtime.loop.call_soon_threadsafe(runtime.loop.stop)
    with pytest.raises(BlockingCallError, match="has ended"):
        await asyncio.wait_for(task, PATIENCE)
    for lost in tasks:
        lost._log_destroy_pending = False  # type: ignore[attr-defined]  # it will be: that is the case at hand


async def all_tasks_but_this() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_work_that_others_cancel_is_not_a_timeout(runtime: ThreadRuntime) -> None:
    async def cancel_all() -> None:
        for task in await all_tasks_but_this():
            task.cancel()

    work = Work()
    canceller = threading.Thread(target=lambda: work.started.wait(PATIENCE) and runtime.run(cancel_all()))
    canceller.start()
    with pytest.raises(DisconnectedError, match=r"endless\(\) was cancelled"):
        runtime.run(work.endless(), PATIENCE)
    canceller.join(PATIENCE)


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process there")
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_ctrl_c_cancels_the_work_and_leaves_the_runtime_usable(runtime: ThreadRuntime, timeout: float | None) -> None:
    work = Work()

    async def interrupted() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        await work.endless()

    with pytest.raises(KeyboardInterrupt):
        runtime.run(interrupted(), timeout)
    assert work.cancelled.is_set()
    assert runtime.run(give(1)) == 1


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_in_a_program() -> None:
    """The signal comes from outside, as from a terminal."""
    code = """
        import asyncio, sys
        from mqttquic_lab.runtime import default_runtime

        async def wait():
            print("waiting", flush=True)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise

        async def give(value):
            return value

        runtime = default_runtime()
        try:
            runtime.run(wait(), 60)
        except KeyboardInterrupt:
            print("interrupted", runtime.run(give("and usable")), flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("cancelled\ninterrupted and usable\n", "")


# Awaiting from another loop -------------------------------------------------------------------------------------------


async def test_hop_brings_results_and_errors(runtime: ThreadRuntime) -> None:
    assert await runtime.hop(give(3)) == 3
    with pytest.raises(ZeroDivisionError):
        await runtime.hop(fail(ZeroDivisionError()))


def test_hop_on_the_runtimes_own_loop_just_awaits(runtime: ThreadRuntime) -> None:
    async def task() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    async def compare() -> bool:
        return await runtime.hop(task()) is asyncio.current_task()

    assert runtime.run(compare())


async def test_cancelling_the_await_cancels_the_work_and_lets_it_clean_up(runtime: ThreadRuntime) -> None:
    cleaned_up = threading.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            cleaned_up.set()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runtime.hop(work()), 0.05)
    assert cleaned_up.is_set()


async def test_cancelling_the_await_does_not_wait_for_ever(
    runtime: ThreadRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "_CANCEL_GRACE", 0.05)
    busy = threading.Event()
    release = threading.Event()

    async def block() -> None:
        busy.set()
        release.wait(PATIENCE)

    task = asyncio.create_task(runtime.hop(block()))
    await asyncio.to_thread(busy.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()


async def test_while_awaiting_the_loop_wakes_often_enough_for_an_interrupt(
    runtime: ThreadRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ipykernel cancels an awaiting cell from a signal handler, which does not wake the loop: only a timer does."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    call_later = loop.call_later

    def record(delay: float, callback: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(0, callback)

    monkeypatch.setattr(loop, "call_later", record)
    release = threading.Event()

    async def block() -> None:
        release.wait(PATIENCE)

    task = asyncio.ensure_future(runtime.hop(block()))
    while len(delays) < 3:  # it goes on for as long as the await does
        await asyncio.sleep(0)
    release.set()
    await task
    assert set(delays) == {0.2}


def test_a_loop_that_closed_while_it_awaited_is_noted_and_no_more(
    runtime: ThreadRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mqttquic_lab")
    started, release = threading.Event(), threading.Event()

    async def block() -> None:
        started.set()
        release.wait(PATIENCE)

    loop = asyncio.new_event_loop()
    task = loop.create_task(runtime.hop(block()))
    while not started.is_set():
        loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    release.set()
    assert runtime.run(give(1), PATIENCE) == 1
    assert "closed while it awaited block()" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it will be: that is the case at hand


# Without waiting ------------------------------------------------------------------------------------------------------


def test_post_and_spawn_do_not_wait(runtime: ThreadRuntime) -> None:
    seen: list[object] = []
    finished = threading.Event()

    async def later() -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread())
        finished.set()

    assert runtime.post(seen.append, "posted")
    assert runtime.spawn(later())
    assert finished.wait(PATIENCE)
    assert seen == ["posted", runtime.thread]


def test_what_posted_work_raises_is_logged_under_our_name(
    runtime: ThreadRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    """Asyncio's own logger has no NullHandler: it would print into whichever notebook cell runs."""

    def fail_at_once() -> None:
        raise ZeroDivisionError("in a callback")

    runtime.post(fail_at_once)
    runtime.run(give(1))
    assert "in a callback" in caplog.text
    assert {record.name.partition(".")[0] for record in caplog.records} == {"mqttquic_lab"}


def test_what_spawned_work_raises_is_logged(runtime: ThreadRuntime, caplog: pytest.LogCaptureFixture) -> None:
    runtime.spawn(fail(ZeroDivisionError("in the background")))
    for _ in range(3):
        runtime.run(give(1))
    assert "in the background" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# Stopping ----------------------------------------------------------------------------------------------------------


def test_stop_awaits_closers_and_background_work_then_cancels_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    runtime = ThreadRuntime("test loop")
    seen: list[str] = []
    work = Work()

    async def close(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append(name)

    async def fail_to_close() -> None:
        raise ZeroDivisionError

    async def start() -> None:
        runtime.background = asyncio.create_task(work.endless())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    runtime.run(start())
    runtime.on_exit(lambda: close("session", 0.01))
    runtime.on_exit(fail_to_close)
    runtime.on_exit(lambda: close("withdrawn", 0))()
    runtime.spawn(close("background", 0.1))
    runtime.stop()
    assert sorted(seen) == ["background", "session"]
    assert work.cancelled.is_set()
    assert not runtime.thread.is_alive()
    assert runtime.loop.is_closed()
    gc.collect()  # an exception that nobody retrieved would be logged here
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Which runtime --------------------------------------------------------------------------------------------------------


def test_default_runtime_is_one_per_process() -> None:
    assert default_runtime() is default_runtime() is get_runtime() is get_runtime("thread")
    assert default_runtime().run(give(1)) == 1


def test_get_runtime_takes_a_runtime_and_refuses_the_rest(runtime: ThreadRuntime) -> None:
    assert get_runtime(runtime) is runtime
    with pytest.raises(UsageError, match='"thread"'):
        get_runtime("tread")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="running event loop"):
        get_runtime("notebook")
    with pytest.raises(UsageError, match="running event loop"):
        NotebookRuntime()
    assert issubclass(NotebookRuntime, Runtime)
