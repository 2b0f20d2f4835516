"""The runtime when a process ends, forks, or loads the module anew; each test in a process of its own."""

from __future__ import annotations

import os

import pytest

from tests.helpers.processes import script


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
        import mqttquic_lab.runtime as module
        from mqttquic_lab.runtime import default_runtime

        async def give(value):
            return value

        runtime = default_runtime()
        assert runtime.run(give(1)) == 1
        lock = module._default_lock
        lock.acquire()  # as if another thread, which the child does not have, held it at that moment
        child = os.fork()
        if child:
            lock.release()
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
