"""Connections that change their address: migration, rebinding, a server's preferred address (RFC 9000 section 9)."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError, LabError, MigrationError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.quic import migration, private, private_paths
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.migration import Mover, local_name
from mqttquic_lab.trace import Trace
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.quic import HANG, Inbox, Server, connected, echo, serving, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.endpoint import Endpoint
    from mqttquic_lab.quic.private import Engine
    from tests.helpers.certs import Identities

OTHER = "127.0.0.2"
"""Another address of this machine: all of 127.0.0.0/8 is."""

BULK = 300_000


@asynccontextmanager
async def echoing(
    identities: Identities, *, client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[QuicConnection, QuicConnection, Inbox]]:
    """Connect to a server that echoes; yields our end, the server's, and what comes back on the control stream."""
    async with serving(identities, **options) as server:
        server.on_stream = echo
        async with connected(server, identities, **client or {}) as (ours, theirs):
            yield ours, theirs, Inbox(ours.control)


@asynccontextmanager
async def relayed(
    identities: Identities, ills: Ills | None = None, *, delay: float = 0.0, **options: Any
) -> AsyncIterator[tuple[QuicConnection, QuicConnection, Inbox, LossyRelay]]:
    """Do the same through a relay."""
    async with serving(identities, **options) as server:
        server.on_stream = echo
        async with LossyRelay(server.listener.addresses[0], ills, delay=delay) as relay:
            address = Address.of("quic", *relay.address)
            async with connected(server, identities, address=address) as (ours, theirs):
                yield ours, theirs, Inbox(ours.control), relay


async def round_trip(connection: QuicConnection, inbox: Inbox, data: bytes = b"are you there") -> None:
    """Check that both directions work."""
    connection.control.write(data)
    assert await inbox.read(len(data)) == data


def moves(connection: QuicConnection) -> list[tuple[Any, Any]]:
    """Record what ``on_migrated`` is told."""
    told: list[tuple[Any, Any]] = []
    connection.on_migrated = lambda old, new: told.append((old, new))
    return told


def events(connection: QuicConnection, name: str) -> list[dict[str, Any]]:
    return [dict(event.data) for event in connection.trace if event.name == name]


def frames(trace: Trace, name: str, frame: str) -> int:
    """Count the packets with such a frame."""
    return sum(
        any(each["frame_type"] == frame for each in event.data["frames"]) for event in trace if event.name == name
    )


def sockets(connection: QuicConnection) -> tuple[Endpoint, ...]:
    assert connection.mover is not None
    return tuple(connection.mover._sockets)


# --- migration


async def test_migration_to_another_address(identities: Identities) -> None:
    trace = Trace(detail=True)
    async with echoing(identities, client={"trace": trace}) as (client, accepted, inbox):
        told = moves(accepted)
        await round_trip(client, inbox, bytes(BULK))
        before, peer = client.local_address, client.peer_address
        result = await client.migrate(OTHER)
        assert (result.kind, result.old_local, result.new_local) == ("migration", before, client.local_address)
        assert result.new_local[0] == OTHER
        assert result.old_peer == result.new_peer == peer == client.peer_address
        assert (result.old_sequence, result.new_sequence) == (0, 1)
        assert result.challenges == 1
        assert result.seconds > 0
        assert result.congestion_reset
        assert "migration from 127.0.0.1 port" in result.sentence()
        assert set(result.to_dict()) == set(type(result).__slots__)
        await round_trip(client, inbox, bytes(BULK))
        assert accepted.peer_address == client.local_address
        assert told == [(before, client.local_address)]
        assert client.refresh_report().local_address == client.local_address
        assert accepted.refresh_report().peer_address == client.local_address
        [updated] = events(accepted, "path_updated")
        assert (updated["old_peer"], updated["new_peer"]) == told[0]
        [validated] = events(accepted, "path_validated")
        assert validated["congestion_reset"] is True
        assert [event["attempt"] for event in events(client, "path_challenged")] == [1]
        # Both sides have validated the path, and each challenge was answered.
        assert frames(trace, "packet_sent", "path_challenge") == frames(trace, "packet_received", "path_response") == 1
        assert frames(trace, "packet_received", "path_challenge") == frames(trace, "packet_sent", "path_response") == 1
        assert frames(trace, "packet_sent", "retire_connection_id") >= 1


async def test_a_change_of_port_keeps_what_is_known_about_the_way(identities: Identities) -> None:
    async with echoing(identities) as (client, accepted, inbox):
        await round_trip(client, inbox, bytes(BULK))
        window = client.congestion_window
        assert window > 12_000
        result = await client.migrate()
        assert result.old_local[0] == result.new_local[0]
        assert result.old_local != result.new_local
        assert not result.congestion_reset
        assert client.congestion_window >= window
        assert client.engine.rtt.info is not None
        await round_trip(client, inbox)
        assert events(accepted, "path_validated")[0]["congestion_reset"] is False


async def test_a_change_of_host_begins_anew_on_both_sides(identities: Identities) -> None:
    async with echoing(identities) as (client, accepted, inbox):
        await round_trip(client, inbox, bytes(BULK))
        before = min(client.congestion_window, accepted.congestion_window)
        await client.migrate(OTHER)
        await settle(lambda: bool(events(accepted, "path_validated")))
        assert max(client.congestion_window, accepted.congestion_window) < before / 2
        await round_trip(client, inbox, bytes(BULK))
        assert client.engine.rtt.info is not None
        assert accepted.engine.rtt.info is not None
        # Back where it came from: another path all the same.
        assert (await client.migrate("127.0.0.1")).congestion_reset
        await round_trip(client, inbox)


@pytest.mark.parametrize("tuning", ["realistic", "loopback"])
async def test_nothing_is_lost_or_doubled_under_load(identities: Identities, tuning: str) -> None:
    async with echoing(identities, client={"tuning": tuning}, tuning=tuning) as (client, accepted, inbox):
        data = random.Random(1).randbytes(4 * BULK)
        client.control.write(data)
        for turn in range(6):
            await inbox.until(lambda turn=turn: len(inbox.data) > turn * BULK // 2)  # type: ignore[misc]
            await client.migrate(("127.0.0.2", "127.0.0.1")[turn % 2])
        assert await inbox.read(len(data)) == data
        await round_trip(client, inbox)
        assert accepted.peer_address == client.local_address


async def test_a_random_walk(identities: Identities) -> None:
    """Migrations, rebindings and a forgetful NAT in any order, through a link that loses and reorders."""
    choose = random.Random(7)
    async with relayed(identities, Ills(drop=0.02, reorder=0.05)) as (client, _, inbox, relay):
        sent = bytearray()
        for _ in range(16):
            piece = choose.randbytes(20_000)
            sent += piece
            client.control.write(piece)
            what = choose.randrange(4)
            if what == 0:
                await client.rebind()
            elif what == 1:
                relay.rebind()
            else:
                await client.migrate(f"127.0.0.{choose.randrange(1, 5)}")
        assert await inbox.read(len(sent)) == sent
        assert len(sockets(client)) <= migration.MAX_OLD_SOCKETS + 1


async def test_from_a_path_that_is_dead(identities: Identities) -> None:
    async with relayed(identities) as (client, accepted, inbox, relay):
        await round_trip(client, inbox)
        data = bytes(BULK)
        client.control.write(data)
        await inbox.until(lambda: len(inbox.data) > 10_000)
        relay.blocked.add("127.0.0.1")
        stuck = len(inbox.data)
        await asyncio.sleep(0.5)  # long enough for probe timeouts to back off
        assert len(inbox.data) - stuck < BULK // 2
        result = await client.migrate(OTHER)
        assert result.challenges == 1
        assert await inbox.read(len(data)) == data
        assert events(accepted, "path_validated")


async def test_what_was_in_flight_on_a_dead_path_does_not_wait_for_its_loss(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[int] = []

    def give_up(engine: Engine) -> None:
        given_up.append(private.bytes_in_flight(engine))

    monkeypatch.setattr(private_paths, "give_up_in_flight", give_up)
    async with relayed(identities, delay=0.02) as (client, _, inbox, relay):
        await round_trip(client, inbox)
        relay.blocked.add("127.0.0.1")
        client.control.write(bytes(5000))
        await client.migrate(OTHER)
        assert len(given_up) == 1
        assert given_up[0] >= 5000
        assert await inbox.read(5000)


async def test_when_a_path_counts_as_dead(identities: Identities) -> None:
    async with echoing(identities) as (client, _, _inbox):
        paths, loop = client.paths, asyncio.get_running_loop()
        assert not paths._fell_silent()
        paths.listen()
        await asyncio.sleep(0.02)
        paths.endpoint.last_heard = loop.time()
        assert not paths._fell_silent()
        paths.listen()
        await asyncio.sleep(0.02)
        assert paths._fell_silent()
        assert not paths._fell_silent()  # asked once for each migration


async def test_a_lost_challenge_is_repeated(identities: Identities) -> None:
    async with relayed(identities) as (client, _, inbox, relay):
        relay.blocked.add(OTHER)
        moving = asyncio.create_task(client.migrate(OTHER, timeout=HANG))
        await settle(lambda: len(events(client, "path_challenged")) == 2)
        await round_trip(client, inbox)  # meanwhile everything goes on
        assert client.local_address[0] == "127.0.0.1"
        relay.blocked.clear()
        assert (await moving).challenges >= 2
        assert client.local_address[0] == OTHER
        await round_trip(client, inbox)


async def test_a_path_that_does_not_validate_is_given_up(identities: Identities) -> None:
    async with relayed(identities) as (client, accepted, inbox, relay):
        told = moves(accepted)
        await round_trip(client, inbox)
        spare = private_paths.spare_connection_ids(client.engine)
        before = client.local_address
        relay.blocked.add(OTHER)
        for _ in range(2):
            with pytest.raises(
                MigrationError, match=r"no answer on the path from 127\.0\.0\.2:\d+ to .* within 0.25 s"
            ):
                await client.migrate(OTHER, timeout=0.25)
        assert client.local_address == before
        assert len(sockets(client)) == 1
        await round_trip(client, inbox)
        # The connection ids of the attempts are retired, and the server has given others.
        await settle(lambda: private_paths.spare_connection_ids(client.engine) == spare)
        assert len(events(client, "path_abandoned")) == 2
        assert told == []
        relay.blocked.clear()
        await client.migrate(OTHER)
        await round_trip(client, inbox)


async def test_a_cancelled_migration_leaves_everything_as_it_was(identities: Identities) -> None:
    async with relayed(identities) as (client, _, inbox, relay):
        relay.blocked.add(OTHER)
        moving = asyncio.create_task(client.migrate(OTHER, timeout=HANG))
        await settle(lambda: bool(events(client, "path_challenged")))
        moving.cancel()
        await asyncio.wait((moving,))
        assert moving.cancelled()
        assert len(sockets(client)) == 1
        await round_trip(client, inbox)
        await client.migrate()
        await round_trip(client, inbox)


async def test_a_connection_that_ends_meanwhile(identities: Identities) -> None:
    async with relayed(identities) as (client, _, _inbox, relay):
        relay.blocked.add(OTHER)
        moving = asyncio.create_task(client.migrate(OTHER, timeout=None))
        await settle(lambda: bool(events(client, "path_challenged")))
        used = sockets(client)
        assert len(used) == 2
        await client.close()
        with pytest.raises(DisconnectedError):
            await moving
        assert all(endpoint.is_closed for endpoint in used)
        for verb in (client.migrate, client.rebind):
            with pytest.raises(DisconnectedError):
                await verb()


async def test_one_move_at_a_time(identities: Identities) -> None:
    async with relayed(identities) as (client, _, inbox, relay):
        relay.blocked.add(OTHER)
        first = asyncio.create_task(client.migrate(OTHER, timeout=HANG))
        await settle(lambda: bool(events(client, "path_challenged")))
        for verb in (client.migrate, client.rebind):
            with pytest.raises(MigrationError, match="another move") as caught:
                await verb(timeout=0.05)
            assert caught.value.problem == "busy"
        second = asyncio.create_task(client.migrate("127.0.0.3", timeout=HANG))
        relay.blocked.clear()
        assert (await first).new_local[0] == OTHER
        assert (await second).old_local[0] == OTHER
        assert client.local_address[0] == "127.0.0.3"
        await round_trip(client, inbox)


async def test_the_old_socket_is_read_a_little_longer(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "LINGER", 0.3)
    async with relayed(identities, delay=0.05) as (client, _, inbox, _relay):
        [old] = sockets(client)
        client.control.write(bytes(BULK))
        await inbox.until(lambda: len(inbox.data) > 1000)
        await client.migrate(OTHER)
        assert not old.is_closed
        read = old.counters.datagrams_received
        assert await inbox.read(BULK) == bytes(BULK)
        assert old.counters.datagrams_received > read
        await settle(lambda: old.is_closed)
        assert len(sockets(client)) == 1
        assert len(client.engine._network_paths) == 1
        await round_trip(client, inbox)


async def test_an_answer_at_the_last_moment_counts(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may have changed over in the very tick in which time runs out: then it has."""

    async def too_late(self: Mover, *arguments: Any) -> int:
        await validate(self, *arguments)
        raise TimeoutError

    async def cancelled(self: Mover, *arguments: Any) -> int:
        await validate(self, *arguments)
        raise asyncio.CancelledError

    validate = Mover._validate
    async with echoing(identities) as (client, accepted, inbox):
        monkeypatch.setattr(Mover, "_validate", too_late)
        assert (await client.migrate(OTHER)).new_local == client.local_address
        await round_trip(client, inbox)
        monkeypatch.setattr(Mover, "_validate", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await client.migrate("127.0.0.3")
        await round_trip(client, inbox)
        assert accepted.peer_address == client.local_address
        assert client.local_address[0] == "127.0.0.3"


async def test_ipv6(identities: Identities) -> None:
    async with echoing(identities, host="::1") as (client, accepted, inbox):
        for verb in (client.migrate, client.rebind):
            before = client.local_address
            result = await verb()
            assert result.new_local[0] == "::1"
            assert result.new_local != before
            await round_trip(client, inbox)
            assert accepted.peer_address == client.local_address
        with pytest.raises(UsageError, match="another family"):
            await client.migrate(OTHER)


async def test_a_server_on_every_interface(identities: Identities) -> None:
    async with serving(identities, host="0.0.0.0") as server:
        server.on_stream = echo
        address = Address.of("quic", "127.0.0.1", server.listener.port)
        async with connected(server, identities, address=address) as (client, accepted):
            inbox = Inbox(client.control)
            await client.migrate(OTHER)
            await round_trip(client, inbox)
            assert accepted.local_address == address_of(server)
            assert accepted.peer_address == client.local_address


def address_of(server: Server) -> tuple[str, int]:
    return ("127.0.0.1", server.listener.port)


# --- what prevents it


async def test_before_the_handshake_is_confirmed(identities: Identities) -> None:
    async with relayed(identities, delay=0.05) as (client, _, inbox, relay):
        relay.blackhole = True  # HANDSHAKE_DONE is still under way, for twice the delay
        if not private.handshake_confirmed(client.engine):
            with pytest.raises(MigrationError, match=r"not confirmed the handshake within 0\.2 s") as caught:
                await client.migrate(timeout=0.2)
            assert caught.value.problem == "unconfirmed"
        relay.blackhole = False
        await client.migrate(timeout=HANG)
        await round_trip(client, inbox)


async def test_a_server_that_forbids_it(identities: Identities) -> None:
    async with echoing(identities, disable_active_migration=True) as (client, accepted, inbox):
        with pytest.raises(MigrationError, match=r"disable_active_migration.*force=True") as caught:
            await client.migrate(OTHER)
        assert caught.value.problem == "disabled"
        assert client.local_address[0] == "127.0.0.1"
        await client.rebind()  # what a NAT does nobody can forbid
        await client.migrate(OTHER, force=True)
        await round_trip(client, inbox)
        assert accepted.peer_address == client.local_address


async def test_without_a_spare_connection_id(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    async with echoing(identities) as (client, accepted, inbox):
        await round_trip(client, inbox)
        monkeypatch.setattr(accepted.engine, "_replenish_connection_ids", lambda: None)
        spare = private_paths.spare_connection_ids(client.engine)
        for _ in range(spare):
            await client.migrate()
        before = client.local_address
        with pytest.raises(MigrationError, match="no spare connection id") as caught:
            await client.migrate()
        assert caught.value.problem == "no spare id"
        assert client.local_address == before
        assert (await client.rebind()).new_sequence == spare
        await round_trip(client, inbox)


async def test_connection_ids_that_are_still_on_their_way(identities: Identities) -> None:
    async with relayed(identities, delay=0.02) as (client, _, inbox, _relay):
        for turn in range(12):  # more than the server gives at once
            assert (await client.migrate(timeout=HANG)).new_sequence == turn + 1
        await round_trip(client, inbox)


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ("localhost", "is no IP address of ours"),
        ("", "is no IP address of ours"),
        ("127.0.0.1:x", "is no IP address of ours"),
        ("127.0.0.1:70000", "is no IP address of ours"),
        (("127.0.0.1", -1), "is no IP address of ours"),
        (("127.0.0.1", None), "is no IP address of ours"),
        ("192.0.2.1", "cannot send from local_address 192.0.2.1:0"),
        ("::1", "another family"),
        (("[::1]:9"), "another family"),
    ],
)
async def test_addresses_that_cannot_be_used(identities: Identities, local: Any, message: str) -> None:
    async with echoing(identities) as (client, _, inbox):
        with pytest.raises(UsageError, match=message):
            await client.migrate(local)
        assert len(sockets(client)) == 1
        await round_trip(client, inbox)


def test_names_of_local_addresses() -> None:
    assert local_name(None) is None
    assert local_name("127.0.0.2") == ("127.0.0.2", 0)
    assert local_name("127.0.0.2:99") == ("127.0.0.2", 99)
    assert local_name(("127.0.0.2", 99)) == ("127.0.0.2", 99)
    assert local_name("::1") == ("::1", 0)
    assert local_name("[::1]") == ("::1", 0)
    assert local_name("[::1]:99") == ("::1", 99)


async def test_no_way_from_there(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_route(*_: object) -> socket.socket:
        raise OSError(101, "Network is unreachable")

    async with echoing(identities) as (client, _, inbox):
        monkeypatch.setattr(migration, "connected_udp", no_route)
        with pytest.raises(
            MigrationError, match=r"cannot be reached from 127\.0\.0\.2:0: Network is unreachable"
        ) as caught:
            await client.migrate(OTHER)
        assert caught.value.problem == "unreachable"
        with pytest.raises(MigrationError, match="cannot be reached: Network is unreachable"):
            await client.migrate()
        await round_trip(client, inbox)


async def test_only_clients_move(identities: Identities) -> None:
    async with echoing(identities) as (_, accepted, _inbox):
        for verb in (accepted.migrate, accepted.rebind):
            with pytest.raises(UsageError, match="only the client's side"):
                await verb()


# --- rebinding


async def test_rebinding(identities: Identities) -> None:
    async with echoing(identities) as (client, accepted, inbox):
        told = moves(accepted)
        await round_trip(client, inbox, bytes(BULK))
        before = client.local_address
        window = client.congestion_window
        result = await client.rebind()
        assert (result.kind, result.old_local, result.new_local) == ("rebinding", before, client.local_address)
        assert before[0] == client.local_address[0]
        assert before != client.local_address
        assert (result.old_sequence, result.new_sequence, result.challenges) == (0, 0, 0)
        assert not result.congestion_reset
        assert client.congestion_window >= window
        await round_trip(client, inbox)
        assert accepted.peer_address == client.local_address
        # The server used the new port before it knew that we are there, and validated it then.
        await settle(lambda: bool(told))
        assert told == [(before, client.local_address)]
        assert events(accepted, "path_updated")[0]["validated"] is False
        assert events(accepted, "path_validated")[0]["congestion_reset"] is False
        assert events(client, "path_updated")[0]["new_local"] == client.local_address


async def test_rebinding_under_load(identities: Identities) -> None:
    async with echoing(identities) as (client, _, inbox):
        data = random.Random(2).randbytes(4 * BULK)
        client.control.write(data)
        for turn in range(6):
            await inbox.until(lambda turn=turn: len(inbox.data) > turn * BULK // 2)  # type: ignore[misc]
            await client.rebind()
        assert await inbox.read(len(data)) == data


async def test_a_rebinding_that_reaches_nobody_is_undone(identities: Identities) -> None:
    async with relayed(identities) as (client, _, inbox, relay):
        await round_trip(client, inbox)
        before = client.local_address
        relay.blackhole = True
        with pytest.raises(MigrationError, match=f"nothing came back .* goes on from 127.0.0.1:{before[1]}") as caught:
            await client.rebind(timeout=0.2)
        assert caught.value.problem == "not validated"
        assert client.local_address == before
        assert len(sockets(client)) == 1
        relay.blackhole = False
        await round_trip(client, inbox)


async def test_rebinding_where_the_address_is_gone(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    async with echoing(identities) as (client, _, inbox):
        with monkeypatch.context() as patch:
            patch.setattr(type(client.paths.endpoint), "socket_name", ("192.0.2.1", 9))
            with pytest.raises(MigrationError, match=r"cannot send from local_address 192\.0\.2\.1:0") as caught:
                await client.rebind()
        assert caught.value.problem == "unreachable"
        await client.rebind()
        await round_trip(client, inbox)


async def test_a_nat_that_forgets_is_noticed_by_the_server_alone(identities: Identities) -> None:
    async with relayed(identities) as (client, accepted, inbox, relay):
        told = moves(accepted)
        await round_trip(client, inbox)
        client.control.write(bytes(BULK))
        await inbox.until(lambda: len(inbox.data) > 10_000)
        before = accepted.peer_address
        relay.rebind()
        assert await inbox.read(BULK) == bytes(BULK)
        await settle(lambda: bool(told))
        assert told == [(before, accepted.peer_address)]
        assert events(client, "path_updated") == []


async def test_what_waited_on_the_servers_side_comes_after_a_rebinding(identities: Identities) -> None:
    """The server's packets went to the old port meanwhile; they are sent anew as soon as it knows the new one."""
    async with relayed(identities) as (client, accepted, inbox, relay):
        await round_trip(client, inbox)
        relay.blackhole = True
        accepted.control.write(b"into the void")
        await asyncio.sleep(0.7)  # long enough for probe timeouts to back off
        relay.blackhole = False
        relay.rebind()
        await client.ping()
        assert await inbox.read(13) == b"into the void"


# --- attackers


async def test_a_copy_from_elsewhere_is_no_migration(identities: Identities) -> None:
    """RFC 9000 section 9.3.1: who sends a client's packet from elsewhere gets three times as much, and no more."""
    async with relayed(identities) as (client, accepted, inbox, relay):
        told = moves(accepted)
        await round_trip(client, inbox)
        before = accepted.peer_address
        relay.blackhole = True
        seen = len(relay.to_server)
        client.control.write(b"x" * 500)
        await settle(lambda: len(relay.to_server) > seen)
        copy = relay.to_server[seen]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.bind(("127.0.0.9", 0))
            attacker.setblocking(False)
            attacker.sendto(copy, accepted.local_address)
            await settle(lambda: accepted.peer_address == attacker.getsockname())
            accepted.control.write(bytes(BULK))
            await settle(lambda: accepted.peer_address == before)  # it was never validated
            got = 0
            while True:
                try:
                    got += len(attacker.recv(65_535))
                except BlockingIOError:
                    break
            assert 0 < got <= 3 * len(copy)
        relay.blackhole = False
        assert await inbox.read(500 + BULK)
        assert told == []
        assert events(accepted, "path_validated") == []
        assert not client.is_closed


# --- a server's preferred address


async def test_a_preferred_address_is_followed(identities: Identities) -> None:
    async with serving(identities, preferred_address=("127.0.0.3", 0)) as server:
        server.on_stream = echo
        first, preferred = server.listener.addresses
        assert preferred[0] == "127.0.0.3"
        async with connected(server, identities) as (client, accepted):
            inbox = Inbox(client.control)
            told = moves(accepted)
            await settle(lambda: client.peer_address == preferred)
            await round_trip(client, inbox, bytes(BULK))
            assert accepted.local_address == preferred
            assert accepted.peer_address == client.local_address
            await settle(lambda: bool(told))
            assert private_paths.connection_id_sequence(client.engine) == 1
            [updated] = events(client, "path_updated")
            assert (updated["old_peer"], updated["new_peer"]) == (first, preferred)
            assert client.refresh_report().remote_transport_parameters["preferred_address"]["ipv4"] == preferred
            # From there on it goes as before.
            await client.migrate(OTHER)
            await client.rebind()
            await round_trip(client, inbox)
            assert client.peer_address == preferred


async def test_who_prefers_an_address_but_no_migration(identities: Identities) -> None:
    """RFC 9000 section 18.2: the ban is on the address of the handshake only."""
    options: dict[str, Any] = {"preferred_address": ("127.0.0.3", 0), "disable_active_migration": True}
    async with echoing(identities, **options) as (client, _, inbox):
        await settle(lambda: client.peer_address[0] == "127.0.0.3")
        await client.migrate(OTHER)
        await round_trip(client, inbox)


async def test_a_preferred_address_where_nobody_is(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "PREFERRED_TIMEOUT", 0.25)
    async with serving(identities, preferred_address=("127.0.0.3", 0)) as server:
        server.on_stream = echo
        first, preferred = server.listener.addresses
        server.listener._endpoints[1].close()
        async with connected(server, identities) as (client, _):
            await settle(lambda: bool(events(client, "preferred_address_unused")))
            [unused] = events(client, "preferred_address_unused")
            assert unused["peer"] == preferred
            assert "no answer on the path" in unused["reason"]
            assert "Connection refused" in unused["reason"]
            assert client.peer_address == first
            await round_trip(client, Inbox(client.control))
            await client.migrate()


async def test_closing_while_a_preferred_address_is_validated(identities: Identities) -> None:
    async with serving(identities, preferred_address=("127.0.0.3", 0)) as server:
        server.listener._endpoints[1].close()
        client = await open_quic(server.address, trust=identities.trust)
        await settle(lambda: bool(events(client, "path_challenged")))
        used = sockets(client)
        await client.close()
        assert all(endpoint.is_closed for endpoint in used)


async def test_a_taken_preferred_address(identities: Identities, free_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.3", 0))
        with pytest.raises(LabError, match="in use"):
            async with serving(identities, port=free_port, preferred_address=taken.getsockname()):
                pass
    async with serving(identities, port=free_port):  # nothing was left open
        pass
