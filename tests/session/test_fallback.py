"""QUIC that does not get through, and the way to the broker that is taken instead."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import (
    CertificateError,
    ConnectError,
    ConnectRefusedError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.net.listen import listen
from mqttquic_lab.session import AsyncSession, SessionOptions, probe
from mqttquic_lab.session.target import resolve_target
from mqttquic_lab.views.text import handshake_text
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.helpers.certs import Identities


@pytest.fixture
def blackhole() -> Iterator[str]:
    """URL of a UDP port where datagrams arrive and are never answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"quic://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
async def tls_broker() -> AsyncIterator[BrokerServer]:
    """A broker whose QUIC listener is off."""
    async with BrokerServer(BrokerConfig(quic=False, tls_port=0, tcp=False)) as server:
        yield server


async def test_a_blocked_udp_path(blackhole: str, tls_broker: BrokerServer) -> None:
    opening = AsyncSession.open(
        blackhole, fallback=tls_broker.urls["mqtts"], quic_timeout="200ms", ca_file=tls_broker.ca_file
    )
    async with await hang(opening) as session:
        assert (session.transport, session.url) == ("tls", tls_broker.urls["mqtts"])
        report = session.handshake
        assert report.transport == "tls"
        assert "no answer" in (report.fallback_reason or "")
        assert "within 0.2 s" in (report.fallback_reason or "")
        assert "QUIC was asked for, TLS over TCP is in use" in handshake_text(report)
        assert [error.where for error in session.errors] == ["fallback"]
        assert [(event.what, event.transport) for event in session.events] == [
            ("fallback", "tls"),
            ("connected", "tls"),
        ]
        assert "instead of QUIC" in repr(session)
        assert session.options.timeout == 10.0  # the bound of one attempt is not what the session keeps
        assert (await session.publish("a", b"x", 1)).reason_code in (0, 0x10)


async def test_a_closed_port_is_not_waited_for(tls_broker: BrokerServer, free_port: int) -> None:
    opening = AsyncSession.open(
        f"quic://127.0.0.1:{free_port}",
        fallback=tls_broker.urls["mqtts"],
        timeout=None,
        quic_timeout=None,  # nothing but the refusal itself ends the attempt
        ca_file=tls_broker.ca_file,
    )
    async with await hang(opening) as session:
        assert "nothing listens" in (session.handshake.fallback_reason or "")


async def test_a_server_of_another_protocol(identities: Identities, tls_broker: BrokerServer, tmp_path: Any) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls_broker.ca_file.read_bytes() + identities.authority.write_ca(tmp_path / "ca.pem").read_bytes())
    listener = await listen(
        "quic", "127.0.0.1", 0, identity=identities.good, on_connection=lambda _: None, alpn=("h3",)
    )
    try:
        url = f"quic://127.0.0.1:{listener.port}"
        async with await hang(AsyncSession.open(url, fallback=tls_broker.urls["mqtts"], ca_file=both)) as session:
            assert "speaks none of the application protocols" in (session.handshake.fallback_reason or "")
    finally:
        await listener.close()


async def test_quic_that_works_is_used(broker: BrokerServer) -> None:
    async with await hang(AsyncSession.open(broker, fallback=True)) as session:
        assert (session.transport, session.handshake.fallback_reason, session.errors) == ("quic", None, [])
        assert "instead" not in repr(session)


async def test_a_list_is_tried_in_order(blackhole: str, tls_broker: BrokerServer, free_port: int) -> None:
    urls = [f"mqtts://127.0.0.1:{free_port}", tls_broker.urls["mqtts"]]
    opening = AsyncSession.open(blackhole, fallback=urls, quic_timeout=0.2, ca_file=tls_broker.ca_file)
    async with await hang(opening) as session:
        reason = session.handshake.fallback_reason or ""
        assert "no answer" in reason
        assert f"TCP port {free_port}" in reason


async def test_when_nothing_works_every_reason_is_named(blackhole: str, free_port: int) -> None:
    fallback = f"mqtts://127.0.0.1:{free_port}"
    with pytest.raises(UnreachableError) as caught:
        await hang(AsyncSession.open(blackhole, fallback=fallback, quic_timeout=0.2))
    assert str(caught.value).count("no answer") == 1
    assert f"{blackhole}: no answer" in str(caught.value)
    assert f"{fallback}: nothing listens on TCP port {free_port}" in str(caught.value)


async def test_quic_leaves_half_of_the_time_to_the_fallback(blackhole: str, tls_broker: BrokerServer) -> None:
    opening = AsyncSession.open(
        blackhole, fallback=tls_broker.urls["mqtts"], timeout=3.0, quic_timeout=60, ca_file=tls_broker.ca_file
    )
    async with await hang(opening) as session:
        assert "within 1.5 s" in (session.handshake.fallback_reason or "")


# What does not lead to the fallback


async def test_a_refused_certificate_is_no_reason(broker: BrokerServer, tls_broker: BrokerServer) -> None:
    # The fallback would work: its authority is the one that is trusted.
    with pytest.raises(CertificateError) as caught:
        await hang(AsyncSession.open(broker.url, fallback=tls_broker.urls["mqtts"], ca_file=tls_broker.ca_file))
    assert caught.value.problem == "untrusted"
    assert any("fallback was not tried" in note for note in caught.value.__notes__)
    assert tls_broker.stats().connections_total == 0


async def test_wrong_credentials_are_no_reason() -> None:
    config = BrokerConfig(quic_port=0, tls_port=0, tcp=False, users={"me": "right"})
    async with BrokerServer(config) as strict:
        with pytest.raises(ConnectRefusedError, match="username and password") as caught:
            await hang(AsyncSession.open(strict, fallback=True, username="me", password="wrong"))
        assert any("fallback was not tried" in note for note in caught.value.__notes__)
        assert strict.stats().connections_total == 1


async def test_a_certificate_that_is_refused_on_the_fallback(blackhole: str, tls_broker: BrokerServer) -> None:
    with pytest.raises(CertificateError) as caught:
        await hang(AsyncSession.open(blackhole, fallback=tls_broker.urls["mqtts"], quic_timeout=0.2))
    assert caught.value.problem == "untrusted"
    assert caught.value.chain
    assert f"{blackhole}: no answer" in str(caught.value)


# What can be asked for


@pytest.mark.parametrize(
    ("target", "fallback", "message"),
    [
        ("quic://broker.example", "mqtt://broker.example", "in the clear"),
        ("quic://broker.example", ["mqtts://broker.example", "tcp://broker.example:1883"], "in the clear"),
        ("quic://broker.example", "quic://other.example", "is QUIC again"),
        ("quic://broker.example", "broker.example", "is QUIC again"),
        ("mqtts://broker.example", "mqtts://other.example", "is for quic://"),
        ("mqtt://broker.example", True, "is for quic://"),
        ("quic://broker.example", 8883, "takes an mqtts:// URL"),
        ("quic://broker.example", [None], "takes an mqtts:// URL"),
    ],
)
async def test_what_is_refused_before_anything_is_sent(target: str, fallback: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        await AsyncSession.open(target, fallback=fallback)


@pytest.mark.parametrize("bound", [0, -1, "soon"])
def test_a_bound_that_is_none(bound: Any) -> None:
    with pytest.raises(UsageError, match="quic_timeout"):
        SessionOptions(fallback=True, quic_timeout=bound)


def ways(target: Any, **options: Any) -> list[str]:
    return [way.address.url for way in resolve_target(target, SessionOptions(**options)).fallbacks]


def test_true_is_tls_on_the_same_host() -> None:
    assert ways("quic://broker.example:4433", fallback=True) == ["mqtts://broker.example:8883"]
    assert ways("quic://[::1]:14567", fallback=True) == ["mqtts://[::1]:8883"]
    assert ways("mqtts://broker.example:8884", fallback=True) == []
    assert ways("quic://broker.example", fallback=False) == []
    assert ways("quic://broker.example", fallback=[]) == []


async def test_true_is_the_tls_listener_of_a_broker_of_ours(broker: BrokerServer) -> None:
    assert ways(broker, fallback=True) == [broker.urls["mqtts"]]
    async with BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False)) as without:
        with pytest.raises(UsageError, match="tls=True"):
            ways(without, fallback=True)


async def test_credentials_of_the_url_and_a_brokers_own_authority_serve_the_fallback(broker: BrokerServer) -> None:
    target = resolve_target("quic://me:secret@broker.example", SessionOptions(fallback=True))
    assert (target.fallbacks[0].username, target.fallbacks[0].password) == ("me", b"secret")
    assert "secret" not in repr(target)
    own = resolve_target("quic://me:secret@h", SessionOptions(fallback="mqtts://you:other@h"))
    assert own.fallbacks[0].username == "you"
    ours = resolve_target(broker, SessionOptions(fallback=broker.urls["mqtts"]))
    assert ours.fallbacks[0].trust.ca_file == broker.ca_file
    theirs = resolve_target(broker, SessionOptions(fallback="mqtts://broker.example"))
    assert theirs.fallbacks[0].trust.ca_file is None


async def test_a_broker_with_a_dead_quic_listener(broker: BrokerServer, blackhole: str) -> None:
    class Elsewhere:
        url, urls, ca_file = blackhole, broker.urls, broker.ca_file

    async with await hang(AsyncSession.open(Elsewhere(), fallback=True, quic_timeout=0.2)) as session:
        assert (session.transport, session.handshake.verification) == ("tls", "verified")


async def test_data_streams_stay_behind(blackhole: str, tls_broker: BrokerServer) -> None:
    opening = AsyncSession.open(
        blackhole, fallback=tls_broker.urls["mqtts"], quic_timeout=0.2, streams="per-topic", ca_file=tls_broker.ca_file
    )
    async with await hang(opening) as session:
        assert sorted(error.where for error in session.errors) == ["fallback", "streams"]
        assert (await session.publish("a", b"x", 1)).reason_code in (0, 0x10)


async def test_a_probe_looks_at_one_address() -> None:
    with pytest.raises(UsageError, match="one address"):
        await probe("quic://127.0.0.1:1", fallback=True)


async def test_errors_are_connect_errors(blackhole: str) -> None:
    with pytest.raises(ConnectError, match="no way led to the broker"):
        await hang(AsyncSession.open(blackhole, fallback="mqtts://no-such-host.invalid", timeout=1.0))
