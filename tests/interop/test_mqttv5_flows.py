"""Our session's flows (``streams="flows"``) at mqttv5's broker, which reads the draft in its own way."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import ConnectError, StreamClosedError
from mqttquic_lab.net.certificates import CertificateAuthority
from mqttquic_lab.session import AsyncSession
from tests.interop.quic_peers import mqttv5_broker
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mqttquic_lab.session import AsyncFeed

pytestmark = pytest.mark.matrix(peer="mqttv5", ours="client")

STRATEGIES = ["control-only", "per-topic", "per-publish"]


@asynccontextmanager
async def flowing(tmp_path: Path, strategy: str = "per-topic", **options: Any) -> AsyncIterator[AsyncSession]:
    """Yield a session with flows at a fresh broker of theirs."""
    authority = CertificateAuthority.create()
    identity = authority.issue(["localhost", "127.0.0.1"])
    ca_file = tmp_path / "ca.pem"
    authority.write_ca(ca_file)
    options = {"profile": "mqttv5", "streams": "flows", "reconnect": False, "ca_file": ca_file, **options}
    async with mqttv5_broker(identity, tmp_path, "--quic-delivery-strategy", strategy) as peer:
        session = await hang(AsyncSession.open(f"quic://localhost:{peer.port}", **options))
        try:
            yield session
        finally:
            await hang(session.close())


def payloads(feed: AsyncFeed) -> list[str]:
    return [bytes(payload).decode() for payload in feed.df["payload"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
@pytest.mark.matrix("flow headers", "QoS 0", "QoS 1", "QoS 2", "MQTT {version}")
async def test_every_message_arrives_once(strategy: str, version: str, tmp_path: Path) -> None:
    async with flowing(tmp_path, strategy, version=version) as session:
        assert (session.mapping, session.handshake.alpn) == ("flows", "MQTT-next")
        feed = await session.subscribe("t/#", qos=2)
        for qos in (0, 1, 2):
            await hang(asyncio.gather(*(session.publish(f"t/{n % 5}", f"{qos}-{n}", qos=qos) for n in range(15))))
        await session.publish_many(((f"t/{n % 20}", str(n)) for n in range(60)), qos=2)
        await feed.wait(105)
        expected = [f"{qos}-{n}" for qos in (0, 1, 2) for n in range(15)] + [str(n) for n in range(60)]
        assert sorted(payloads(feed)) == sorted(expected)
        listed = {(info.kind, (info.flow_id or 0) & 1) for info in session.streams}
        assert ("topic", 0) in listed
        assert (("server", 1) in listed) is (strategy != "control-only")
        assert session.errors == []
        assert session.stats.stray == 0
        await hang(session.unsubscribe("t/#"))
        await hang(session.publish("t/1", "too late", qos=1))
        assert (session.feeds, feed.total) == ((), 105)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.matrix("flow headers", "retained", note="subscribed on flows: deliveries come on flows of the broker's")
async def test_subscribing_on_flows(strategy: str, tmp_path: Path) -> None:
    async with flowing(tmp_path, strategy) as session:
        one, two = await session.open_stream(), await session.open_stream()
        await session.publish("a", "retained", qos=1, retain=True)
        on_one, on_two = await one.subscribe("a", qos=2), await two.subscribe("b/+", qos=1)
        on_control = await session.subscribe("b/1", qos=1)
        await session.publish("a", "1", qos=2)
        await session.publish("b/1", "2", qos=1)
        await one.publish("b/2", "3", qos=2)
        await on_one.wait(2)
        await on_two.wait(2)
        await on_control.wait(1)
        await hang(session.ping())
        assert sorted(payloads(on_one)) == ["1", "retained"]
        assert (sorted(payloads(on_two)), payloads(on_control)) == (["2", "3"], ["2"])
        assert all(number & 1 for number in on_two.df["stream_id"])
        await session.unsubscribe(on_one)
        await session.publish("a", "late", qos=1)
        await hang(session.ping())
        assert on_one.total == 2
        await hang(two.close())  # ends its subscriptions
        await session.publish("b/1", "4", qos=1)
        await on_control.wait(2)
        assert on_two.total == 2
        assert [record.message for record in session.errors] == []


@pytest.mark.matrix("flow headers", "session resumed", note="flows recovered after a lost connection")
async def test_flows_are_recovered(tmp_path: Path) -> None:
    async with flowing(tmp_path, session_expiry_interval=120) as session:
        kept, brief = await session.open_stream(), await session.open_stream(expire_interval=0)
        feed, gone = await kept.subscribe("a", qos=2), await brief.subscribe("b", qos=1)
        await session.publish("a", "1", qos=2)
        await feed.wait(1)
        for number in range(3):
            session.connection.abort("pulled")
            await hang(session.wait_closed())
            await hang(session.reconnect())
            assert session.handshake.session_present is True
            await session.publish("a", f"after {number}", qos=2)
            await feed.wait(2 + number)
        assert payloads(feed) == ["1", "after 0", "after 1", "after 2"]
        assert (feed.is_active, gone.is_active) == (True, False)
        assert kept.flow is not None
        assert (kept.flow.id, kept.flow.state, kept.flow.recovered) == (2, "open", True)
        assert not any("begins again" in event.detail for event in session.events)
        # A flow that it never had: the session goes on.
        stranger = await session.open_stream(flow_id=40, abort_if_no_state=True)
        async with asyncio.timeout(10):
            while stranger.state == "open":
                await asyncio.sleep(0.01)
        with pytest.raises(StreamClosedError, match="NO_FLOW_STATE"):
            await stranger.publish("a", "x")
        assert session.state == "connected"


@pytest.mark.matrix("flow headers", "session resumed")
async def test_messages_under_way_are_sent_again(tmp_path: Path) -> None:
    async with flowing(tmp_path, session_expiry_interval=120, offline_queue=0, reconnect=True) as session:
        feed = await session.subscribe("t/#", qos=2)
        for loss in range(3):
            work = [session.publish(f"t/{n % 4}", f"{loss}.{n}", qos=2, timeout=30) for n in range(40)]
            together = asyncio.gather(*work)
            for _ in range(10 + 15 * loss):
                await asyncio.sleep(0)
            session.connection.abort("pulled")
            async with asyncio.timeout(30):
                await together
                while session.stats.reconnects <= loss:
                    await asyncio.sleep(0.01)
        await feed.wait(120, timeout=20)
        assert sorted(payloads(feed)) == sorted(f"{loss}.{n}" for loss in range(3) for n in range(40))


@pytest.mark.matrix("flow headers", note="taken over, discarded")
async def test_ends_of_flows(tmp_path: Path) -> None:
    async with flowing(tmp_path) as session:
        flow = await session.open_stream()
        feed = await flow.subscribe("a", qos=1)
        await hang(flow.take_over())
        await session.publish("a", "1", qos=1)
        await feed.wait(1)
        await hang(flow.publish("b", "x", qos=2))
        await hang(flow.discard())
        assert flow.flow is not None
        assert (flow.flow.state, feed.is_active) == ("gone", False)
        await session.publish("a", "2", qos=1)
        other = await session.open_stream()
        await other.abort("FLOW_CANCELLED")
        await hang(session.ping())
        assert feed.total == 1
        assert session.state == "connected"


async def test_without_its_profile_the_error_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConnectError) as caught:
        async with flowing(tmp_path, profile="generic", timeout=5):
            pass
    assert any('profile="mqttv5"' in note for note in caught.value.__notes__)
