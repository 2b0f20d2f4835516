"""Options of ``connect``: each bad one is refused before anything is sent."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import PacketDecoder, Will
from mqttquic_lab.session import AsyncSession, SessionOptions
from mqttquic_lab.session.target import resolve_target

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

BAD: list[tuple[dict[str, Any], str]] = [
    ({"version": "4.0"}, "5.0"),
    ({"keepalive": -1}, "keepalive"),
    ({"keepalive": 65_536}, "65535"),
    ({"keepalive": 1.5}, "whole number"),
    ({"keepalive": None}, "keepalive=0"),
    ({"keepalive": "soon"}, "duration"),
    ({"session_expiry_interval": 2**32}, "4294967295"),
    ({"receive_maximum": 0}, "receive_maximum"),
    ({"maximum_packet_size": 1}, "maximum_packet_size"),
    ({"topic_alias_maximum": True}, "topic_alias_maximum"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": "fast"}, "timeout"),
    ({"clean_start": "yes"}, "clean_start"),
    ({"verify": 0}, "verify"),
    ({"tuning": "fast"}, "realistic"),
    ({"alpn": "mqtt"}, "alpn"),
    ({"alpn": ()}, "alpn"),
    ({"client_id": 5}, "client_id"),
    ({"client_id": "a\0b"}, "MQTT-1.5.4-2"),
    ({"client_id": "x" * 65_536}, "65536"),
    ({"username": "\ud800"}, "UTF-8"),
    ({"password": 1234}, "password"),
    ({"password": b"x" * 65_536}, "65536"),
    ({"user_properties": "unit=C"}, "pairs"),
    ({"user_properties": [("a",)]}, "pairs"),
    ({"user_properties": [("a", 1)]}, "user_properties"),
    ({"properties": {"receive_maximum": 3}}, "receive_maximum="),
    ({"properties": {"authentication_method": "SCRAM-SHA-1"}}, "auth="),
    ({"will": "gone"}, "Will"),
    ({"will": Will("a/#", b"")}, "a/#"),
    ({"will": Will("a", b"", 3)}, "qos"),
    ({"will": Will("a", b"x" * 70_000)}, "65535"),
    ({"version": "3.1.1", "receive_maximum": 5}, "MQTT 5.0"),
    ({"version": "3.1.1", "user_properties": [("a", "b")]}, "MQTT 5.0"),
    ({"version": "3.1.1", "password": "x"}, "username"),
    ({"version": "3.1.1", "clean_start": False}, "client_id"),
    ({"version": "3.1.1", "will": Will("a", b"", properties={"will_delay_interval": 1})}, "5.0"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[str(options)[:60] for options, _ in BAD])
async def test_bad_option_is_refused_before_anything_is_sent(
    options: dict[str, Any], says: str, free_port: int
) -> None:
    with pytest.raises(UsageError, match=says):
        await AsyncSession.open(f"mqtt://127.0.0.1:{free_port}", **options)


async def test_misspelt_keyword_suggests_the_right_one() -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'keepalive'") as caught:
        await AsyncSession.open("mqtt://127.0.0.1", keepalife=30)
    assert caught.value.suggestion == "keepalive"
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("quick://host", "did you mean quic://"),
        ("http://host", "WebSocket"),
        ("mqtt://", "no host"),
        (42, "start_broker"),
        (None, "start_broker"),
    ],
)
async def test_bad_target(target: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await AsyncSession.open(target)


def test_secrets_stay_out_of_reprs() -> None:
    options = SessionOptions(username="me", password="hunter2", properties={"request_response_information": 1})
    assert "hunter2" not in repr(options)
    target = resolve_target("quic://me:hunter2@broker.example", options)
    assert "hunter2" not in repr(target)
    assert "hunter2" not in repr(options.connect_packet(target.username, target.password))


def test_url_supplies_user_and_password() -> None:
    options = SessionOptions()
    target = resolve_target("mqtt://me:p%40ss@broker.example", options)
    packet = options.connect_packet(target.username, target.password)
    assert (packet.username, packet.password) == ("me", b"p@ss")
    assert target.address.url == "mqtt://broker.example:1883"


def test_options_win_over_the_url() -> None:
    options = SessionOptions(username="you", password="other")
    target = resolve_target("mqtt://me:secret@broker.example", options)
    packet = options.connect_packet(target.username, target.password)
    assert (packet.username, packet.password) == ("you", b"other")


def test_a_user_given_alone_does_not_get_the_urls_password() -> None:
    options = SessionOptions(username="you")
    packet = options.connect_packet("me", b"secret")
    assert (packet.username, packet.password) == ("you", None)


def test_everything_arrives_in_connect() -> None:
    options = SessionOptions(
        client_id="c1",
        username="me",
        password="pw",
        keepalive="2min",  # type: ignore[arg-type]  # strings with units are accepted
        clean_start=False,
        session_expiry_interval=3600,
        receive_maximum=10,
        maximum_packet_size=4096,
        topic_alias_maximum=3,
        will=Will("gone", {"why": 1}, 1, True, {"will_delay_interval": 5}),  # type: ignore[arg-type]
        user_properties=[("a", "1"), ("a", "2")],
        properties={"request_problem_information": 1},
    )
    decoder = PacketDecoder(None, receiver="server")
    (packet,) = decoder.feed(options.connect_packet().encode())
    assert packet == options.connect_packet()
    will = options.connect_packet().will
    assert will is not None
    assert (will.payload, will.qos, will.retain) == (b'{"why":1}', 1, True)
    assert options.connect_packet().keepalive == 120
    assert options.connect_packet().properties == {
        "session_expiry_interval": 3600,
        "receive_maximum": 10,
        "maximum_packet_size": 4096,
        "topic_alias_maximum": 3,
        "user_property": [("a", "1"), ("a", "2")],
        "request_problem_information": 1,
    }


def test_timeout_takes_units() -> None:
    assert SessionOptions(timeout="250ms").timeout == 0.25
    assert SessionOptions(timeout=None).timeout is None


class OwnBroker:
    """What a target must have at least."""

    def __init__(self, url: str, ca_file: str) -> None:
        self.url = url
        self.ca_file = ca_file


def test_a_brokers_authority_is_trusted_for_it(identities: Identities, tmp_path: Any) -> None:
    ca_file = str(identities.authority.write_ca(tmp_path / "ca.pem"))
    target = resolve_target(OwnBroker("quic://127.0.0.1:1", ca_file), SessionOptions())
    assert target.trust.ca_file == ca_file
    assert resolve_target("quic://127.0.0.1:1", SessionOptions()).trust.ca_file is None


def test_a_ca_file_that_cannot_be_read(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        resolve_target("quic://127.0.0.1", SessionOptions(ca_file=tmp_path / "none.pem"))


def test_quic_takes_over_what_an_ssl_context_says(identities: Identities) -> None:
    context = ssl.create_default_context(cadata=identities.authority.pem.decode())
    target = resolve_target("quic://127.0.0.1", SessionOptions(ssl_context=context))
    assert target.ssl_context is None
    assert target.trust.verify
    assert isinstance(target.trust.ca_data, bytes)
    authorities = x509.load_pem_x509_certificates(target.trust.ca_data)
    assert identities.authority.certificate in authorities
    context.check_hostname = False
    with pytest.raises(UsageError, match="check_hostname"):
        resolve_target("quic://127.0.0.1", SessionOptions(ssl_context=context))
    context.verify_mode = ssl.CERT_NONE
    assert not resolve_target("quic://127.0.0.1", SessionOptions(ssl_context=context)).trust.verify


def test_tls_uses_an_ssl_context_as_it_is() -> None:
    context = ssl.create_default_context()
    assert resolve_target("mqtts://127.0.0.1", SessionOptions(ssl_context=context)).ssl_context is context


@pytest.mark.parametrize(
    "options", [{"ca_file": "ca.pem"}, {"verify": False}, {"ssl_context": "context"}], ids=["ca_file", "verify", "type"]
)
def test_an_ssl_context_beside_other_trust(options: dict[str, Any]) -> None:
    options = {"ssl_context": ssl.create_default_context(), **options}
    with pytest.raises(UsageError, match="ssl_context"):
        resolve_target("mqtts://127.0.0.1", SessionOptions(**options))
