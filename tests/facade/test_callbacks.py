"""The user's callbacks: off the loop, in order, bounded, and never fatal."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from mqttquic_lab.callbacks import CallbackRunner
from mqttquic_lab.errors import UsageError
from mqttquic_lab.runtime import ThreadRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def runner(errors: list[BaseException]) -> Iterator[CallbackRunner]:
    runner = CallbackRunner(3, errors.append)
    yield runner
    assert runner.close(PATIENCE)


def test_callbacks_run_in_order_on_one_daemon_thread(runner: CallbackRunner) -> None:
    seen: list[int] = []
    threads: set[threading.Thread] = set()

    def callback(number: int) -> None:
        seen.append(number)
        threads.add(threading.current_thread())

    for number in range(3):
        assert runner.submit(callback, number)
    assert runner.close(PATIENCE)
    assert seen == [0, 1, 2]
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == "mqttquic-lab callbacks"


def test_a_slow_callback_costs_callbacks_that_are_counted_and_never_the_loop(runner: CallbackRunner) -> None:
    busy, release = threading.Event(), threading.Event()
    seen: list[int] = []

    def slow() -> None:
        busy.set()
        release.wait(PATIENCE)

    runner.submit(slow)
    assert busy.wait(PATIENCE)
    assert [runner.submit(seen.append, number) for number in range(5)] == [True, True, True, False, False]
    assert (runner.waiting, runner.dropped) == (3, 2)
    release.set()
    assert runner.close(PATIENCE)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), KeyboardInterrupt()])
def test_what_a_callback_raises_is_reported_and_the_next_one_runs(
    runner: CallbackRunner, errors: list[BaseException], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> NoReturn:
        raise error

    seen: list[str] = []
    runner.submit(fail)
    runner.submit(seen.append, "next")
    assert runner.close(PATIENCE)
    assert errors == [error]
    assert seen == ["next"]
    assert runner.failed == 1
    assert "a callback failed" in caplog.text


def test_a_failing_report_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    def report(_: BaseException) -> NoReturn:
        raise OSError("no room")

    def fail() -> NoReturn:
        raise ValueError

    runner = CallbackRunner(on_error=report)
    seen: list[str] = []
    runner.submit(fail)
    runner.submit(seen.append, "next")
    assert runner.close(PATIENCE)
    assert seen == ["next"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_a_callback_may_block_on_the_session(runner: CallbackRunner) -> None:
    runtime = ThreadRuntime("test loop")
    answers: list[int] = []

    async def publish() -> int:
        return 7

    async def message_arrives() -> None:
        runner.submit(lambda: answers.append(runtime.run(publish(), PATIENCE)))

    runtime.run(message_arrives())
    assert runner.close(PATIENCE)
    assert answers == [7]
    runtime.stop()


def test_after_close_callbacks_are_dropped_and_counted(runner: CallbackRunner) -> None:
    assert runner.close()
    assert not runner.submit(print)
    assert runner.dropped == 1
    assert runner.close(), "a second time"


def test_a_callback_may_close_its_own_runner(runner: CallbackRunner) -> None:
    closed: list[bool] = []
    runner.submit(lambda: closed.append(runner.close(PATIENCE)))
    assert runner.close(PATIENCE)
    assert closed == [True]


def test_close_does_not_wait_longer_than_it_was_told(runner: CallbackRunner) -> None:
    release = threading.Event()
    runner.submit(release.wait, PATIENCE)
    assert not runner.close(0.01)
    release.set()
    assert runner.close(PATIENCE)


def test_no_thread_before_the_first_callback() -> None:
    before = threading.active_count()
    runner = CallbackRunner()
    assert threading.active_count() == before
    assert runner.close()


def test_a_queue_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="maxsize"):
        CallbackRunner(0)
