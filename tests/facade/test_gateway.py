"""A gateway as a person has it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

import mqttquic_lab as mq
from mqttquic_lab.gateway import codes
from mqttquic_lab.net.address import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def plain() -> Iterator[mq.Broker]:
    """A broker without QUIC."""
    with mq.start_broker(quic=False, tls_port=0, tcp_port=0) as broker:
        yield broker


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_session_through_it(plain: mq.Broker, scheme: str) -> None:
    options = {"ca_file": plain.ca_file} if scheme == "mqtts" else {}
    with mq.start_gateway(plain.urls[scheme], quic_port=0, **options) as gateway, mq.connect(gateway) as session:
        feed = session.subscribe("a/#", qos=2)
        for qos in (0, 1, 2):
            session.publish("a/b", f"qos {qos}", qos=qos)
        feed.wait(3, timeout=10)
        assert feed.df["value"].tolist() == ["qos 0", "qos 1", "qos 2"]
        assert session.transport == "quic"
        [client] = gateway.clients()
        assert client.address == session.handshake.local_address
        assert gateway.stats.bytes_to_broker == client.streams[0].bytes_to_broker > 0
        assert gateway.frame()["state"].tolist() == ["open"]
        assert gateway.upstream == plain.urls[scheme]
        assert repr(gateway) == f"<Gateway at {gateway.url} to {plain.urls[scheme]}: 1 client>"
        assert plain.urls[scheme] in gateway._repr_html_()
        assert gateway.errors == []
    assert gateway.state == "closed"
    assert repr(gateway) == "<Gateway: closed>"
    gateway.close()


def test_a_broker_of_ones_own_is_named_by_its_handle() -> None:
    gateway = mq.start_gateway(mq.start_broker(quic=False, tls_port=0, tcp=False), quic_port=0)
    gc.collect()  # the broker lives as long as its gateway
    with gateway, mq.connect(gateway) as session:
        assert session.ping() > 0


def test_fallback_goes_to_its_own_tls_listener(plain: mq.Broker) -> None:
    with (
        mq.start_gateway(plain, quic=False, tls=True, tls_port=0) as gateway,
        mq.connect(gateway, fallback=True) as session,
    ):
        assert session.transport == "tls"
        assert session.ping() > 0


async def test_awaitable(plain: mq.Broker) -> None:
    async with await mq.aio.start_gateway(plain, quic_port=0) as gateway:
        async with await mq.aio.connect(gateway) as session:
            await session.aio.publish("a", "x", qos=1)
            assert len(await gateway.aio.clients()) == 1
        await gateway.aio.close()
    assert gateway.state == "closed"


def test_a_broker_that_is_not_there_is_said_at_once(free_port: int) -> None:
    with mq.start_gateway(f"mqtt://127.0.0.1:{free_port}", quic_port=0) as gateway:
        with pytest.raises(mq.LabError, match="cannot be reached"):
            mq.connect(gateway)
        assert gateway.stats.upstream_failures == 1
        assert "nothing listens" in gateway.errors[-1].message
        assert "nothing listens" in gateway._repr_html_()


def test_streams_that_a_plain_broker_cannot_understand_are_refused(plain: mq.Broker) -> None:
    with mq.start_gateway(plain, quic_port=0) as gateway, mq.connect(gateway, streams="per-topic") as session:
        with pytest.raises(mq.LabError) as caught:
            session.publish("a", "x", qos=1)
        assert str(codes.STREAM_TYPE) in str(caught.value)
        assert gateway.stats.streams_refused == 1
        assert session.state == "connected"


def test_what_cannot_be_used_is_refused(plain: mq.Broker, tmp_path: Path) -> None:
    for upstream, options, expected in (
        ("mqtt://ann:geheim@localhost", {}, "CONNECT"),
        ("quic://localhost", {}, "QUIC already"),
        (5, {}, "not a int"),
        ("mqtt://localhost", {"verify": False}, "mqtts://"),
        ("mqtts://localhost", {"ca_file": tmp_path / "none.pem"}, "cannot be read"),
        ("mqtt://localhost", {"quic": False}, "listener"),
        ("mqtt://localhost", {"max_streams": 0}, "at least 1"),
        ("mqtt://localhost", {"quic_prot": 1}, "quic_port"),
        ("mqtt://localhost", {"connect_timeout": 0}, "more than 0"),
    ):
        with pytest.raises(mq.UsageError, match=expected) as caught:
            mq.start_gateway(upstream, **options)
        assert "geheim" not in str(caught.value)
    taken = parse_url(plain.urls["mqtts"]).port
    with pytest.raises(mq.PortInUseError):
        mq.start_gateway(plain, quic=False, tls=True, tls_port=taken)
