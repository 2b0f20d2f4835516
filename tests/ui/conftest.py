from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ui.comms import FakeComm

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.widgets.view import View


@pytest.fixture(autouse=True)
def fake_comms(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel: every widget gets a comm that records."""
    monkeypatch.setattr("comm.create_comm", FakeComm)


@pytest.fixture
def comm_of() -> Callable[[View], FakeComm]:
    def find(view: View) -> FakeComm:
        found = view.widget.comm
        assert isinstance(found, FakeComm)
        return found

    return find
