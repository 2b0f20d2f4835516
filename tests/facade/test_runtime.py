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
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab import runtime as runtime_module
from mqttquic_lab.errors import BlockingCallError, DisconnectedError, OperationTimeoutError, UsageError
from mqttquic_lab.runtime import NotebookRuntime, Runtime, ThreadRuntime, default_runtime, get_runtime
from tests.helpers.processes import script

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


def test_work_that_others_cancel_is_not_a_timeout(runtime: ThreadRuntime) -> None:
    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
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


async def test_cancelling_the_await_cancels_the_work_before_it_returns(runtime: ThreadRuntime) -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runtime.hop(work.endless()), 0.05)
    assert work.cancelled.is_set()


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


def test_what_spawned_work_raises_is_logged(runtime: ThreadRuntime, caplog: pytest.LogCaptureFixture) -> None:
    runtime.spawn(fail(ZeroDivisionError("in the background")))
    for _ in range(3):
        runtime.run(give(1))
    assert "in the background" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# The end --------------------------------------------------------------------------------------------------------------


def test_stop_awaits_closers_and_background_work_then_cancels_the_rest() -> None:
    runtime = ThreadRuntime("test loop")
    seen: list[str] = []
    work = Work()

    async def close(name: str) -> None:
        await asyncio.sleep(0.01)
        seen.append(name)

    async def fail_to_close() -> None:
        raise ZeroDivisionError

    async def start() -> None:
        runtime.background = asyncio.create_task(work.endless())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    runtime.run(start())
    runtime.on_exit(lambda: close("session"))
    runtime.on_exit(fail_to_close)
    runtime.on_exit(lambda: close("withdrawn"))()
    runtime.spawn(close("background"))
    runtime.stop()
    assert sorted(seen) == ["background", "session"]
    assert work.cancelled.is_set()
    assert not runtime.thread.is_alive()
    assert runtime.loop.is_closed()


@pytest.mark.parametrize(
    "hang",
    ["await asyncio.sleep(3600)", "await asyncio.get_running_loop().create_future()", "time.sleep(3600)"],
)
def test_the_end_of_the_process_waits_two_seconds_at_most(hang: str) -> None:
    out = script(
        f"""
        import asyncio, time
        from mqttquic_lab.runtime import default_runtime

        async def goodbye():
            print("DISCONNECT sent", flush=True)

        async def hang():
            print("hanging", flush=True)
            {hang}

        runtime = default_runtime()
        runtime.on_exit(goodbye)
        runtime.on_exit(hang)
        """,
    )
    assert out == "DISCONNECT sent\nhanging\n"


def test_a_finalizer_may_spawn_at_the_very_end() -> None:
    """Whichever comes first, the finalizer's own exit hook or the runtime's: no hang, no warning, no traceback."""
    out = script(
        """
        import weakref
        class Handle: ...
        early = Handle()
        weakref.finalize(early, lambda: print(runtime.spawn(goodbye())))
        from mqttquic_lab.runtime import default_runtime
        async def goodbye():
            print("closed", flush=True)
        runtime = default_runtime()
        """
    )
    assert out in {"False\n", "True\nclosed\n", "closed\nTrue\n"}


# Fork and reload ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_old_handles_say_so_and_new_ones_work() -> None:
    out = script(
        """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forking with threads: that is the test
        from mqttquic_lab.errors import BlockingCallError
        from mqttquic_lab.runtime import default_runtime

        async def give(value):
            return value

        runtime = default_runtime()
        assert runtime.run(give(1)) == 1
        child = os.fork()
        if child == 0:
            for call in (lambda: runtime.run(give(1), 5), lambda: asyncio.run(runtime.hop(give(1)))):
                try:
                    call()
                except BlockingCallError as error:
                    print(error, flush=True)
            assert runtime.post(print) is False
            assert runtime.spawn(give(1)) is False
            runtime.stop()
            fresh = default_runtime()
            assert fresh is not runtime
            print("new:", fresh.run(give("works"), 5), flush=True)
            sys.exit(0)  # atexit runs: it must leave the parent's loop alone
        _, status = os.waitpid(child, 0)
        print("child ended with", os.waitstatus_to_exitcode(status), "parent", runtime.run(give("works on"), 5))
        """
    )
    lines = out.splitlines()
    assert len(lines) == 4
    assert all("forked" in line and "open a new session in the child" in line for line in lines[:2])
    assert lines[2:] == ["new: works", "child ended with 0 parent works on"]


def test_a_reloaded_module_finds_the_running_thread() -> None:
    out = script(
        """
        import importlib, sys, threading
        import mqttquic_lab.runtime as module

        async def give(value):
            return value

        def count():
            return sum(thread.name == "mqttquic-lab loop" for thread in threading.enumerate())

        first = module.default_runtime()
        assert first.run(give(1), 5) == 1
        goodbyes = []
        async def goodbye():
            print("goodbye, once", flush=True)
        importlib.reload(module)
        second = module.default_runtime()
        assert second is not first and second.thread is first.thread and isinstance(second, module.ThreadRuntime)
        second.on_exit(goodbye)
        del sys.modules["mqttquic_lab.runtime"]
        third = importlib.import_module("mqttquic_lab.runtime").default_runtime()
        assert third.thread is first.thread and count() == 1
        print([runtime.run(give(number), 5) for number, runtime in enumerate((first, second, third))])
        third.stop()
        assert not first.is_alive and count() == 0
        fourth = module.default_runtime()
        assert fourth.run(give(4), 5) == 4 and count() == 1
        """
    )
    assert out == "[0, 1, 2]\ngoodbye, once\n"


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
