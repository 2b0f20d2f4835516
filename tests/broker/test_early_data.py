"""The broker's side of early data: what it marks, counts and lets in, and the settings of its QUIC listener."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerProcess, BrokerServer
from mqttquic_lab.broker.early import EarlyPublish, marked
from mqttquic_lab.broker.quic_options import ONLY_QUIC, listener_options
from mqttquic_lab.errors import HandshakeError, UsageError
from mqttquic_lab.mqtt import PingReq, Publish
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.mqtt.properties import EARLY_DATA
from mqttquic_lab.quic import knobs
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from tests.session.scripted import hang

if TYPE_CHECKING:
    from mqttquic_lab.quic.server import QuicListener

FREE: dict[str, Any] = {"quic_port": 0, "tls_port": 0, "tcp_port": 0}


def listener(broker: BrokerServer) -> QuicListener:
    return cast("QuicListener", broker._listeners[0])


async def visit(broker: BrokerServer, store: TicketStore, **options: Any) -> AsyncSession:
    """Open a session with early data, until it has a ticket for the next one."""
    session = await hang(AsyncSession.open(broker, tickets=store, **{"early_data": True, **options}))
    while not session.handshake.tickets:
        await session.ping()
    return session


# --- marks


def test_only_messages_are_marked() -> None:
    ping, message = (
        PingReq(),
        Publish("a", b"x", 1, False, False, 7, {"user_property": [("k", "v")], "content_type": "t"}),
    )
    first, second = marked([ping, message])
    assert first is ping
    assert type(second) is EarlyPublish
    assert (second.topic, second.payload, second.qos, second.packet_id) == ("a", b"x", 1, 7)
    assert second.properties == {"user_property": [("k", "v"), EARLY_DATA], "content_type": "t"}
    assert message.properties["user_property"] == [("k", "v")]
    [again] = marked([Publish("a", b"", properties={"user_property": (EARLY_DATA, ("k", "v"))})])
    assert cast("Publish", again).properties["user_property"] == [("k", "v"), EARLY_DATA]


@pytest.mark.parametrize("publisher", ["5.0", "3.1.1"])
async def test_subscribers_are_told(publisher: str) -> None:
    async with BrokerServer(BrokerConfig(**FREE, early_data=True)) as broker:
        ears = [
            await hang(AsyncSession.open(broker.urls[scheme], version=version, ca_file=broker.ca_file))
            for scheme in ("quic", "mqtt")
            for version in ("5.0", "3.1.1")
        ]
        feeds = [await ear.subscribe("#", 2) for ear in ears]
        seen: list[bool] = []
        ears[0].on_message = lambda message: seen.append(message.early_data)
        store = TicketStore()
        await visit(broker, store)
        early = {"early_data": "publish", "publish_early": [("a", "b", qos) for qos in (0, 1, 2)]}
        session = await visit(broker, store, version=publisher, **early)
        assert session.handshake.early_data == "accepted"
        await session.publish(
            "a", "later", 1, properties={"user_property": [("x", "y")]} if publisher == "5.0" else None
        )
        for ear, feed in zip(ears, feeds, strict=True):
            await hang(feed.wait(4))
            # MQTT 3.1.1 has no properties: nothing can be told there.
            told = ear.version == "5.0"
            assert feed.df["early_data"].tolist() == [told, told, told, False]
            assert feed.df["payload"].tolist() == [b"b", b"b", b"b", b"later"]
        assert seen == [True, True, True, False]
        [info] = [client for client in broker.clients() if client.early_data == "accepted"]
        assert (info.resumed, info.early_messages, info.messages_in) == (True, 3, 4)
        assert broker.stats().early_messages == 3
        for each in (*ears, session):
            await each.close()


async def test_retained_and_queued_messages_keep_their_mark() -> None:
    async with BrokerServer(BrokerConfig(**FREE, early_data=True)) as broker:
        away = await hang(
            AsyncSession.open(broker.urls["mqtt"], client_id="away", session_expiry_interval=60, reconnect=False)
        )
        feed = await away.subscribe("queued", 1)
        away.connection.abort("gone")
        await hang(away.wait_closed())
        store = TicketStore()
        await (await visit(broker, store)).close()
        early = [("queued", "q", 1), ("retained", "r", 1, True)]
        await visit(broker, store, early_data="publish", publish_early=early)
        await hang(away.reconnect())
        await hang(feed.wait(1))
        assert feed.df["early_data"].tolist() == [True]
        kept = await away.subscribe("retained")
        await hang(kept.wait(1))
        assert kept.df["early_data"].tolist() == [True]


# --- counts


async def test_everything_is_counted() -> None:
    async with BrokerServer(BrokerConfig(**FREE, early_data=True)) as broker:
        store = TicketStore()
        for _ in range(3):
            await (await visit(broker, store)).close()
        stats = broker.stats()
        assert (stats.tickets_issued, stats.resumptions) == (3, 2)
        assert (stats.early_data_accepted, stats.early_data_rejected) == (2, 0)
        listener(broker).admission.policy = "off"
        await (await visit(broker, store)).close()
        stats = broker.stats()
        assert (stats.resumptions, stats.early_data_accepted, stats.early_data_rejected) == (3, 2, 1)
        assert (stats.replays_refused, stats.stale_refused) == (0, 0)
        assert (stats.retries, stats.version_negotiations, stats.amplification_limited) == (0, 0, 0)


async def test_used_tickets_are_counted_as_replays() -> None:
    async with BrokerServer(BrokerConfig(**FREE, early_data=True)) as broker:
        store = TicketStore()
        await (await visit(broker, store)).close()
        [key] = store
        ticket = store.take(key)
        assert ticket is not None
        for expected in ("accepted", "rejected"):
            store.clear()
            store.put(ticket)
            session = await visit(broker, store)
            assert session.handshake.early_data == expected
            await session.close()
        assert broker.stats().replays_refused == 1


async def test_a_stale_hello_resumes_without_early_data() -> None:
    from dataclasses import replace

    async with BrokerServer(BrokerConfig(**FREE, early_data=True, early_data_window="2s")) as broker:
        store = TicketStore()
        await (await visit(broker, store)).close()
        [key] = store
        ticket = store.take(key)
        assert ticket is not None
        # As if the ClientHello had been made an hour from now, or an hour ago and held back.
        store.put(replace(ticket, session=replace(ticket.session, age_add=ticket.session.age_add + 3_600_000)))
        session = await visit(broker, store)
        assert (session.handshake.early_data, session.handshake.resumed) == ("rejected", True)
        assert broker.stats().stale_refused == 1
        await session.close()


async def test_version_negotiation_retry_and_amplification_are_counted() -> None:
    names = tuple(f"number-{n:04}.of-a-rather-long-name.example" for n in range(150))
    config = BrokerConfig(**FREE, quic_version="v2", server_names=names)
    async with BrokerServer(config) as broker:
        session = await hang(AsyncSession.open(broker))
        assert session.handshake.version_negotiated
        stats = broker.stats()
        assert (stats.version_negotiations, stats.amplification_limited, stats.retries) == (1, 1, 0)
        await session.close()
    async with BrokerServer(BrokerConfig(**FREE, retry=True, server_names=names)) as broker:
        session = await hang(AsyncSession.open(broker))
        stats = broker.stats()
        assert (stats.version_negotiations, stats.amplification_limited, stats.retries) == (0, 0, 1)
        await session.close()


# --- settings


async def test_early_data_is_off_by_default() -> None:
    async with BrokerServer(BrokerConfig(**FREE)) as broker:
        store = TicketStore()
        for _ in range(2):
            session = await visit(broker, store)
            assert session.handshake.early_data == "not offered"
            await session.close()
        assert session.handshake.resumed
        assert broker.stats().early_data_accepted == 0


@pytest.mark.parametrize("profile", ["generic", "emqx", "rocketmq", "mqttv5"])
def test_settings_win_over_the_profile(profile: str) -> None:
    known = profile_named(profile)
    silent = listener_options(BrokerConfig(profile=cast("Any", profile)), known)
    assert silent["retry"] is known.retry
    assert silent["early_data"] is known.early_data
    assert silent.get("idle_timeout") == known.idle_timeout
    config = BrokerConfig(profile=cast("Any", profile), retry=False, early_data="unprotected", idle_timeout="7s")
    loud = listener_options(config, known)
    assert (loud["retry"], loud["early_data"], loud["idle_timeout"]) == (False, "unprotected", 7.0)


async def test_the_listener_gets_the_settings() -> None:
    config = BrokerConfig(
        **FREE,
        quic_version="v1",
        cipher_suites=["CHACHA20_POLY1305_SHA256"],
        groups=["SECP384R1"],
        congestion="cubic",
        idle_timeout=33,
        early_data=True,
    )
    async with BrokerServer(config) as broker:
        session = await hang(AsyncSession.open(broker, quic_version=("v2", "v1")))
        report = session.handshake
        assert report.quic_version == "QUIC v1"
        assert report.version_negotiated
        assert report.cipher_suite == "TLS_CHACHA20_POLY1305_SHA256"
        assert report.key_exchange_group == "SECP384R1"
        assert report.idle_timeout == 33
        [theirs] = listener(broker).connections
        assert theirs.report.congestion_control == "cubic"
        await session.close()
        with pytest.raises(HandshakeError, match="cipher_suites and groups"):
            await hang(AsyncSession.open(broker, groups="X25519"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": "yes"}, "retry='yes'"),
        ({"early_data": "always"}, "early_data='always'"),
        ({"early_data": "unprotected", "host": "0.0.0.0"}, "only for a broker on the loopback"),
        ({"early_data_window": -1}, "early_data_window"),
        ({"idle_timeout": 0}, "more than 0 seconds"),
        ({"quic_version": "v1-to-v2"}, "known are v1, v2$"),
        ({"cipher_suites": []}, "cipher_suites is empty"),
        ({"groups": ["X"]}, "known are X25519"),
        ({"congestion": "bbr"}, "known are newreno, cubic"),
        ({"quic": False, "retry": True}, "retry: for the QUIC listener, and quic=False leaves it out"),
        ({"quic": False, "congestion": "cubic", "early_data": True}, "early_data, congestion: for the QUIC listener"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BrokerConfig(**options)


def test_settings_of_quic_have_their_defaults() -> None:
    config = BrokerConfig(quic=False)
    assert {name: getattr(config, name) for name in ONLY_QUIC} == ONLY_QUIC


async def test_in_a_process_of_its_own() -> None:
    config = BrokerConfig(**FREE, early_data=True, quic_version=("v1", "v2"), congestion="cubic", groups="X25519")
    async with BrokerProcess(config) as broker:
        store = TicketStore()
        for expected in ("not offered", "accepted"):
            session = await visit(cast("BrokerServer", broker), store)
            assert session.handshake.early_data == expected
            await session.close()
        await broker.wait_for(lambda: broker.stats().early_data_accepted == 1)
        json.dumps(broker.stats().to_dict())


def test_a_registered_controller_cannot_go_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(knobs.registered, "mine", object)
    config = BrokerConfig(congestion="mine")
    with pytest.raises(UsageError, match="another one does not have it"):
        BrokerProcess(config)
