"""The main job, as its user does it: the quick-start in JupyterLab in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import ARTIFACTS, browser, browser_test
from tests.helpers.jupyter import jupyter_lab
from tests.helpers.peers import require

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"
ERROR_OUTPUTS = (
    ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'],"
    ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
)
KERNEL_READY = """async () => {
  const context = window.jupyterapp.shell.currentWidget.sessionContext;
  await context.ready;
  await context.session.kernel.info;
}"""


@pytest.fixture
def mosquitto_pub() -> str:
    """Say that the quick-start finds mosquitto_pub, or skip."""
    return require("mosquitto_pub")


@browser_test(timeout=150)
def test_quickstart_in_jupyterlab(tmp_path: Path, mosquitto_pub: str) -> None:
    lessons = tmp_path / "notebooks"
    shutil.copytree(NOTEBOOKS, lessons)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with jupyter_lab(lessons, scratch) as url, browser(1400, 5200, timeout=60) as opened:
        page = opened.page
        page.goto(f"{url}/lab/tree/01_quickstart.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate(KERNEL_READY)  # else "run all" can come before the kernel does
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")

        card = page.locator(".mql-card", has_text="round trips to CONNACK").first
        card.wait_for()
        for fact in ("QUIC v1", "TLS 1.3", "ALPN mqtt", "verified", "round trips to CONNACK"):
            assert fact in card.inner_text(), fact

        live = page.locator(".mqlab").first
        sees_rows_of(live, "lab/paho")
        sees_rows_of(live, "lab/mosquitto_pub")
        sees_rows_of(live, "lab/machine/cpu")

        publishes_from_the_dashboard(page)
        pauses_and_goes_on(live)

        page.wait_for_function("() => !document.querySelector('.jp-InputPrompt')?.textContent.includes('*')")
        errors = [output.inner_text() for output in page.locator(ERROR_OUTPUTS).all()]
        opened.screenshot("quickstart-jupyterlab")
        for name, part in (("card", card), ("live", live), ("dashboard", page.locator(".mqlab").last)):
            part.screenshot(path=ARTIFACTS / f"quickstart-{name}.png")
        assert errors == []
        opened.assert_quiet()


def sees_rows_of(view: Locator, topic: str) -> None:
    """Filter the live view and see nothing but rows of this topic."""
    view.locator('[data-r="filter"]').fill(topic)
    row = view.locator('[data-r="rows"] .row:visible')
    row.filter(has_text=topic).first.wait_for()
    view.page.wait_for_function(
        """([view, topic]) => [...view.querySelectorAll('[data-r="rows"] .row')]
          .every((row) => row.hidden || row.textContent.includes(topic))""",
        arg=[view.element_handle(), topic],
    )
    view.locator('[data-r="filter"]').fill("")


def publishes_from_the_dashboard(page: Page) -> None:
    """Publish by hand and see the message come back over QUIC."""
    dashboard = page.locator(".mqlab").filter(has=page.locator('[data-r="form"]:visible')).last
    dashboard.locator('[data-r="ptopic"]').fill("lab/by-hand")
    dashboard.locator('[data-r="ppayload"]').fill('{"pressed": 1}')
    dashboard.locator('[data-r="publish"]').click()
    sees_rows_of(dashboard, "lab/by-hand")


def pauses_and_goes_on(view: Locator) -> None:
    """Pause the picture: its rows stand still while the feed goes on, and catch up afterwards."""
    button = view.locator('[data-r="pause"]')
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    before = view.locator('[data-r="rows"]').inner_text()
    view.page.wait_for_timeout(1000)  # what must not happen cannot be awaited
    assert view.locator('[data-r="rows"]').inner_text() == before
    button.click()
    view.page.wait_for_function(
        "([view, before]) => view.querySelector('[data-r=rows]').innerText !== before",
        arg=[view.element_handle(), before],
    )
