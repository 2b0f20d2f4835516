"""Sessions as a person has them: blocking, from any thread, closing by themselves."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab.runtime import ThreadRuntime
from tests.facade.conftest import PATIENCE, ids, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.parametrize("scheme", ["quic", "mqtts", "mqtt"])
def test_the_readmes_first_example(broker: mq.Broker, scheme: str) -> None:
    ca_file = None if scheme == "mqtt" else broker.ca_file
    with mq.connect(broker.urls[scheme], ca_file=ca_file) as session:
        feed = session.subscribe("plant/+/temp", qos=1, decode="json", expand=True)
        result = session.publish("plant/1/temp", {"c": 21.5}, qos=1, timestamp=True)
        assert result.reason_code == 0
        assert feed.wait(1) == 1
        row = feed.df.iloc[0]
        assert (row["topic"], row["value"], row["value.c"], row["qos"]) == ("plant/1/temp", {"c": 21.5}, 21.5, 1)
        assert 0 <= row["latency"] < PATIENCE
        assert session.ping() > 0
        assert session.errors == []


def test_context_manager_closes(broker: mq.Broker) -> None:
    with mq.connect(broker, client_id="cm") as session:
        assert session.state == "connected"
        until(broker, lambda: "cm" in ids(broker))
    assert session.state == "closed"
    until(broker, lambda: "cm" not in ids(broker))
    with pytest.raises(mq.DisconnectedError, match="closed"):
        session.publish("a")
    session.close()  # again is no error


def test_what_a_block_raises_comes_through(broker: mq.Broker) -> None:
    with pytest.raises(ZeroDivisionError), mq.connect(broker) as session:
        1 / 0  # noqa: B018
    assert session.state == "closed"


def test_a_forgotten_session_closes_itself(broker: mq.Broker) -> None:
    session = mq.connect(broker, client_id="forgotten")
    session.subscribe("a")
    until(broker, lambda: "forgotten" in ids(broker))
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
    until(broker, lambda: "forgotten" not in ids(broker))


def test_a_feed_keeps_its_session(broker: mq.Broker) -> None:
    feed = mq.connect(broker, client_id="kept").subscribe("kept")
    gc.collect()
    until(broker, lambda: "kept" in ids(broker))
    feed.session.publish("kept", b"x")
    assert feed.wait(1) == 1
    del feed
    gc.collect()
    until(broker, lambda: "kept" not in ids(broker))


def test_an_awaitable_twin_keeps_its_session(broker: mq.Broker) -> None:
    aio = mq.connect(broker, client_id="twin").aio
    gc.collect()
    assert asyncio.run(aio.ping()) > 0
    asyncio.run(aio.close())


def test_finalizers_do_not_block(broker: mq.Broker) -> None:
    runtime = ThreadRuntime("stalled")
    session = mq.connect(broker, client_id="stalled", runtime=runtime)
    release = threading.Event()
    stalled = threading.Event()

    def stall() -> None:
        stalled.set()
        release.wait(PATIENCE)

    runtime.post(stall)
    assert stalled.wait(PATIENCE)
    del session
    gc.collect()  # returns although the loop stands still
    until(broker, lambda: "stalled" in ids(broker))
    release.set()
    until(broker, lambda: "stalled" not in ids(broker))
    runtime.stop()


def test_a_blocking_call_on_the_sessions_own_loop(session: mq.Session) -> None:
    async def misuse() -> None:
        session.publish("a", b"x")

    with pytest.raises(mq.BlockingCallError, match=r"publish\(\) blocks.*aio\.publish"):
        session._runtime.run(misuse())
    assert session.state == "connected"
    assert session.handshake.state == "connected"  # a look is possible even there

    async def look() -> str:
        return f"{session!r} {session.handshake.state} {session.stats}"

    assert "connected" in session._runtime.run(look())


def test_from_many_threads(session: mq.Session) -> None:
    feed = session.subscribe("threads", 1)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(20):
                session.publish("threads", f"{number}/{n}", qos=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    feed.wait(160)
    assert set(feed.df["value"]) == {f"{number}/{n}" for number in range(8) for n in range(20)}


def test_awaitable_from_another_loop(broker: mq.Broker) -> None:
    async def story() -> list[bytes]:
        async with await mq.aio.connect(broker) as session:
            feed = await session.aio.subscribe("aio", 1)
            await session.aio.publish("aio", b"1", 1)
            await asyncio.gather(*(session.aio.publish("aio", b"2", 2) for _ in range(2)))
            assert await feed.aio.wait(3) == 3
            seen = []
            async for message in feed.aio.messages(timeout=PATIENCE):
                seen.append(message.payload)
                if len(seen) == 3:
                    break
            await session.aio.unsubscribe(feed)
            assert [message async for message in feed.aio] == []
            assert await session.aio.ping() > 0
        assert session.state == "closed"
        return seen

    assert asyncio.run(story()) == [b"1", b"2", b"2"]


def test_publish_many_from_a_generator_on_ones_own_thread(session: mq.Session) -> None:
    feed = session.subscribe("many", 1, decode="raw")
    threads = set()

    def source() -> Any:
        for number in range(2500):
            threads.add(threading.current_thread())
            yield "many", b"%d" % number

    summary = session.publish_many(source(), qos=1)
    assert (summary.count, summary.refused, summary.reason_codes.total()) == (2500, 0, 2500)
    assert threads == {threading.current_thread()}
    feed.wait(2500)
    assert feed.df["payload"].tolist() == [b"%d" % number for number in range(2500)]
    assert session.publish_many([]).count == 0
    # A generator may use the session: it does not run on its loop.
    assert session.publish_many(("many", session.state) for _ in range(3)).count == 3


def test_publish_many_from_an_async_source(session: mq.Session) -> None:
    async def source() -> AsyncIterator[tuple[str, int]]:
        for number in range(5):
            yield "x", number

    assert session.publish_many(source()).count == 5

    async def story() -> int:
        summary = await session.aio.publish_many(source())
        return summary.count + (await session.aio.publish_many([("x", 1)])).count

    assert asyncio.run(story()) == 6


# Callbacks


def test_on_message_runs_off_the_loop_and_may_block(session: mq.Session) -> None:
    session.subscribe("ping")
    answers = session.subscribe("pong")
    threads = []

    def answer(message: mq.Message) -> None:
        if message.topic == "ping":
            threads.append(threading.current_thread())
            session.publish("pong", message.payload, qos=1)  # blocks, which a callback on the loop could not

    session.on_message = answer
    assert session.on_message is answer
    session.publish("ping", b"1", qos=1)
    answers.wait(1)
    assert threads[0] not in (threading.current_thread(), session._runtime.thread)
    session.on_message = None
    session.publish("ping", b"2", qos=1)
    session.ping()
    assert answers.total == 1
    assert session.callbacks_dropped == 0


def test_what_a_callback_raises_is_recorded(session: mq.Session) -> None:
    called = threading.Event()

    def fails(_: mq.Message) -> None:
        called.set()
        raise KeyError("my bug")

    session.on_message = fails
    session.subscribe("a")
    session.publish("a", b"x", qos=1)
    assert called.wait(PATIENCE)
    session.on_message = None
    _settle(session, lambda: bool(session.errors))
    assert (session.errors[0].where, session.errors[0].message) == ("on_message", "KeyError: 'my bug'")
    assert session.state == "connected"


def _settle(session: mq.Session, condition: Any) -> None:
    """Wait for something that another thread will do soon."""
    deadline = PATIENCE / 0.01
    while not condition() and deadline:
        threading.Event().wait(0.01)
        deadline -= 1
    assert condition()


def test_on_message_wants_a_function(session: mq.Session) -> None:
    with pytest.raises(mq.UsageError, match="on_message"):
        session.on_message = "print"  # type: ignore[assignment]
    assert session.on_message is None


# What it shows


def test_reprs(session: mq.Session, broker: mq.Broker) -> None:
    feed = session.subscribe("r/#")
    assert repr(session) == (f"<Session {session.client_id!r} at {broker.url}: connected, MQTT 5.0 over QUIC, 1 feed>")
    assert repr(feed) == "<Feed r/#: 0 messages, 0 received, 0 dropped, active>"
    assert "connected" in session._repr_html_()
    assert "r/#" in feed._repr_html_()
    session.close()
    assert "closed" in repr(session)
    assert "ended" in repr(feed)


def test_what_peers_choose_is_escaped(broker: mq.Broker) -> None:
    nasty = "<script>alert(1)</script>\x1b[31m"
    with mq.connect(broker, client_id=nasty) as session:
        session.subscribe("<b>/#")
        for html in (session._repr_html_(), session.feeds[0]._repr_html_(), broker._repr_html_()):
            assert "<script>" not in html
            assert "<b>/#" not in html
            assert "\x1b" not in html
        assert "\x1b" not in repr(session)


def test_the_same_handle_for_the_same_feed(session: mq.Session) -> None:
    feed = session.subscribe("a")
    assert list(session.feeds) == [feed]
    assert feed.session is session
    session.unsubscribe(feed)
    assert not session.feeds
    assert not feed.is_active


def test_stats_are_a_copy(session: mq.Session) -> None:
    before = session.stats
    session.publish("a", b"x", qos=1)
    assert before.messages_sent == 0
    assert session.stats.messages_sent == 1


def test_the_handshake_object(session: mq.Session) -> None:
    handshake = session.handshake
    assert handshake.transport == "quic"
    assert handshake.round_trips == 2
    assert handshake.report.alpn == "mqtt"
    assert "cipher_suite" in dir(handshake)
    with pytest.raises(AttributeError, match="cipher_suit'"):
        _ = handshake.cipher_suit
    assert handshake.to_dict()["mqtt_version"] == "5.0"
    assert repr(handshake) == handshake.text()
    assert "QUIC" in handshake.text()
    assert handshake._repr_html_().startswith("<")
    frame = handshake.frame()
    assert frame.set_index("fact").loc["transport", "value"] == "quic"
    assert "timings.connack" in set(frame["fact"])
    session.close()
    assert handshake.state == "connected"  # a report of that moment
    assert session.handshake.state == "closed"


def test_wait_closed(session: mq.Session, broker: mq.Broker) -> None:
    with pytest.raises(mq.OperationTimeoutError):
        session.wait_closed(timeout=0.02)
    with mq.connect(broker, client_id=session.client_id):
        reason = session.wait_closed(timeout=PATIENCE)
    assert isinstance(reason, mq.DisconnectedError)
    assert reason.reason_code == mq.ReasonCode.SESSION_TAKEN_OVER
    assert session.errors[0].where == "broker"


def test_two_runtimes(broker: mq.Broker) -> None:
    runtime = ThreadRuntime("private")
    with mq.connect(broker, runtime=runtime) as one, mq.connect(broker) as other:
        assert one._runtime is not other._runtime
        feed = one.subscribe("x")
        other.publish("x", b"1", qos=1)
        feed.wait(1)
    runtime.stop()
    with pytest.raises(mq.UsageError, match="runtime"):
        mq.connect(broker, runtime="kernel")


def test_a_session_whose_runtime_has_ended(broker: mq.Broker) -> None:
    runtime = ThreadRuntime("ending")
    session = mq.connect(broker, runtime=runtime, client_id="ending")
    runtime.stop()  # closes what lives there
    until(broker, lambda: "ending" not in ids(broker))
    assert session.state == "closed"
    session.close()
    assert session.handshake.state == "closed"
    with pytest.raises(mq.BlockingCallError, match="ended"):
        session.publish("a")
