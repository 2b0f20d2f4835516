"""Fallback and reconnect as a person has them: blocking, awaitable, with handles that go on."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import TYPE_CHECKING

import pytest

import mqttquic_lab as mq
from tests.facade.conftest import PATIENCE, ids, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def blackhole() -> Iterator[str]:
    """URL of a UDP port that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"quic://127.0.0.1:{sock.getsockname()[1]}"


def test_the_readmes_fallback(broker: mq.Broker, blackhole: str) -> None:
    options = {"fallback": broker.urls["mqtts"], "quic_timeout": 0.2, "ca_file": broker.ca_file}
    with mq.connect(blackhole, **options) as session:
        assert session.transport == "tls"
        assert "over TLS instead of QUIC" in repr(session)
        assert "no answer" in (session.handshake.fallback_reason or "")
        assert "QUIC was asked for, TLS over TCP is in use" in session.handshake._repr_html_()
        assert session.errors[0].where == "fallback"
        assert [event.what for event in session.events] == ["fallback", "connected"]
        assert session.connected_at is not None
        assert session.close_reason is None


def test_the_fallback_awaited(broker: mq.Broker, blackhole: str) -> None:
    async def go() -> str:
        options = {"fallback": broker.urls["mqtts"], "quic_timeout": 0.2, "ca_file": broker.ca_file}
        async with await mq.aio.connect(blackhole, **options) as session:
            return session.transport

    assert asyncio.run(go()) == "tls"


def test_never_plain_tcp(broker: mq.Broker) -> None:
    with pytest.raises(mq.UsageError, match="in the clear"):
        mq.connect(broker.url, fallback=broker.urls["mqtt"])
    with pytest.raises(mq.UsageError, match="one address"):
        mq.probe(broker, fallback=True)


def test_a_session_changes_its_transport(broker: mq.Broker) -> None:
    with mq.connect(broker, client_id="mover", session_expiry_interval=60) as session:
        feed = session.subscribe("moved", qos=1)
        session.reconnect(broker.urls["mqtts"])
        assert (session.transport, session.handshake.session_present) == ("tls", True)
        session.publish("moved", b"x", qos=1)
        assert feed.wait(1) == 1
        asyncio.run(session.aio.reconnect(broker))
        assert session.transport == "quic"
        session.publish("moved", b"y", qos=1)
        assert feed.wait(2) == 2
        assert session.unacknowledged == 0
        assert session.stats.reconnects == 2


def test_a_closed_session_opens_again_whole(broker: mq.Broker) -> None:
    session = mq.connect(broker, client_id="again", session_expiry_interval=60)
    feed = session.subscribe("again", qos=1)
    heard: list[bytes] = []
    came = threading.Event()

    def listen(message: mq.Message) -> None:
        heard.append(message.payload)
        came.set()

    session.on_message = listen
    session.close()
    assert not feed.is_active
    with mq.connect(broker) as other:
        other.publish("again", b"missed", qos=1)
    session.reconnect()
    assert feed.wait(1) == 1
    assert came.wait(PATIENCE)
    assert heard == [b"missed"]
    assert session.on_message is listen
    # It closes itself again when nobody keeps it.
    del session, feed, listen
    gc.collect()
    until(broker, lambda: "again" not in ids(broker))


def test_a_lost_session_says_why_and_goes_on(broker: mq.Broker) -> None:
    with mq.connect(broker, client_id="lost", reconnect=False) as session:
        session._runtime.run(_cut(session))
        assert isinstance(session.wait_closed(timeout=PATIENCE), mq.DisconnectedError)
        assert isinstance(session.close_reason, mq.DisconnectedError)
        session.reconnect(timeout="5s")
        assert session.state == "connected"
        assert [event.what for event in session.events] == ["connected", "lost", "renewed"]


async def _cut(session: mq.Session) -> None:
    session._core.connection.abort("cable pulled")


def test_messages_published_in_a_gap_are_sent_after_it(broker: mq.Broker) -> None:
    with mq.connect(broker, reconnect=mq.Backoff(first=0.5, jitter=0)) as session, mq.connect(broker) as other:
        feed = other.subscribe("a", 1)
        session._runtime.run(_cut(session))
        result = session.publish("a", "later", qos=1)
        assert (result.queued, session.queued, session.state) == (True, 1, "reconnecting")
        session.flush(timeout=PATIENCE)
        feed.wait(1, timeout=PATIENCE)
        assert session.state == "connected"


def test_requests_are_answered_by_functions_that_may_block(broker: mq.Broker) -> None:
    with mq.connect(broker) as session, mq.connect(broker) as helper:
        helper.respond("half", lambda message: int(message.value) / 2)

        def asks_somebody_else(message: mq.Message) -> float:
            return float(session.request("half", message.value).text) / 2

        feed = helper.respond("quarter", asks_somebody_else)
        assert session.request("quarter", 10).text == "2.5"
        assert feed.total == 1
