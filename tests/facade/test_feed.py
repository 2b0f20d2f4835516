"""Feeds as a person has them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import mqttquic_lab as mq
from tests.facade.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def feed(session: mq.Session) -> Iterator[mq.Feed]:
    feed = session.subscribe("f/#", 1)
    yield feed
    feed.unsubscribe()


def send(feed: mq.Feed, *payloads: str) -> None:
    feed.session.publish_many([("f/x", payload) for payload in payloads], qos=1)
    feed.session.ping()  # what the broker sent before its answer has arrived


def test_wait_times_out_and_says_how_many_came(feed: mq.Feed) -> None:
    send(feed, "1", "2")
    with pytest.raises(mq.OperationTimeoutError, match=r"after 0\.05 s 2 of 3 messages on f/# had come") as caught:
        feed.wait(3, timeout="50ms")
    assert isinstance(caught.value, TimeoutError)
    assert feed.wait(2) == 2
    with pytest.raises(mq.UsageError):
        feed.wait(1, timeout=-1)
    with pytest.raises(mq.UsageError):
        feed.wait(-1)


def test_a_timeout_of_zero_only_looks(feed: mq.Feed) -> None:
    with pytest.raises(mq.OperationTimeoutError, match="0 of 1"):
        feed.wait(1, timeout=0)
    send(feed, "1", "2")
    assert feed.wait(2, timeout=0) == 2
    seen = feed.messages(timeout=0)
    assert [next(seen).value, next(seen).value] == ["1", "2"]
    with pytest.raises(mq.OperationTimeoutError):
        next(seen)


def test_wait_wakes_up(feed: mq.Feed) -> None:
    timer = threading.Timer(0.05, send, (feed, "1"))
    timer.start()
    assert feed.wait(1, timeout=PATIENCE) == 1
    timer.join()


def test_df_is_ones_own(feed: mq.Feed) -> None:
    send(feed, "1", "2", "3")
    frame = feed.df
    frame.loc[frame.index[0], "value"] = "changed"
    frame["payload"] = b""
    frame.pop("retain")
    frame["more"] = 1
    again = feed.df
    assert again["value"].tolist() == ["1", "2", "3"]
    assert again["payload"].tolist() == [b"1", b"2", b"3"]
    assert "more" not in again
    send(feed, "4")
    assert again["value"].tolist() == ["1", "2", "3"]
    assert feed.df["value"].tolist() == ["1", "2", "3", "4"]


def test_tail_len_and_clear(feed: mq.Feed) -> None:
    send(feed, *map(str, range(20)))
    assert len(feed) == feed.count == 20
    assert feed.tail(3)["value"].tolist() == ["17", "18", "19"]
    assert len(feed.tail()) == 10
    feed.clear()
    assert (len(feed), feed.total, feed.count, feed.dropped) == (0, 20, 0, 0)
    assert feed.df.empty
    assert feed
    send(feed, "next")
    assert feed.df["value"].tolist() == ["next"]


def test_bounds_drop_oldest_and_count(session: mq.Session) -> None:
    feed = session.subscribe("f/#", 1, max_messages=100)
    send(feed, *map(str, range(250)))
    assert (len(feed), feed.total, feed.dropped) == (100, 250, 150)
    assert feed.df["value"].tolist() == [str(n) for n in range(150, 250)]
    assert next(iter(feed)).value == "150"
    assert feed.missed == 150


def test_iteration(feed: mq.Feed) -> None:
    send(feed, "1", "2", "3")
    seen = []
    for message in feed:
        seen.append(message.value)
        if len(seen) == 2:
            break
    assert seen == ["1", "2"]
    with pytest.raises(mq.OperationTimeoutError, match="no message on f/#"):
        seen.extend(message.value for message in feed.messages(timeout=0.05))
    send(feed, "4")
    message = next(feed.messages(timeout=PATIENCE))
    assert (message.value, message.topic, message.qos, message.stream_id) == ("4", "f/x", 1, 0)


def test_iteration_ends_with_the_feed(session: mq.Session) -> None:
    feed = session.subscribe("f/#", 1)
    send(feed, "1", "2")
    timer = threading.Timer(0.05, feed.unsubscribe)
    timer.start()
    assert [message.value for message in feed] == ["1", "2"]
    timer.join()


def test_iteration_tells_of_a_lost_connection(broker: mq.Broker, session: mq.Session) -> None:
    feed = session.subscribe("f/#", 1)
    with mq.connect(broker, client_id=session.client_id):
        with pytest.raises(mq.DisconnectedError, match="taken over"):
            next(iter(feed))
        with pytest.raises(mq.DisconnectedError, match="taken over"):
            feed.wait(1)


def test_expand_and_decode(session: mq.Session) -> None:
    feed = session.subscribe("f/#", 1, decode=lambda payload: len(payload))
    send(feed, "abc")
    assert feed.df["value"].tolist() == [3]
    with pytest.raises(mq.UsageError, match="json"):
        session.subscribe("f/#", decode="xml")  # type: ignore[arg-type]


def test_granted(session: mq.Session) -> None:
    feed = session.subscribe(["g/1", ("g/2", 2)], 1)
    assert list(feed.filters) == ["g/1", "g/2"]
    assert feed.granted == {"g/1": 1, "g/2": 2}
    session.unsubscribe("g/1")
    assert list(feed.filters) == ["g/2"]
    session.unsubscribe(feed)
    assert not feed.is_active


def test_views_open_late(session: mq.Session) -> None:
    feed = session.subscribe("f/#", 1)
    live, dashboard = feed.live(), session.dashboard()
    try:
        assert type(live).__name__ == "LiveView"
        assert type(dashboard).__name__ == "Dashboard"
    finally:
        live.close()
        dashboard.close()
