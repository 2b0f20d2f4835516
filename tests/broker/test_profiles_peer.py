"""The client of mqttv5 (Rust, quinn) against our broker: every way in which it uses streams, in both profiles."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.helpers.peers import PATIENCE, require

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.profiles import ProfileName

MODES = {
    "single stream": (),
    "per-publish": ("--quic-stream-strategy", "per-publish"),
    "per-topic": ("--quic-stream-strategy", "per-topic"),
    "flow headers": ("--quic-flow-headers",),
    "per-topic with flow headers": ("--quic-stream-strategy", "per-topic", "--quic-flow-headers"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("profile", ["generic", "mqttv5"])
@pytest.mark.matrix("QoS 0", "QoS 1", "QoS 2", "{mode}", ours="broker", peer="mqttv5")
async def test_every_way_of_its_client_to_use_streams(profile: ProfileName, mode: str) -> None:
    program = require("mqttv5")
    async with BrokerServer(BrokerConfig(profile=profile, tls=False, tcp=False, quic_port=0)) as server:
        url = server.url.replace("127.0.0.1", "localhost")

        async def run(verb: str, *options: str) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                program, verb, "--url", url, "--ca-cert", str(server.ca_file), "--non-interactive",
                *MODES[mode], *options,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip

        reader = await run("sub", "-t", "a/#", "-q", "2", "-n", "3")
        try:
            async with asyncio.timeout(3 * PATIENCE):
                await server.wait_for(lambda: server.stats().subscriptions == 1, PATIENCE)
                for qos in "012":
                    writer = await run("pub", "-t", f"a/{qos}", "-q", qos, "-m", f"at QoS {qos}")
                    _, complaint = await writer.communicate()
                    assert writer.returncode == 0, complaint.decode()
                told, _ = await reader.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                reader.kill()
            await reader.wait()
        lines = [line.strip() for line in told.decode().splitlines()]
        assert sum(line.startswith("at QoS") for line in lines) == 3, lines
        stats = server.stats()
        assert (stats.messages_in, stats.stream_errors, stats.protocol_errors) == (3, 0, 0)
        assert (stats.streams_total > 0) == (profile == "mqttv5" or "per-" in mode)
