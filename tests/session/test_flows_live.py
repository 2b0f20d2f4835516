"""Flows between our session and our broker over real QUIC: recovery after losses, ends, limits, and doing without."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.broker.session_flows import SessionFlows
from mqttquic_lab.errors import DisconnectedError, StreamClosedError, StreamMappingWarning, UsageError
from mqttquic_lab.mqtt import FlowFlags, FlowHeader
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession, Backoff
from tests.helpers.lossy import Ills, LossyRelay
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.session import AsyncFeed, AsyncStream

KEPT: dict[str, Any] = {"session_expiry_interval": 60}
SOON = Backoff(first=0.02, maximum=0.1)


@asynccontextmanager
async def flowing(**settings: Any) -> AsyncIterator[tuple[AsyncSession, AsyncSession, BrokerServer]]:
    """Yield a session with flows, one without, and their broker."""
    options = settings.pop("options", {})
    config: dict[str, Any] = {"quic_port": 0, "tls": False, "tcp": False, **settings}
    async with BrokerServer(BrokerConfig(**config)) as broker:
        session = await hang(AsyncSession.open(broker, **{"streams": "flows", "reconnect": False, **KEPT, **options}))
        other = await hang(AsyncSession.open(broker, profile=config.get("profile", "generic")))
        try:
            yield session, other, broker
        finally:
            await hang(session.close())
            await hang(other.close())


async def pulled(session: AsyncSession) -> None:
    """Lose the connection."""
    session.connection.abort("pulled")
    await hang(session.wait_closed())


async def reconnected(session: AsyncSession, times: int) -> None:
    """Wait until it has connected again by itself."""
    async with asyncio.timeout(10):
        while session.stats.reconnects < times:
            await asyncio.sleep(0.002)


def payloads(feed: AsyncFeed) -> list[str]:
    return [bytes(payload).decode() for payload in feed.df["payload"]]


@pytest.mark.parametrize("deliveries", ["subscribing-stream", "per-topic", "per-publish"])
@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_publish_and_subscribe(version: str, deliveries: str) -> None:
    options: dict[str, Any] = {"version": version}
    if version == "3.1.1":
        options.update(session_expiry_interval=None, client_id="old")
    async with flowing(deliveries=deliveries, options=options) as (session, other, _):
        assert (session.mapping, session.handshake.alpn) == ("flows", "MQTT-next")
        assert "flows" in repr(session)
        flow = await session.open_stream()
        on_flow, on_control = await flow.subscribe("a/#", qos=2), await session.subscribe("b/#", qos=2)
        both = await session.subscribe("c/#", qos=1), await flow.subscribe("c/#", qos=1)
        for qos in (0, 1, 2):
            await other.publish("a/x", str(qos), qos=qos)
            await other.publish("b/x", str(qos), qos=qos)
            await session.publish(f"a/{qos}", "mine", qos=qos)
            await flow.publish(f"b/{qos}", "mine", qos=qos)
        await hang(on_flow.wait(6))
        await hang(on_control.wait(6))
        assert Counter(payloads(on_flow)) == Counter(payloads(on_control)) == Counter(["0", "1", "2", *3 * ["mine"]])
        assert set(on_flow.df["stream_id"]) == {flow.id}
        if deliveries != "subscribing-stream":
            assert all(number & 1 for number in on_control.df["stream_id"])
            assert {i.flow_id & 1 for i in session.streams if i.kind == "server" and i.flow_id is not None} == {1}
        await other.publish("c/x", "once each", qos=1)
        for feed in both:
            await hang(feed.wait(1))
        await hang(session.ping())
        assert [feed.total for feed in both] == [1, 1]
        assert {info.flow_id for info in session.streams if info.kind == "topic"} == {4, 6, 8}
        await session.unsubscribe(on_flow)
        await flow.unsubscribe(both[1])
        await other.publish("a/x", "late", qos=1)
        await session.publish("r", "kept", qos=1, retain=True)
        assert payloads(retained) == ["kept"] if await hang((retained := await flow.subscribe("r")).wait(1)) else False
        assert on_flow.total == 6
        assert session.errors == []
        assert session.stats.stray == 0
        await hang(flow.close())
        assert flow.flow is not None
        assert flow.flow.state == "gone"


@pytest.mark.parametrize("deliveries", ["subscribing-stream", "per-topic"])
@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_lost_and_nothing_comes_twice_over_six_lost_connections(seed: int, deliveries: str) -> None:
    """Publishers wait through losses of the connection; at QoS 2 everything arrives once, both ways."""
    draw = random.Random(seed)
    options = {"reconnect": SOON, "offline_queue": 0}
    async with flowing(deliveries=deliveries, options=options) as (session, other, _):
        flow = await session.open_stream()
        mine = {qos: await flow.subscribe(f"in/{qos}/+", qos=qos) for qos in (1, 2)}
        control = await session.subscribe("control/in/#", qos=2)
        theirs = {qos: await other.subscribe(f"out/{qos}/+", qos=qos) for qos in (1, 2)}
        expected: dict[str, list[str]] = {"in/1": [], "in/2": [], "out/1": [], "out/2": [], "control": []}
        async with asyncio.timeout(40):
            for loss in range(6):
                work = []
                for number in range(24):
                    text, topic = f"{loss}.{number}", number % 5
                    for qos in (1, 2):
                        work.append(session.publish(f"out/{qos}/{topic}", text, qos=qos, timeout=30))
                        expected[f"out/{qos}"].append(text)
                    work.append(other.publish(f"in/{1 + number % 2}/{topic}", text, qos=2, timeout=30))
                    expected[f"in/{1 + number % 2}"].append(text)
                    work.append(other.publish("control/in", text, qos=2, timeout=30))
                    expected["control"].append(text)
                together = asyncio.gather(*work)
                for _ in range(draw.randrange(1, 60)):
                    await asyncio.sleep(0)
                if draw.random() < 0.3:
                    await asyncio.sleep(0.003)
                session.connection.abort("pulled")
                await together
                await reconnected(session, loss + 1)
            for name, feed in [(f"in/{q}", mine[q]) for q in mine] + [(f"out/{q}", theirs[q]) for q in theirs]:
                await feed.wait(len(expected[name]))
                assert set(payloads(feed)) == set(expected[name])
            await control.wait(len(expected["control"]))
        assert sorted(payloads(mine[2])) == sorted(expected["in/2"])
        assert sorted(payloads(theirs[2])) == sorted(expected["out/2"])
        assert sorted(payloads(control)) == sorted(expected["control"])
        assert session.stats.reconnects == 6
        assert session.unacknowledged == 0
        assert any("go on with what both ends have kept" in event.detail for event in session.events)
        assert flow.flow is not None
        assert (flow.flow.id, flow.flow.recovered) == (2, True)


@pytest.mark.parametrize("seed", [4, 7])
async def test_take_overs_aborts_and_losses_in_the_midst_of_traffic(seed: int) -> None:
    """Eight topics on four streams: publishers that wait for a place wait through losses, too."""
    draw = random.Random(seed)
    options = {"reconnect": SOON, "offline_queue": 0, "topic_streams": 4}
    async with flowing(options=options) as (session, other, _):
        flows = [await session.open_stream() for _ in range(3)]
        feeds = [await flow.subscribe(f"in/{number}", qos=2) for number, flow in enumerate(flows)]
        out = await other.subscribe("out/#", qos=2)
        ways: list[AsyncSession | AsyncStream] = [session, *flows]
        sent: Counter[str] = Counter()

        async def publish(text: str, on: AsyncSession | AsyncStream) -> None:
            try:
                await on.publish(f"out/{draw.randrange(8)}", text, qos=2, timeout=30)
            except StreamClosedError:
                return  # its flow was aborted: it comes when that is recovered, or was there already
            sent[text] += 1

        async with asyncio.timeout(40):
            for turn in range(6):
                work = [publish(f"{turn}.{n}", draw.choice(ways)) for n in range(40)]
                work += [publish_in(other, n % 3, f"{turn}.{n}") for n in range(30)]
                together = asyncio.gather(*work)
                for _ in range(draw.randrange(60)):
                    await asyncio.sleep(0)
                flow = draw.choice(flows)
                what = draw.choice(["loss", "take-over", "abort", "reconnect"])
                if what == "abort":
                    await flow.abort()
                    await asyncio.sleep(0)
                if what in ("abort", "take-over"):
                    await flow.take_over()
                elif what == "loss":
                    session.connection.abort("pulled")
                else:
                    await session.reconnect()
                await together
            for feed in feeds:
                await feed.wait(60)
                assert sorted(payloads(feed)) == sorted(set(payloads(feed)))
            while any(flow.info.in_flight for flow in flows):
                await asyncio.sleep(0.005)
            await out.wait(sum(sent.values()))
        arrived = Counter(payloads(out))
        assert max(arrived.values()) == 1
        assert set(sent) <= set(arrived)
        assert session.unacknowledged == 0


async def publish_in(other: AsyncSession, number: int, text: str) -> None:
    await other.publish(f"in/{number}", text, qos=2, timeout=30)


async def test_messages_of_one_topic_stay_in_order_across_losses() -> None:
    async with flowing(options={"reconnect": SOON, "offline_queue": 0}) as (session, other, _):
        feed = await other.subscribe("t", qos=2)

        async def publish() -> None:
            for number in range(200):
                await session.publish("t", str(number), qos=2, timeout=30)

        work = asyncio.create_task(publish())
        for _ in range(5):
            await asyncio.sleep(0.03)
            if session.state == "connected":
                session.connection.abort("pulled")
        await asyncio.wait_for(work, 30)
        await hang(feed.wait(200))
        assert payloads(feed) == [str(number) for number in range(200)]


async def test_bulk_over_flows_goes_on_after_a_loss() -> None:
    async with flowing(options={"reconnect": SOON}) as (session, other, _):
        feed = await other.subscribe("t", qos=2)
        flow = await session.open_stream()
        bulk = asyncio.create_task(flow.publish_many((("t", str(n)) for n in range(3000)), qos=2))
        await hang(feed.wait(200))
        session.connection.abort("pulled")
        assert (await asyncio.wait_for(bulk, 30)).count == 3000
        await hang(feed.wait(3000))
        assert payloads(feed) == [str(n) for n in range(3000)]


async def test_publishing_through_a_lossy_path_with_few_streams() -> None:
    config = BrokerConfig(quic_port=0, tls=False, tcp=False)
    ills = Ills(drop=0.08, duplicate=0.05, reorder=0.05)
    async with BrokerServer(config) as broker:
        port = int(broker.urls["quic"].rpartition(":")[2])
        async with LossyRelay(("127.0.0.1", port), ills, seed=4) as relay:
            session = await hang(
                AsyncSession.open(
                    f"quic://127.0.0.1:{relay.address[1]}", ca_file=broker.ca_file, server_name="localhost",
                    streams="flows", topic_streams=3, **KEPT,
                )
            )  # fmt: skip
            other = await hang(AsyncSession.open(broker))
            feed = await other.subscribe("t/#", qos=2)
            async with asyncio.timeout(40):
                await asyncio.gather(*(session.publish(f"t/{n % 7}", str(n), qos=2, timeout=40) for n in range(70)))
                await feed.wait(70)
            assert sorted(map(int, payloads(feed))) == list(range(70))
            assert sum(info.state == "open" for info in session.streams if info.kind == "topic") <= 3
            for opened in (session, other):
                await hang(opened.close())


async def test_a_session_that_the_broker_forgot_begins_again() -> None:
    async with flowing(options={"session_expiry_interval": 0}) as (session, other, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t", qos=1)
        await session.publish("u", "1", qos=1)
        await pulled(session)
        assert not feed.is_active
        assert [info.state for info in session.flows] == ["kept"] * 3
        await hang(session.reconnect())
        assert session.handshake.session_present is False
        await other.publish("t", "x", qos=1)
        await hang(feed.wait(1))
        assert flow.flow is not None
        assert (flow.flow.state, flow.flow.recovered) == ("open", False)
        (told,) = [event.detail for event in session.events if event.what == "flow"]
        assert told.startswith("flows 2, 4 began again, clean: the broker had no session")
        assert broker.stats().subscriptions == 1


async def test_a_flow_that_the_broker_forgot_begins_again() -> None:
    async with flowing() as (session, other, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t", qos=1)
        (kept,) = (s for s in broker.sessions if s.flows is not None)
        await pulled(session)
        await broker.wait_for(lambda: len(broker.clients()) == 1)
        assert isinstance(kept.flows, SessionFlows)
        for change in kept.flows.table.clear():  # as if its state had expired
            kept.flows.settle(change)
        await hang(session.reconnect())
        assert session.handshake.session_present is True
        await session.publish("t", "y", qos=1)
        async with asyncio.timeout(10):
            while not any("begins again" in event.detail for event in session.events):
                await asyncio.sleep(0.01)
        await other.publish("t", "x", qos=1)
        await hang(feed.wait(1))
        assert flow.flow is not None
        assert (flow.state, flow.flow.id, flow.flow.recovered) == ("open", 2, False)
        assert await hang(flow.publish("t", "z", qos=2))
        assert session.state == "connected"


async def test_what_the_flags_do_not_keep_is_gone() -> None:
    async with flowing() as (session, other, _):
        brief = await session.open_stream(expire_interval=0)
        no_subs = await session.open_stream(persistent_subscriptions=False, expire_interval="1min")
        feeds = [await stream.subscribe("t", qos=1) for stream in (brief, no_subs)]
        await pulled(session)
        await hang(session.reconnect())
        assert [feed.is_active for feed in feeds] == [False, False]
        told = [event.detail for event in session.events if event.what == "flow" and "has ended" in event.detail]
        assert told == ["the feed on t has ended: its flow was not to keep that"] * 2
        assert brief.flow is not None
        assert no_subs.flow is not None
        assert (brief.state, brief.flow.state) == ("failed", "gone")
        assert (no_subs.state, no_subs.flow.state, no_subs.flow.expire_interval) == ("open", "open", 60)
        assert session.feeds == ()
        await hang(no_subs.publish("t", "x", qos=2))
        with pytest.raises(StreamClosedError, match="stream 4"):
            await brief.publish("t", "x")
        await other.publish("t", "x", qos=1)
        await hang(session.ping())
        assert [feed.total for feed in feeds] == [0, 0]


async def test_flow_state_expires_here_too() -> None:
    async with flowing() as (session, _, _):
        flow = await session.open_stream(expire_interval=1)
        feed = await flow.subscribe("t")
        await flow.abort()
        assert flow.flow is not None
        assert flow.flow.state == "kept"
        async with asyncio.timeout(10):
            while flow.flow.state == "kept":
                await asyncio.sleep(0.05)
        assert (flow.flow.state, feed.is_active, flow.feeds) == ("gone", False, ())
        with pytest.raises(UsageError, match="gone"):
            await flow.discard()


async def test_take_over_moves_everything_to_a_new_stream() -> None:
    async with flowing() as (session, other, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t", qos=2)
        old = flow.id
        work = [asyncio.create_task(flow.publish("u", str(n), qos=2)) for n in range(20)]
        await asyncio.sleep(0)
        assert await hang(flow.take_over()) is flow
        await hang(asyncio.gather(*work))
        assert flow.id > old
        await other.publish("t", "x", qos=2)
        await hang(feed.wait(1))
        assert set(feed.df["stream_id"]) == {flow.id}
        assert (await hang(session.open_stream(flow_id=2))) is flow
        assert [(i.flow_id, i.state) for i in session.streams if i.flow_id == 2] == [
            (2, "open"), (2, "closed"), (2, "closed"),
        ]  # fmt: skip
        await broker.wait_for(lambda: broker.clients()[0].streams == 1)
        await other.publish("t", "y", qos=2)
        await hang(feed.wait(2))
        assert session.errors == []


@pytest.mark.parametrize(
    ("code", "kept"), [(None, True), ("FLOW_PACKET_CANCELLED", True), ("FLOW_CANCELLED", False), (0xBF, False)]
)
async def test_an_abortive_end(code: str | int | None, kept: bool) -> None:
    async with flowing() as (session, other, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t", qos=1)
        publishing = asyncio.create_task(flow.publish("u", "x", qos=2))
        await asyncio.sleep(0)
        await flow.abort(code)
        with pytest.raises(StreamClosedError, match=r"flow 2 on stream 4: it was reset here with .*0xB"):
            await hang(publishing)
        assert flow.flow is not None
        assert (flow.flow.state, flow.state, feed.is_active) == ("kept" if kept else "gone", "failed", False)
        await broker.wait_for(lambda: all(client.streams == 0 for client in broker.clients()))
        assert broker.stats().subscriptions == kept
        with pytest.raises(StreamClosedError):
            await flow.abort()
        if kept:
            await other.publish("t", "waited", qos=1)
            await hang(flow.take_over())
            await hang(feed.wait(1))
            assert feed.is_active
            async with asyncio.timeout(10):
                while len(session.streams) < 3 or flow.info.in_flight:
                    await asyncio.sleep(0.005)
        else:
            with pytest.raises(UsageError, match="flow 2 is gone: there is nothing to take over"):
                await flow.take_over()
            assert len(session.streams) == 2
        assert session.state == "connected"


async def test_discarding_a_flow_at_the_broker() -> None:
    async with flowing() as (session, _, broker):
        live, aborted = await session.open_stream(), await session.open_stream()
        feeds = [await stream.subscribe("t") for stream in (live, aborted)]
        await aborted.abort()
        await broker.wait_for(lambda: broker.clients()[0].streams == 1)
        assert broker.stats().subscriptions == 2
        for flow in (live, aborted):
            await hang(flow.discard())
            assert flow.flow is not None
            assert flow.flow.state == "gone"
        assert broker.stats().subscriptions == 0
        assert [feed.is_active for feed in feeds] == [False, False]
        insisting = await session.open_stream(flow_id=2, abort_if_no_state=True)
        with pytest.raises(StreamClosedError, match="NO_FLOW_STATE"):
            await hang(insisting.publish("t", "x", qos=1))
        assert session.state == "connected"


async def test_opening_a_flow_again_clean_forgets_it() -> None:
    async with flowing() as (session, _, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t")
        assert await session.open_stream(flow_id=2, clean=True, err_tolerance=2) is flow
        assert not feed.is_active
        await hang(flow.publish("u", "x", qos=1))
        assert broker.stats().subscriptions == 0
        assert flow.flow is not None
        assert (flow.flow.recovered, flow.flow.flags) == (
            False,
            FlowFlags(clean=True, err_tolerance=2, persistent_qos=True, persistent_subscriptions=True),
        )


async def test_a_flow_of_an_earlier_program_is_recovered_by_its_id() -> None:
    async with flowing(options={"client_id": "prog"}) as (session, other, broker):
        flow = await session.open_stream()
        await flow.subscribe("t", qos=1)
        await pulled(session)
        await other.publish("t", "waited", qos=1)
        again = await hang(
            AsyncSession.open(broker, client_id="prog", clean_start=False, streams="flows", session_expiry_interval=60)
        )
        resumed = await again.open_stream(flow_id=2)
        async with asyncio.timeout(10):
            while not len(again.unrouted):
                await asyncio.sleep(0.005)
        assert resumed.flow is not None
        assert resumed.flow.recovered
        assert bytes(again.unrouted.message(0).payload) == b"waited"
        assert (await again.open_stream()).flow.id == 4  # type: ignore[union-attr]
        await hang(again.close())


async def test_a_flow_that_was_about_to_end_ends_after_the_reconnect() -> None:
    async with flowing() as (session, other, broker):
        idle, busy = await session.open_stream(), await session.open_stream()
        feed = await other.subscribe("t", qos=2)
        publishing = asyncio.create_task(busy.publish("t", "x", qos=2))
        await asyncio.sleep(0)
        closing = [asyncio.create_task(stream.close()) for stream in (idle, busy)]
        await asyncio.sleep(0)
        session.connection.abort("pulled")
        await asyncio.wait([*closing, publishing])
        await hang(session.wait_closed())
        await hang(session.reconnect())
        await hang(feed.wait(1))
        async with asyncio.timeout(10):
            while [flow.id for flow in session.flows] != [0]:
                await asyncio.sleep(0.005)
        await broker.wait_for(lambda: broker.clients()[-1].streams == broker.clients()[0].streams == 0)
        assert payloads(feed) == ["x"]
        assert not any("NO_FLOW_STATE" in event.detail for event in session.events)


async def test_unidirectional_flows_carry_qos_0() -> None:
    async with flowing() as (session, other, _):
        feed = await other.subscribe("t")
        flow = await session.open_stream(unidirectional=True)
        assert flow.id & 2
        await flow.publish("t", "x")
        await flow.publish_many(("t", str(n)) for n in range(50))
        await hang(feed.wait(51))
        with pytest.raises(UsageError, match=r"9\.1\.2"):
            await flow.publish("t", "x", qos=1)
        with pytest.raises(UsageError, match="unidirectional"):
            await flow.subscribe("t")
        await hang(flow.close())
        assert flow.flow is not None
        assert flow.flow.state == "gone"


async def test_as_many_flows_as_the_broker_takes_streams() -> None:
    async with flowing() as (session, _, _):
        flows = [await session.open_stream() for _ in range(127)]
        with pytest.raises(UsageError, match="allows 127 data streams at a time and 127 are open"):
            await session.open_stream()
        for flow in flows[:2]:
            await flow.publish("a", "1", qos=1)
        await hang(flows[0].close())
        assert (await hang(session.open_stream())).flow.id == 2 * 128  # type: ignore[union-attr]
        await pulled(session)
        await hang(session.reconnect())
        assert sum(info.state == "open" for info in session.flows) == 128
        await hang(flows[1].publish("a", "2", qos=1))


async def test_level_0_the_broker_closes_the_connection_and_says_why() -> None:
    async with flowing() as (session, _, _):
        flow = await session.open_stream(priority=1)
        await hang(flow.take_over())
        assert flow.info.priority == 1
        session.connection.open_stream().write(FlowHeader.control().encode())  # type: ignore[attr-defined]
        while session.state == "connected":
            publishing = asyncio.create_task(flow.publish("t", "x", qos=2))
            await asyncio.sleep(0)
            await asyncio.wait([publishing])
        with pytest.raises(DisconnectedError, match=r"PROTOCOL_L0 \(0xB4\).*MQoQ draft section 12\.1"):
            await hang(publishing)
        assert "0xB4" in str(await hang(session.wait_closed()))
        assert session.close_info is not None
        assert session.close_info.name.startswith("PROTOCOL_L0")


@pytest.mark.parametrize("sub", ["flow", "control"])
async def test_flows_at_our_broker_with_the_rules_of_mqttv5(sub: str) -> None:
    tickets = TicketStore()
    options: dict[str, Any] = {"profile": "mqttv5", "tickets": tickets, "early_data": True}
    async with flowing(profile="mqttv5", options=options) as (session, other, _):
        flow = await session.open_stream()
        assert flow.id & 2
        feed = await (flow if sub == "flow" else session).subscribe("t/#", qos=2)
        for number in range(3):
            await hang(asyncio.gather(*(session.publish(f"t/{n}", str(number), qos=2) for n in range(4))))
            await other.publish("t/x", str(number), qos=1)
            await hang(feed.wait(5 * (number + 1)))
            await pulled(session)
            await hang(session.reconnect())
            assert feed.is_active
        assert session.handshake.early_data == "accepted"
        await hang(flow.publish("t/y", "end", qos=1))
        await hang(feed.wait(16))
        assert Counter(payloads(feed)) == Counter({"0": 5, "1": 5, "2": 5, "end": 1})


# Without flows


async def test_a_broker_without_flows() -> None:
    config = BrokerConfig(quic_port=0, tls_port=0, tcp=False, profile="emqx")
    async with BrokerServer(config) as broker:
        with pytest.warns(StreamMappingWarning, match="the broker chose the protocol 'mqtt'"):
            session = await hang(AsyncSession.open(broker, streams="flows", profile="emqx", reconnect=False, **KEPT))
        assert (session.mapping, session.flows) == ("per-topic", ())
        assert "per-topic instead of flows" in repr(session)
        assert [event.what for event in session.events] == ["connected", "mapping"]
        assert [record.where for record in session.errors] == ["streams"]
        feed = await session.subscribe("t", qos=1)
        await session.publish("t", "x", qos=1)
        await hang(feed.wait(1))
        assert [(info.kind, info.flow_id) for info in session.streams] == [("control", None), ("topic", None)]
        stream = await session.open_stream()
        assert stream.flow is None
        with pytest.raises(UsageError, match=r"flow_id= is an option of flows, and this connection has none"):
            await session.open_stream(flow_id=2)
        for verb in (stream.take_over, stream.discard):
            with pytest.raises(UsageError, match="is no flow"):
                await verb()
        await hang(session.close())
        with pytest.raises(StreamMappingWarning):  # as an error: pytest makes one of every warning
            await hang(AsyncSession.open(broker, streams="flows"))
        await broker.wait_for(lambda: broker.clients() == [])


async def test_from_flows_to_tls_and_back() -> None:
    async with flowing(tls=True, tls_port=0) as (session, other, broker):
        flow = await session.open_stream()
        feed = await flow.subscribe("t", qos=2)
        theirs = await other.subscribe("u", qos=2)
        publishing = asyncio.create_task(session.publish("u", "1", qos=2))
        await asyncio.sleep(0)
        with pytest.warns(StreamMappingWarning, match="TLS carries one stream"):
            await hang(session.reconnect(broker.urls["mqtts"]))
        await hang(publishing)
        assert (session.mapping, session.flows, session.transport) == ("single", (), "tls")
        await other.publish("t", "x", qos=2)
        await hang(feed.wait(1))
        await hang(theirs.wait(1))
        with pytest.raises(DisconnectedError):
            await flow.publish("t", "x")
        await hang(session.reconnect(broker.url))
        assert session.mapping == "flows"
        await other.publish("t", "y", qos=2)
        await hang(feed.wait(2))
        assert (await session.open_stream()).flow is not None


async def test_options_of_flows_are_checked() -> None:
    async with flowing() as (session, other, _):
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"flow_id": 3}, "even ids"),
            ({"flow_id": 0}, "even ids"),
            ({"flow_id": True}, "even ids"),
            ({"clean": False}, "nothing to go on with"),
            ({"abort_if_no_state": True}, "give its flow_id"),
            ({"flow_id": 2, "clean": True, "abort_if_no_state": True}, "contradict"),
            ({"err_tolerance": 4}, "from 0 to 3"),
            ({"err_tolerance": "2"}, "from 0 to 3"),
            ({"persistent_qos": 1}, "True or False"),
            ({"expire_interval": "soon"}, "expire_interval"),
            ({"unidirectional": True, "persistent_subscriptions": True}, "nothing to subscribe"),
            ({"flowid": 2}, "did you mean 'flow_id'"),
        ]
        for options, message in wrong:
            with pytest.raises(UsageError, match=message):
                await session.open_stream(**options)
        with pytest.raises(UsageError, match='connect with streams="flows"'):
            await other.open_stream(expire_interval=3)
        flow = await session.open_stream()
        for code in ("NO_SUCH_CODE", 0x99):
            with pytest.raises(UsageError, match="FLOW_CANCELLED"):
                await flow.abort(code)
        uni = await session.open_stream(unidirectional=True)
        assert uni.flow is not None
        with pytest.raises(UsageError, match=r"9\.14"):
            await session.open_stream(flow_id=uni.flow.id, unidirectional=False)
        assert (await session.open_stream()).state == "open"
