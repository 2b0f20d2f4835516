"""What the scenarios do while a load is carried, and how each shows that what it is about did happen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aioquic.quic.packet import QuicPacketType

from mqttquic_lab.quic.tickets import TicketStore
from tests.scenarios import wire
from tests.scenarios.load import PATIENCE

if TYPE_CHECKING:
    from tests.scenarios.scenario import Run


def plain_handshake(run: Run) -> str:
    """QUIC v1 without detours."""
    report = run.report
    assert (report.quic_version, report.retry, report.resumed, report.early_data) == (
        "QUIC v1", False, False, "not offered",
    )  # fmt: skip
    assert report.round_trips == 2
    assert run.relay.dropped == run.relay.corrupted == 0
    assert wire.types(run.relay.log, to_server=False)[QuicPacketType.RETRY] == 0
    return f"{report.quic_version}, {report.cipher_suite}, ALPN {report.alpn}"


def took_long_round_trips(run: Run) -> str:
    """No answer came sooner than the delay allows, and the handshake needed no more trips for it."""
    rtt = run.report.rtt
    assert rtt is not None
    assert rtt.minimum >= 0.3
    assert run.report.round_trips == 2
    return f"round trip measured: {rtt.minimum * 1000:.0f} ms at least"


async def goes_dark(run: Run) -> None:
    """Nothing passes for a while, and somebody tries."""
    before = run.relay.dropped
    await run.relay.go_dark(1.5)
    run.notes["in the dark"] = run.relay.dropped - before


def was_dark(run: Run) -> str:
    """Datagrams vanished, and the connection is the same."""
    assert run.notes["in the dark"] > 0
    assert run.listener.accepted == 1
    return f"{run.notes['in the dark']} datagrams vanished, the connection went on"


def server_kept_to_three_times(run: Run) -> str:
    """The server had more to say than three times what it had received, and waited."""
    sums = wire.before_validation(run.relay.log)
    assert 2.5 < sums.highest_ratio <= 3
    certificate = run.report.certificates[0]
    chain = sum(len(c.pem) * 3 // 4 for c in run.report.certificates)
    assert len(certificate.names) > 100
    # The first datagram alone reached the server: it cannot have sent all that it had.
    assert chain > 3 * 1200
    assert any(event.name == "amplification_limited" for event in run.listener.connections[0].trace)
    return f"server sent {sums.highest_ratio:.2f} times what it had received, at most; chain of {chain} bytes"


def lost_datagrams(run: Run) -> str:
    """The relay did drop."""
    assert run.relay.dropped >= 10
    assert run.listener.accepted == len(run.sessions)
    share = run.relay.dropped / (run.relay.dropped + run.relay.passed)
    return f"{run.relay.dropped} datagrams lost ({share:.1%}), {run.relay.reordered} reordered"


def corrupted_datagrams(run: Run) -> str:
    """The relay did corrupt, and no payload shows it."""
    assert run.relay.corrupted >= 10
    assert run.listener.accepted == len(run.sessions)
    return f"{run.relay.corrupted} datagrams corrupted, no payload"


def lost_handshakes(run: Run) -> str:
    """Some of what was lost belonged to handshakes."""
    lost = wire.handshakes(run.relay.log, "dropped")
    assert lost >= 1
    lost_datagrams(run)
    return f"{run.relay.dropped} datagrams lost, {lost} of them with handshake packets; all connections came about"


def corrupted_handshakes(run: Run) -> str:
    """Some of what was corrupted belonged to handshakes."""
    corrupted = wire.handshakes(run.relay.log, "corrupted")
    assert corrupted >= 1
    corrupted_datagrams(run)
    return (
        f"{run.relay.corrupted} datagrams corrupted, {corrupted} of them with handshake packets; "
        "all connections came about"
    )


def went_over_ipv6(run: Run) -> str:
    """Both ends are IPv6 addresses."""
    local, peer = run.report.local_address, run.report.peer_address
    assert local is not None
    assert peer is not None
    assert local[0] == peer[0] == "::1"
    assert {host for host, _ in run.client_addresses} == {"::1"}
    return f"[{local[0]}] to [{peer[0]}]"


async def nat_rebinds_port(run: Run) -> None:
    """The client's address towards the broker gets another port, and once more."""
    run.relay.rebind()
    await run.session.ping()
    run.relay.rebind()


async def nat_rebinds_address(run: Run) -> None:
    """It gets another address altogether."""
    run.relay.rebind("127.0.0.2")


def was_rebound(run: Run) -> str:
    """The broker follows the client to where it is now, on the same connection."""
    seen = run.relay.clients_as_seen
    assert len(set(seen)) == len(seen) > 1
    assert run.client_addresses == {seen[-1]}
    assert run.listener.accepted == 1
    hosts = " then ".join(dict.fromkeys(host for host, _ in seen))
    return f"{len(seen)} ports at {hosts}; one connection"


async def streams_are_counted(run: Run) -> None:
    """In the middle of it, so many streams are open side by side."""
    run.notes["open"] = [stream for stream in run.session.streams if stream.state == "open"]


def many_streams_at_once(run: Run) -> str:
    """Every stream carried its part, at the same time as the others."""
    together = run.notes["open"]
    assert len(together) == 1 + run.scenario.topics + run.scenario.streams
    streams = {stream.id: stream for stream in run.session.streams}
    carried = [stream for stream in streams.values() if stream.messages_out]
    assert [stream.kind for stream in carried].count("topic") == run.scenario.topics
    assert [stream.kind for stream in carried].count("explicit") == run.scenario.streams
    assert all(stream.messages_in for stream in carried if stream.kind == "explicit")
    assert sum(stream.messages_out for stream in carried) >= sum(2 * load.each for load in run.loads)
    return f"{len(together)} streams open at once, {len(carried)} of them carried PUBLISH packets"


async def client_migrates(run: Run) -> None:
    """To another address of this machine."""
    run.notes["result"] = await run.session.migrate("127.0.0.3")


def was_migrated(run: Run) -> str:
    """New address, new connection ids, validated path, same connection; the broker knows where the client is."""
    result = run.notes["result"]
    assert (result.kind, result.new_local[0]) == ("migration", "127.0.0.3")
    assert result.new_sequence != result.old_sequence
    assert result.challenges >= 1
    old, new = run.relay.clients_as_seen
    assert (old[0], new[0]) == ("127.0.0.1", "127.0.0.3")
    assert run.client_addresses == {new}
    ids = wire.destination_ids(run.relay.log)
    assert len(ids) == 2
    assert not set.intersection(*ids.values()), "an observer could link the two paths"
    assert run.listener.accepted == 1
    return f"{old[0]} to {new[0]}, connection ids {result.old_sequence} and {result.new_sequence}; one connection"


async def keys_are_updated(run: Run) -> None:
    """Twice, with packets under way: key phase 1, and 0 again."""
    run.notes["phases"] = [await run.session.update_keys(timeout=PATIENCE) for _ in range(2)]


def keys_were_updated(run: Run) -> str:
    """Both sides count the same, and the messages between them came through."""
    assert run.notes["phases"] == [1, 0]
    report = run.report
    assert (report.key_updates, report.key_phase) == (2, 0)
    server = run.listener.connections[0].refresh_report()
    assert (server.key_updates, server.key_phase) == (2, 0)
    return f"key phases {', '.join(str(phase) for phase in (0, *run.notes['phases']))}; {report.key_updates} updates"


def chacha20_protects(run: Run) -> str:
    """Both ends have agreed on the only cipher suite offered."""
    assert run.report.cipher_suite == "TLS_CHACHA20_POLY1305_SHA256"
    server = run.listener.connections[0].refresh_report()
    assert server.cipher_suite == run.report.cipher_suite
    return run.report.cipher_suite


def address_was_validated(run: Run) -> str:
    """The first packet was answered with Retry, which cost a round trip."""
    assert run.report.retry
    assert run.report.round_trips == 3
    retries = wire.types(run.relay.log, to_server=False)[QuicPacketType.RETRY]
    assert retries == run.listener.retries >= 1  # more than one if the client had to repeat its first packet
    return f"Retry seen on the wire: {retries}"


def version_2_is_spoken(run: Run) -> str:
    """Asked for in v1's first packet, spoken from the server's first on (RFC 9368 section 2.3)."""
    assert run.report.quic_version == "QUIC v2"
    assert run.report.version_negotiated
    assert run.report.round_trips == 2, "compatible version negotiation costs no round trip"
    assert wire.versions(run.relay.log, to_server=True) == [0x0000_0001, 0x6B33_43CF]
    assert wire.versions(run.relay.log, to_server=False)[-1] == 0x6B33_43CF
    assert wire.types(run.relay.log, to_server=False)[QuicPacketType.VERSION_NEGOTIATION] == 0
    return "first packet v1, then v2 both ways"


async def gets_a_ticket(run: Run) -> None:
    """From an earlier connection."""
    run.options["tickets"] = tickets = TicketStore()
    first = await run.open(early_data=False, publish_early=())
    async with asyncio.timeout(PATIENCE):
        while not len(tickets):
            await first.ping(timeout=PATIENCE)
    run.notes["first"] = first.handshake
    await first.close()


def was_resumed(run: Run) -> str:
    """No certificate was shown, and none had to be."""
    assert not run.notes["first"].resumed
    assert run.notes["first"].certificates
    report = run.report
    assert (report.resumed, report.verification, report.certificates) == (True, "resumed", ())
    assert report.early_data == "not offered"
    assert report.round_trips == 2
    assert wire.types(run.relay.log, to_server=True)[QuicPacketType.ZERO_RTT] == 0
    return "resumed with the ticket of an earlier connection, no certificate"


EARLY = tuple((f"early/{n}", f"in the first flight, {n}", 1 + n % 2) for n in range(10))
"""Topic, payload and QoS of what goes before CONNACK."""


async def gets_a_ticket_and_a_witness(run: Run) -> None:
    """Somebody else receives what goes early."""
    await gets_a_ticket(run)
    witness = await run.open(tickets=None, early_data=False, publish_early=())
    run.notes["witness"] = await witness.subscribe("early/#", qos=2, max_messages=100)


async def early_messages_arrive(run: Run) -> None:
    """Wait for them, at both ends."""
    run.notes["results"] = await run.session.early_published(timeout=PATIENCE)
    await run.notes["witness"].wait(len(EARLY), timeout=PATIENCE)


def went_in_the_first_flight(run: Run) -> str:
    """CONNECT and ten PUBLISH packets went in 0-RTT packets, and were taken."""
    report = run.report
    assert (report.resumed, report.early_data, report.round_trips) == (True, "accepted", 1)
    assert [result.reason_code for result in run.notes["results"]] == [0] * len(EARLY)
    witness = run.notes["witness"]
    came = []
    while (message := witness.cursor.take()) is not None:
        came.append((message.topic, message.value, message.qos))
    assert sorted(came) == sorted(EARLY)
    packets = wire.types(run.relay.log, to_server=True)[QuicPacketType.ZERO_RTT]
    assert packets >= 1
    return f"CONNECT and {len(EARLY)} PUBLISH packets as 0-RTT data, accepted; 0-RTT packets: {packets}"
