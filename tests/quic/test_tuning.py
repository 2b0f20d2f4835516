"""Tunings: which path they are for, and what really goes over the wire."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import is_loopback
from mqttquic_lab.quic.tuning import LoopbackCongestionControl, tuning_named
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import Inbox, connected, serving

if TYPE_CHECKING:
    from tests.helpers.certs import Identities


@pytest.mark.parametrize(("tuning", "size"), [("realistic", 1200), ("loopback", 8192)])
async def test_datagram_sizes_on_the_wire(identities: Identities, tuning: str, size: int) -> None:
    from mqttquic_lab.net.address import Address

    async with serving(identities, tuning=tuning) as server, LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address, tuning=tuning) as (client, _):
            inbox = Inbox(client.control)
            client.control.write(bytes(60_000))
            stream = await server.stream()
            await Inbox(stream).read(60_000)
            stream.write(bytes(60_000))
            await inbox.read(60_000)
        assert len(relay.to_server[0]) == 1200  # the handshake is the same in every tuning
        assert max(map(len, relay.to_server)) == max(map(len, relay.to_client)) == size


def test_the_loopback_tuning_is_for_the_loopback() -> None:
    assert tuning_named("loopback", "127.0.0.9").max_datagram_size == 8192
    assert tuning_named("loopback", "::1").name == "loopback"
    with pytest.raises(UsageError, match=r"not to 10\.0\.0\.1, use 'realistic'"):
        tuning_named("loopback", "10.0.0.1")
    with pytest.raises(UsageError, match="there is no tuning 'fast'"):
        tuning_named("fast")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False), ("fe80::1%eth0", False), ("::ffff:10.0.0.1", False), ("localhost", False),
    ],
)  # fmt: skip
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def packet(size: int, at: float) -> Any:
    return SimpleNamespace(sent_bytes=size, sent_time=at)


def test_the_capped_controller() -> None:
    control = LoopbackCongestionControl(max_datagram_size=1200)
    cap, floor = control.CAP, control.FLOOR
    assert control.congestion_window == cap
    for at in range(4):
        control.on_packet_sent(packet=packet(1000, at))
    assert control.bytes_in_flight == 4000
    control.on_packet_acked(now=1, packet=packet(1000, 0))
    assert (control.bytes_in_flight, control.congestion_window) == (3000, cap)
    control.on_packets_lost(now=5, packets=[packet(1000, 1), packet(1000, 2)])
    assert (control.bytes_in_flight, control.congestion_window) == (1000, cap // 2)
    control.on_packets_lost(now=6, packets=[packet(1000, 3)])  # sent before the reduction: the same event
    assert control.congestion_window == cap // 2
    control.on_packet_acked(now=7, packet=packet(1000, 6))
    assert control.congestion_window == cap // 2 + 500
    control.on_persistent_congestion()
    assert control.congestion_window == floor
    control.on_packets_lost(now=9, packets=[packet(0, 8)])
    assert control.congestion_window == floor
    control.on_packets_expired(packets=[packet(10, 9)])
    control.on_rtt_measurement(now=9, rtt=1.0)
