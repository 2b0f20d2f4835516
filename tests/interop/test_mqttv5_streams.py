"""Our session against mqttv5's broker: streams towards it, and those that it opens, in every delivery strategy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.net.certificates import CertificateAuthority
from mqttquic_lab.session import AsyncSession
from tests.interop.quic_peers import mqttv5_broker
from tests.session.scripted import hang

if TYPE_CHECKING:
    from pathlib import Path

MODES = [("mqttv5", "single"), ("mqttv5", "per-topic"), ("mqttv5", "per-publish"), ("generic", "single")]


@pytest.mark.parametrize("strategy", ["control-only", "per-topic", "per-publish"])
@pytest.mark.matrix(
    "single stream", "per-topic", "per-publish", "QoS 0", "QoS 1", "QoS 2", ours="client", peer="mqttv5"
)
async def test_every_message_arrives_once(strategy: str, tmp_path: Path) -> None:
    authority = CertificateAuthority.create()
    identity = authority.issue(["localhost", "127.0.0.1"])
    ca_file = tmp_path / "ca.pem"
    authority.write_ca(ca_file)
    async with mqttv5_broker(identity, tmp_path, "--quic-delivery-strategy", strategy) as peer:
        for profile, streams in MODES:
            url = f"quic://localhost:{peer.port}"
            session = await hang(AsyncSession.open(url, ca_file=ca_file, profile=profile, streams=streams))
            try:
                feed = await session.subscribe("t/#", qos=2)
                for qos in (0, 1, 2):
                    await hang(
                        asyncio.gather(*(session.publish(f"t/{n % 5}", f"{qos}-{n}", qos=qos) for n in range(15)))
                    )
                await session.publish_many(((f"t/{n % 20}", str(n)) for n in range(60)), qos=2)
                await feed.wait(105)
                got = [bytes(payload).decode() for payload in feed.df["payload"]]
                expected = [f"{qos}-{n}" for qos in (0, 1, 2) for n in range(15)] + [str(n) for n in range(60)]
                assert sorted(got) == sorted(expected)
                kinds = {info.kind for info in session.streams}
                assert ("server" in kinds) is (strategy != "control-only")
                assert {"per-topic": "topic", "per-publish": "publish", "single": "control"}[streams] in kinds
                assert session.errors == []
            finally:
                await hang(session.close())
