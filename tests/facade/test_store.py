"""``start_broker(store=...)`` as a person types it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab import cli

if TYPE_CHECKING:
    from pathlib import Path

TCP: dict[str, Any] = {"quic": False, "tls": False, "tcp_port": 0}


@pytest.mark.parametrize("process", [False, True])
def test_a_broker_that_remembers(tmp_path: Path, process: bool) -> None:
    store = tmp_path / "broker.db"
    with mq.start_broker(store=store, process=process, **TCP) as broker:
        with mq.connect(broker, client_id="reader", session_expiry_interval=100, clean_start=False) as reader:
            reader.subscribe("a", qos=2)
        with mq.connect(broker) as writer:
            writer.publish("a", "while you were out", qos=2)
            writer.publish("state", "on", qos=1, retain=True)
        with pytest.raises(mq.StoreError, match="in use by another broker"):
            mq.start_broker(store=str(store), process=process, **TCP)
    with mq.start_broker(store=store, process=process, **TCP) as broker:
        stats = broker.stats
        if not process:  # the child tells within 50 ms
            assert (stats.sessions, stats.stored_messages, stats.queued, stats.retained) == (1, 2, 1, 1)
        with mq.connect(broker, client_id="reader", session_expiry_interval=100, clean_start=False) as reader:
            reader.ping()  # it came before the answer, and before anybody could subscribe
            assert reader.unrouted.frame()["payload"].tolist() == [b"while you were out"]
            state = reader.subscribe("state")
            state.wait(1)
            assert state.df["retain"].tolist() == [True]


@pytest.mark.parametrize("process", [False, True])
def test_a_file_that_is_something_else(tmp_path: Path, process: bool) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello " * 100)
    with pytest.raises(mq.StoreError, match="is not the store of a broker: give another file"):
        mq.start_broker(store=notes, process=process, **TCP)
    assert notes.read_text() == "hello " * 100


def test_the_terminal_takes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class StopError(Exception):
        pass

    def start_broker(**options: Any) -> mq.Broker:
        given.update(options)
        raise StopError

    monkeypatch.setattr(mq, "start_broker", start_broker)
    with pytest.raises(StopError):
        cli.main(["broker", "--store", str(tmp_path / "b.db")])
    assert given["store"] == tmp_path / "b.db"
