"""Headless Chromium for tests: bounded, offline, and with everything it complains about written down.

A browser test runs in a process of its own that is killed, browser and all, when its time is up: a wedged browser or
driver then fails one test and does not hang the run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import reprlib
import shutil
import signal
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Route

ARTIFACTS = Path(__file__).parent.parent.parent / "artifacts"
"""Screenshots; git-ignored."""

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip

LOCAL_SCHEMES = {"data", "blob", "file", "about"}


def chromium() -> str | None:
    """Return the path of the system's Chromium, None if there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None


@dataclass
class Browser:
    """One page, and what was wrong with it."""

    page: Page
    context: BrowserContext
    errors: list[str] = field(default_factory=list)
    """Console errors and uncaught exceptions."""
    elsewhere: list[str] = field(default_factory=list)
    """Requests that were not to 127.0.0.1; none of them left this machine."""

    def screenshot(self, name: str) -> Path:
        """Write ``artifacts/<name>.png``; for people to look at, never asserted on."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def assert_quiet(self) -> None:
        """Fail if the console showed an error or a request wanted to leave the machine."""
        assert self.errors == [], self.errors
        assert self.elsewhere == []


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 900, *, timeout: float = 15) -> Iterator[Browser]:
    """Open Chromium with an empty profile; `timeout` is that of each single wait, in seconds."""
    from playwright.sync_api import sync_playwright

    profile = tempfile.mkdtemp(prefix="chromium-")
    try:
        with sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                profile, executable_path=chromium(), headless=True, args=list(FLAGS),
                viewport={"width": width, "height": height}, timezone_id="UTC", locale="en-US",
            )  # fmt: skip
            context.set_default_timeout(timeout * 1000)
            opened = Browser(context.pages[0] if context.pages else context.new_page(), context)

            def watch(page: Page) -> None:
                page.on("console", note_console)
                page.on("pageerror", lambda error: opened.errors.append(f"uncaught: {error}"))

            def note_console(message: ConsoleMessage) -> None:
                if message.type == "error":
                    opened.errors.append(message.text)

            def keep_inside(route: Route) -> None:
                parts = urlsplit(route.request.url)
                if parts.scheme in LOCAL_SCHEMES or parts.hostname == "127.0.0.1":
                    route.continue_()
                else:
                    opened.elsewhere.append(route.request.url)
                    route.abort()

            watch(opened.page)
            context.on("page", watch)
            context.route("**/*", keep_inside)
            try:
                yield opened
            finally:
                context.close()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def browser_test(timeout: float = 50) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test function run in a process of its own, killed after `timeout` seconds.

    Skipped where there is no Chromium, unless MQTTQUIC_LAB_CI=1 says that there must be one. The function must stand
    at the top of its module, and its fixtures must be picklable.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def test(**fixtures: Any) -> None:
            if chromium() is None:
                if os.environ.get("MQTTQUIC_LAB_CI") == "1":
                    pytest.fail("chromium is not installed, and CI skips no test")
                pytest.skip("chromium is not installed")
            run_apart(function, fixtures, timeout)

        marked: Callable[..., None] = pytest.mark.timeout(timeout + 15)(pytest.mark.browser(test))
        return marked

    return decorate


def run_apart(function: Callable[..., None], arguments: dict[str, Any], timeout: float) -> None:
    """Call a top-level function of a module in a new process and session; fail with its traceback or on time-out."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(theirs, function.__module__, function.__name__, arguments))
    process.start()
    theirs.close()
    try:
        outcome = ours.recv() if ours.poll(timeout) else f"{function.__name__} did not end within {timeout:g} s"
    except EOFError:
        outcome = f"the process of {function.__name__} died"
    process.join(5)
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the driver and the browser, if they are still there
    process.join(5)
    if outcome:
        pytest.fail(outcome, pytrace=False)


def _child(results: Connection, module: str, name: str, arguments: dict[str, Any]) -> None:
    os.setsid()  # a group of its own, so that it can be killed as a whole
    try:
        function = getattr(importlib.import_module(module), name)
        function.__wrapped__(**arguments)
    except BaseException as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_globals["__name__"] == module]
        known = {**frames[-1].f_locals} if frames else {}  # no pytest here that would explain an assert
        values = "".join(f"  {key} = {reprlib.repr(value)}\n" for key, value in known.items())
        results.send(f"{traceback.format_exc()}\nwith\n{values}")
    else:
        results.send("")
