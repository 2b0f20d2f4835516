"""The options that only QUIC has: refused when they cannot be honoured, honoured when they are not refused."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import BrokerProfileWarning, DisconnectedError, UsageError
from mqttquic_lab.quic.tickets import TicketStore, process_tickets
from mqttquic_lab.session import AsyncSession, SessionOptions
from mqttquic_lab.session.close_codes import with_name
from mqttquic_lab.session.connecting import idle_timeout_of
from mqttquic_lab.session.quic_options import MAX_EARLY, MAX_EARLY_BYTES, ONLY_QUIC, EarlyMessage
from mqttquic_lab.session.target import resolve_target
from tests.session.scripted import hang

if TYPE_CHECKING:
    from pathlib import Path

    from tests.session.conftest import Open

EARLY: dict[str, Any] = {"early_data": "publish"}

GIVEN: dict[str, Any] = {
    "tickets": True,
    "early_data": True,
    "quic_version": "v2",
    "cipher_suites": ["AES_128_GCM_SHA256"],
    "groups": "X25519",
    "congestion": "cubic",
    "idle_timeout": 5,
    "quic_keepalive": False,
    "datagrams": True,
}


@pytest.mark.parametrize("url", ["mqtt://localhost", "mqtts://localhost"])
@pytest.mark.parametrize("name", GIVEN)
def test_options_of_quic_are_refused_elsewhere(url: str, name: str) -> None:
    options = SessionOptions(**{name: GIVEN[name]})
    with pytest.raises(UsageError, match=rf"{name}.* of QUIC, and {url}:\d+ is not.*quic:// URL"):
        resolve_target(url, options)
    resolve_target("quic://localhost", options)


def test_every_option_of_quic_is_covered() -> None:
    assert set(GIVEN) | {"publish_early"} == set(ONLY_QUIC)
    defaults = SessionOptions()
    assert {name: getattr(defaults, name) for name in ONLY_QUIC} == ONLY_QUIC


def test_several_are_named_together() -> None:
    with pytest.raises(UsageError, match="early_data, congestion are options of QUIC"):
        resolve_target("mqtt://localhost", SessionOptions(congestion="cubic", early_data=True, tickets=None))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"early_data": "yes"}, 'must be True .*"publish"'),
        ({"early_data": True, "tickets": False}, "needs session tickets"),
        ({"tickets": 5}, "takes True, a path or an mq.TicketStore, not int"),
        ({"tickets": ""}, "takes True, a path"),
        ({"idle_timeout": 0}, "more than 0 seconds"),
        ({"idle_timeout": "soon"}, "idle_timeout"),
        ({"quic_keepalive": 1}, "must be True or False"),
        ({"quic_version": "v7"}, "known are v1, v2"),
        ({"cipher_suites": ["RC4"]}, "known are AES_128_GCM_SHA256"),
        ({"groups": ["MLKEM"]}, "known are X25519"),
        ({"congestion": "bbr"}, "known are newreno, cubic"),
        ({"publish_early": [("a", "b")]}, 'needs early_data="publish"'),
        ({"publish_early": [("a", "b")], "early_data": True}, "must be said aloud"),
        ({**EARLY, "publish_early": "a"}, "takes a list"),
        ({**EARLY, "publish_early": ["a"]}, "is not .topic, payload."),
        ({**EARLY, "publish_early": [("a",)]}, "is not .topic, payload."),
        ({**EARLY, "publish_early": [("a/#", "b")]}, "#"),
        ({**EARLY, "publish_early": [("a", "b", 3)]}, "qos=3"),
        ({**EARLY, "publish_early": [("a", "b", True)]}, "qos=True"),
        ({**EARLY, "publish_early": [("a", "b", 0, 1)]}, "retain=1"),
        ({**EARLY, "publish_early": [("a", object())]}, "payload"),
        ({**EARLY, "publish_early": [("a", "b")], "fallback": True}, "might be published twice"),
        ({**EARLY, "publish_early": [("a", "b", 2)], "clean_start": False, "client_id": "x"}, "clean_start=True"),
        ({**EARLY, "publish_early": [("a", "b")] * (MAX_EARLY + 1)}, "takes 100 messages at most"),
        ({**EARLY, "publish_early": [("a", "b", 1)] * 11}, "10 of them at QoS 1 or 2; these are 11 and 11"),
        ({**EARLY, "publish_early": [("a", bytes(MAX_EARLY_BYTES))]}, "may go early"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SessionOptions(**options)


def test_what_options_become(tmp_path: Path) -> None:
    assert SessionOptions().tickets is None
    assert SessionOptions(tickets=True).tickets is process_tickets()
    assert SessionOptions(early_data=True).tickets is process_tickets()
    store = TicketStore()
    assert SessionOptions(tickets=store).tickets is store
    assert repr(SessionOptions(tickets=tmp_path / "t").tickets) == f"<TicketStore of 0 in '{tmp_path}/t'>"
    early = SessionOptions(**EARLY, publish_early=[("a", {"b": 1}), ["c", 5, 1, True]]).publish_early
    assert early == (EarlyMessage("a", b'{"b":1}', 0, False), EarlyMessage("c", b"5", 1, True))
    assert SessionOptions(**EARLY, publish_early=early).publish_early == early
    assert "secret" not in repr(SessionOptions(**EARLY, publish_early=[("a", "secret")]))


def test_a_ticket_file_that_others_can_read_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "tickets"
    path.touch(0o644)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        SessionOptions(tickets=str(path))


def test_the_idle_timeout_follows_the_keepalive_unless_it_is_given() -> None:
    assert idle_timeout_of(SessionOptions()) == 180
    assert idle_timeout_of(SessionOptions(keepalive=5)) == 60
    assert idle_timeout_of(SessionOptions(idle_timeout="1500ms")) == 1.5


async def test_the_knobs_reach_the_connection(connect: Open) -> None:
    session = await connect(
        quic_version="v2",
        cipher_suites=["TLS_CHACHA20_POLY1305_SHA256"],
        groups=["secp384r1"],
        congestion="cubic",
        idle_timeout="25s",
    )
    report = session.handshake
    assert report.quic_version == "QUIC v2"
    assert report.cipher_suite == "TLS_CHACHA20_POLY1305_SHA256"
    assert report.key_exchange_group == "SECP384R1"
    assert report.congestion_control == "cubic"
    assert report.idle_timeout == 25
    assert report.local_transport_parameters["max_idle_timeout"] == 25_000
    feed = await session.subscribe("a", 2)
    await session.publish("a", "b", 2)
    await hang(feed.wait(1))
    assert await session.update_keys() == 1
    assert await session.update_keys(timeout="5s") == 0
    await session.publish("a", "c", 1)
    assert (session.handshake.key_phase, session.handshake.key_updates) == (0, 2)


@pytest.mark.parametrize("scheme", ["mqtts", "mqtt"])
async def test_verbs_of_quic_elsewhere(connect: Open, scheme: str) -> None:
    session = await connect(scheme)
    with pytest.raises(UsageError, match="only QUIC updates its keys"):
        await session.update_keys()
    assert session.close_info is None
    assert session.handshake.key_phase is None


async def test_idle_timeout_against_keepalive() -> None:
    """Without PINGs of QUIC and with a longer MQTT keep-alive, the idle timeout ends the session."""
    async with BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False)) as broker:
        options = {"idle_timeout": 0.5, "keepalive": 60}
        session = await hang(AsyncSession.open(broker, quic_keepalive=False, reconnect=False, **options))
        reason = await hang(session.wait_closed())
        assert "QUIC idle timeout" in str(reason)
        assert session.handshake.closed_with == "nothing was heard from the peer for the QUIC idle timeout"
        # With them it lives on.
        session = await hang(AsyncSession.open(broker, **options))
        await asyncio.sleep(0.8)
        await hang(session.ping())
        assert session.state == "connected"
        await session.close()
        with pytest.raises(DisconnectedError):
            await session.update_keys()


async def test_close_codes(connect: Open, broker: BrokerServer) -> None:
    session = await connect(reconnect=False)
    [client] = broker._clients
    await client.connection.close(1, "the control stream broke")
    await hang(session.wait_closed())
    info = session.close_info
    assert info is not None
    assert (info.error_code, info.application, info.by_peer) == (1, True, True)
    assert info.code_text == "application code 0x1 (control stream down, by EMQX's numbers)"
    assert info.sentence().endswith(": the control stream broke")
    assert "application code 0x1: the control stream broke" in (session.handshake.closed_with or "")
    named = with_name(info, "mqtt", {1: "what the profile says"})
    assert named is not None
    assert named.name == "what the profile says"
    flows = with_name(info, "MQTT-next", {})
    assert flows is not None
    assert "unknown connection code" in flows.code_text


async def test_a_broker_that_is_known_to_take_no_early_data(connect: Open) -> None:
    with pytest.warns(BrokerProfileWarning, match="accepts no 0-RTT data"):
        await connect(early_data=True, tickets=TicketStore(), profile="rocketmq")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await connect(early_data=True, tickets=TicketStore(), profile="emqx")
        await connect(early_data=True, tickets=TicketStore())


async def test_a_broker_that_is_known_to_take_no_datagrams(connect: Open) -> None:
    with pytest.warns(BrokerProfileWarning, match="EMQX takes no DATAGRAM frames") as caught:
        session = await connect(datagrams=True, profile="emqx")
    assert len(caught) == 1
    assert [error.where for error in session.errors] == ["datagrams"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await connect(datagrams=True, profile="mqttv5")
        await connect(datagrams=True)
        with pytest.raises(BrokerProfileWarning):
            await connect(datagrams=True, profile="emqx", client_id="made an error")


async def test_retry_is_shown(connect: Open) -> None:
    async with BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False, retry=True)) as broker:
        session = await hang(AsyncSession.open(broker))
        report = session.handshake
        assert report.retry
        assert report.round_trips == 3
        assert [flight.content[0] for flight in report.flights][:3] == ["ClientHello", "Retry", "ClientHello"]
        await session.close()
