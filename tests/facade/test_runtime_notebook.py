"""The notebook runtime: blocking verbs on a kernel's own loop, each test in a process that plays the kernel."""

from __future__ import annotations

import os
import textwrap

import pytest

from tests.helpers.processes import script

NOTEBOOK = """
import asyncio, os, signal, sys, threading
from types import SimpleNamespace
import mqttquic_lab.runtime as module
from mqttquic_lab.errors import BlockingCallError, OperationTimeoutError, UsageError
from mqttquic_lab.runtime import default_runtime, get_runtime

async def give(value, delay=0.0):
    await asyncio.sleep(delay)
    return value

async def wait():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled")
        raise

def kernel(cell):
    async def main():
        await asyncio.sleep(0)
        cell()
    asyncio.run(main())
"""


def notebook(code: str) -> str:
    return script(NOTEBOOK + textwrap.dedent(code))


def test_nest_asyncio_is_imported_only_when_asked_for() -> None:
    out = notebook(
        """
        def cell():
            default_runtime().run(give(1))
            print("nest_asyncio" in sys.modules or "nest_asyncio2" in sys.modules)
            get_runtime("notebook")
            print("nest_asyncio" in sys.modules or "nest_asyncio2" in sys.modules)
        kernel(cell)
        """
    )
    assert out == "False\nTrue\n"


@pytest.mark.parametrize("successor", [False, True])
def test_a_cell_blocks_on_the_kernels_own_loop_and_the_loop_goes_on(successor: bool) -> None:
    if successor:
        pytest.importorskip("nest_asyncio2")
    out = notebook(
        f"""
        if {successor}:
            module.sys = SimpleNamespace(version_info=(3, 14))
        def cell():
            runtime = get_runtime("notebook")
            assert runtime is get_runtime("notebook")
            beats = []
            async def beat():
                while True:
                    beats.append(1)
                    await asyncio.sleep(0.001)
            task = runtime.loop.create_task(beat())
            assert runtime.run(give("slept", 0.05), 5) == "slept"
            assert len(beats) > 3
            task.cancel()
            async def inner():
                return runtime.run(give("nested"), 5)  # a blocking verb inside a task of the same loop
            assert runtime.run(inner()) == "nested"
            assert default_runtime().run(give("thread"), 5) == "thread"  # the other kind goes on
            async def own():
                raise TimeoutError("own")
            try:
                runtime.run(own(), 5)
            except TimeoutError as error:
                print(type(error).__name__, error)
            try:
                runtime.run(wait(), 0.01)
            except OperationTimeoutError as error:
                print(error)
            async def at_the_deadline():
                import time
                time.sleep(0.05)
                return "kept"
            print(runtime.run(at_the_deadline(), 0.01))
            print("nest_asyncio2" in sys.modules)
        kernel(cell)
        """
    )
    assert out == (
        "TimeoutError own\ncancelled\nwait() took longer than its timeout of 0.01 s and was cancelled\n"
        f"kept\n{successor}\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process there")
def test_ctrl_c_on_the_notebook_runtime_hits_only_the_verb() -> None:
    """Not the session's own tasks: a KeyboardInterrupt inside its reader would end the session."""
    out = notebook(
        """
        def cell():
            runtime = get_runtime("notebook")
            async def reader():
                try:
                    while True:
                        await asyncio.sleep(0)  # busy: the signal is most likely to arrive here
                finally:
                    print("reader ended")
            task = runtime.loop.create_task(reader())
            before = signal.getsignal(signal.SIGINT)
            runtime.loop.call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            try:
                runtime.run(wait(), 30)
            except KeyboardInterrupt:
                print("interrupted; reader done:", task.done())
            assert signal.getsignal(signal.SIGINT) is before
            print(runtime.run(give("usable"), 5))
        kernel(cell)
        """
    )
    assert out == "cancelled\ninterrupted; reader done: False\nusable\nreader ended\n"


def test_other_threads_reach_the_notebook_runtime() -> None:
    out = notebook(
        """
        async def main():
            runtime = get_runtime("notebook")
            async def where():
                return threading.current_thread() is threading.main_thread()
            print("on the kernel's thread:", await asyncio.to_thread(runtime.run, where(), 5))
            loop = asyncio.get_running_loop()
            reached = asyncio.Event()
            def thread():
                runtime.post(print, "posted")
                runtime.spawn(give(1))
                runtime.post(reached.set)
            await asyncio.to_thread(thread)
            await asyncio.wait_for(reached.wait(), 5)
            print(await runtime.hop(give("here")))
        asyncio.run(main())
        runtime = None
        """
    )
    assert out == "on the kernel's thread: True\nposted\nhere\n"


def test_the_notebook_runtime_closes_at_the_end_and_not_after_its_loop() -> None:
    code = """
        async def goodbye():
            print("goodbye")
        loop = asyncio.new_event_loop()
        def cell():
            get_runtime("notebook").on_exit(goodbye)
        async def main():
            cell()
        loop.run_until_complete(main())
        """
    assert notebook(code) == "goodbye\n"
    assert notebook(code + "\n        loop.close()\n") == ""


def test_a_loop_that_cannot_be_patched_and_a_missing_package_name_the_way_out() -> None:
    out = notebook(
        """
        for prepare in ("pass", 'sys.modules["nest_asyncio"] = sys.modules["nest_asyncio2"] = None'):
            exec(prepare)
            try:
                module._make_reentrant(object())
            except UsageError as error:
                print(error)
        """
    )
    unpatchable, missing = out.splitlines()
    assert 'leave the default runtime="thread"' in unpatchable
    assert "cannot use this event loop" in unpatchable
    assert "pip install nest" in missing
