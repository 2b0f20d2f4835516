"""Data streams as a person has them."""

from __future__ import annotations

import pytest

import mqttquic_lab as mq


def test_a_stream_with_its_verbs(session: mq.Session) -> None:
    with session.open_stream() as stream:
        assert stream.state == "open"
        assert stream.session is session
        feed = stream.subscribe("on/a/stream", qos=2)
        again = session.subscribe("on/a/stream", stream=stream)
        assert stream.publish("on/a/stream", "x", qos=2).reason_code == 0
        summary = stream.publish_many((("on/a/stream", str(n)) for n in range(2500)), qos=1)
        assert summary.count == 2500
        feed.wait(2501)
        assert set(feed.df["stream_id"]) == {stream.id}
        assert stream.feeds == (feed, again)
        assert (stream.info.messages_in, stream.info.messages_out) == (2501, 2501)
        assert stream.is_idle
        assert f"<Stream {stream.id} of" in repr(stream)
        assert stream.unsubscribe(again) == ()  # the other feed still holds the filter
        assert stream.unsubscribe("on/a/stream") == (0,)
        listed = {info.id: info for info in session.streams}
        assert listed[0].kind == "control"
        assert listed[stream.id].kind == "explicit"
    assert stream.state == "closed"
    assert stream.close_reason is None
    with pytest.raises(mq.StreamClosedError, match=f"stream {stream.id}"):
        stream.publish("a")
    assert session.state == "connected"


async def test_its_awaitable_twin(broker: mq.Broker) -> None:
    session = await mq.aio.connect(broker)
    async with session, await session.aio.open_stream() as stream:
        feed = await stream.aio.subscribe("a/twin")
        await stream.aio.publish("a/twin", "1", qos=1)
        await stream.aio.publish_many([("a/twin", "2")])
        await feed.aio.wait(2)
        assert await stream.aio.unsubscribe(feed) == (0,)
        await stream.aio.close()


@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
def test_mappings(broker: mq.Broker, streams: str) -> None:
    with mq.connect(broker, streams=streams) as session:
        feed = session.subscribe("map/#", qos=1)
        for number in range(6):
            session.publish(f"map/{number % 3}", str(number), qos=1)
        feed.wait(6)
        used = [info for info in session.streams if info.kind != "control"]
        assert sorted(info.messages_out for info in used) == ([2, 2, 2] if streams == "per-topic" else [1] * 6)
        assert set(feed.df["stream_id"]) == {0}


def test_a_warning_points_at_the_caller(broker: mq.Broker) -> None:
    with pytest.warns(mq.BrokerProfileWarning) as caught, mq.connect(broker, profile="rocketmq") as session:
        session.open_stream()
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(mq.BrokerProfileWarning) as caught:
        mq.connect(broker, profile="rocketmq", streams="per-topic").close()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
def test_a_mapping_that_is_not_to_be_had_is_shown(broker: mq.Broker, streams: str) -> None:
    with mq.connect(broker.urls["mqtts"], ca_file=broker.ca_file, streams=streams) as session:
        assert f"over TLS, single instead of {streams}, 0 feeds" in repr(session)
        assert [error.where for error in session.errors] == ["streams"]


def test_streams_need_quic(broker: mq.Broker) -> None:
    with mq.connect(broker.urls["mqtts"], ca_file=broker.ca_file) as session:
        with pytest.raises(mq.UsageError, match="carries one stream only"):
            session.open_stream()
        assert [info.kind for info in session.streams] == ["control"]


@pytest.mark.parametrize(("profile", "streams"), [("generic", "single"), ("mqttv5", "per-topic"), ("mqttv5", "flows")])
def test_unsubscribing_by_filter_where_the_broker_opens_streams(profile: str, streams: str) -> None:
    """Its streams share the session's books: the filter is unsubscribed once, and that is no error."""
    with (
        mq.start_broker(quic_port=0, tls=False, tcp=False, profile="mqttv5") as broker,
        mq.connect(broker, profile=profile, streams=streams) as session,
    ):
        feed = session.subscribe(["un/#", "stays"], qos=1)
        for topic in ("un/1", "un/2"):
            session.publish(topic, "x", qos=1)
        feed.wait(2)
        assert "server" in {info.kind for info in session.streams}
        session.unsubscribe("un/#")
        assert (session.feeds, feed.filters) == ((feed,), ("stays",))
        session.unsubscribe("stays")
        assert session.feeds == ()
        with pytest.raises(mq.UsageError, match="no feed of this session"):
            session.unsubscribe("un/#")


def test_a_warning_of_a_reconnect_points_at_the_caller(broker: mq.Broker) -> None:
    with mq.connect(broker, streams="flows") as session:
        with pytest.warns(mq.StreamMappingWarning) as caught:
            session.reconnect(broker.urls["mqtts"])
        assert [warning.filename for warning in caught] == [__file__]
        assert "single instead of flows" in repr(session)


def test_the_card_counts_streams_and_flows(broker: mq.Broker) -> None:
    with mq.connect(broker, streams="flows") as session:
        assert "beside control" not in session._repr_html_()
        stream, other = session.open_stream(), session.open_stream()
        assert "<span>2 streams beside control</span><span>2 flows kept</span>" in session._repr_html_()
        stream.abort()
        assert "<span>1 stream beside control</span><span>2 flows kept</span>" in session._repr_html_()
        stream.take_over()
        stream.discard()
        assert "<span>1 stream beside control</span><span>1 flow kept</span>" in session._repr_html_()
        other.close()
    assert "flow kept" not in session._repr_html_()
