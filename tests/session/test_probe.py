"""A probe says what happened, at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.net.listen import listen
from mqttquic_lab.session import probe
from tests.session.conftest import SCHEMES
from tests.session.scripted import hang

if TYPE_CHECKING:
    from tests.helpers.certs import Identities


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_good_one(broker: BrokerServer, scheme: str) -> None:
    report = await hang(probe(broker.urls[scheme], ca_file=broker.ca_file))
    assert (report.state, report.error) == ("closed", None)
    assert report.reason_code == 0
    assert report.connack_properties
    assert report.timings["connack"] > 0
    assert report.verification == ("none" if scheme == "mqtt" else "verified")
    await broker.wait_for(lambda: not broker.clients())


async def test_a_broker_of_ours(broker: BrokerServer) -> None:
    assert (await hang(probe(broker))).verification == "verified"


@pytest.mark.parametrize("scheme", ["quic", "mqtts"])
async def test_an_untrusted_certificate_is_shown_with_the_rest(broker: BrokerServer, scheme: str) -> None:
    report = await hang(probe(broker.urls[scheme], username="me", password="hunter2"))
    assert (report.state, report.verification) == ("failed", "failed")
    assert report.error == report.verification_detail
    assert "issued by" in str(report.error)
    assert report.certificates[0].subject
    assert report.verified_chain == ()
    # The second look went on to MQTT, and took no credentials along.
    assert report.reason_code == 0
    assert report.cipher_suite
    assert "username" not in [name for name, *_ in report.connect_fields]
    assert "hunter2" not in str(report.to_dict())


@pytest.mark.parametrize("which", ["expired", "wrong_name"])
async def test_a_bad_certificate_of_a_server_that_is_no_broker(
    identities: Identities, tmp_path: Any, which: str
) -> None:
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    identity = getattr(identities, which)
    listener = await listen("quic", "127.0.0.1", 0, identity=identity, on_connection=lambda _: None)
    try:
        report = await hang(probe(f"127.0.0.1:{listener.port}", timeout=0.3, ca_file=ca_file))
    finally:
        await listener.close()
    assert (report.state, report.verification) == ("failed", "failed")
    assert report.certificates
    assert report.error == report.verification_detail


async def test_a_closed_port_is_reported_at_once(free_port: int) -> None:
    report = await hang(probe(f"127.0.0.1:{free_port}", timeout=30))
    assert report.state == "failed"
    assert "nothing listens" in str(report.error)
    assert report.transport == "quic"


async def test_nobody_answers(identities: Identities) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        report = await hang(probe(f"mqtt://127.0.0.1:{port}", timeout=0.1))
    assert report.state == "failed"
    assert "did not answer CONNECT" in str(report.error)


async def test_refused() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"a": "b"})
    async with BrokerServer(config) as server:
        report = await hang(probe(server))
    assert report.state == "failed"
    assert report.reason_code in (0x86, 0x87)
    assert "refused" in str(report.error)


async def test_an_application_protocol_nobody_speaks(broker: BrokerServer) -> None:
    report = await hang(probe(broker, alpn=("h3",)))
    assert report.state == "failed"
    assert "h3" in str(report.error)


async def test_bad_arguments_raise() -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'ca_file'"):
        await probe("127.0.0.1", cafile="x")
    with pytest.raises(UsageError):
        await probe("quick://x")
    with pytest.raises(UsageError):
        await probe("127.0.0.1", timeout=0)
