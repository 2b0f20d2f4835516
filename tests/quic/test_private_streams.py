"""The schedule: which streams are looked at, in what order they fill packets, and the contract with aioquic on it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.logger import QuicLogger
from aioquic.quic.stream import QuicStreamReceiver, QuicStreamSender

from mqttquic_lab.quic import private, private_streams
from mqttquic_lab.quic.private import Engine
from mqttquic_lab.quic.private_streams import MAX_GRANTED, MAX_PASSED_OVER, Receiver, Sender
from tests.helpers.engines import CLIENT, SERVER, Engines

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

SOURCE = ast.parse(Path(private_streams.__file__).read_text())


@pytest.fixture
def engines(identities: Identities) -> Engines:
    pair = Engines(identities, window=10_000_000, max_data=10_000_000, quic_logger=QuicLogger())
    pair.deliver()
    return pair


def to_send(engine: Engine) -> set[int]:
    """The streams that the schedule would offer for the next packet."""
    offered = {stream.stream_id or 0 for stream in engine.schedule}
    engine.schedule.extend(())
    return offered


def received(engine: Engine) -> list[int]:
    """Stream ids of the data events, in order."""
    return [event.stream_id for event in Engines.events(engine) if isinstance(event, StreamDataReceived)]


def a_round(pair: Engines) -> list[tuple[int, int]]:
    """Hand over what a round trip allows; returns (stream id, size) of what arrived at the server, in order."""
    pair.now += 0.02
    arrived = []
    for _ in range(40):
        pair.now += 0.001  # so that pacing lets go
        sent = pair.client.datagrams_to_send(pair.now)
        for data, _ in sent:
            pair.server.receive_datagram(data, CLIENT, pair.now)
    for event in Engines.events(pair.server):
        if isinstance(event, StreamDataReceived):
            arrived.append((event.stream_id, len(event.data)))
    pair.now += 0.02
    for data, _ in pair.server.datagrams_to_send(pair.now):
        pair.client.receive_datagram(data, SERVER, pair.now)
    return arrived


# --- contract


def test_every_private_name_exists(engines: Engines) -> None:
    engine = engines.client
    engine.send_stream_data(0, b"x")
    stream = engine._streams[0]
    owners: list[Any] = [engine, stream.sender, stream.receiver, engine.schedule, engine._streams]
    names = {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert len(names) > 15
    missing = {name for name in names if not any(hasattr(owner, name) for owner in owners)}
    assert not missing, f"aioquic no longer has {sorted(missing)}"


def test_aioquic_goes_through_its_queue_as_the_schedule_expects() -> None:
    """Once to serve and once to rearrange, then extend, whatever happened; streams are put in with append."""
    write = inspect.getsource(QuicConnection._write_application)
    assert write.count("for stream in self._streams_queue") == 2
    assert write.index("finally:") < write.index("self._streams_queue = [") < write.index("self._streams_queue.extend(")
    assert write.count("_streams_queue") == 4
    assert write.count("self._streams.values()") == 1
    whole = inspect.getsource(QuicConnection)
    assert whole.count("self._streams_queue.append(stream)") == 2
    assert whole.count("_streams_queue") == 7
    assert whole.count("self._streams.values()") == 1, "aioquic asks for all streams elsewhere, too"
    assert "self._write_stream_frame(" in write


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Sender, QuicStreamSender), (Receiver, QuicStreamReceiver), (Engine, QuicConnection)]
)
def test_overridden_methods_have_the_same_shape(ours: type, theirs: type) -> None:
    names = [name for name in vars(ours) if inspect.isfunction(vars(ours)[name]) and name in vars(theirs)]
    for name in set(names) - {"__init__"}:
        mine, original = (list(inspect.signature(getattr(of, name)).parameters) for of in (ours, theirs))
        assert mine == original, name


def test_what_changes_a_stream_is_told_to_the_schedule() -> None:
    """Whatever sets what the packet loop looks at, in aioquic, is a method that we have overridden."""
    for original, ours, watched in (
        (QuicStreamSender, Sender, {"buffer_is_empty", "reset_pending", "is_finished"}),
        (QuicStreamReceiver, Receiver, {"stop_pending", "is_finished", "highest_offset"}),
    ):
        for name, method in inspect.getmembers(original, inspect.isfunction):
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
            changed = {
                target.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Attribute)
            }
            told = name in vars(ours) or name in ("get_frame", "get_reset_frame", "get_stop_frame")
            assert told or not changed & watched, f"{original.__name__}.{name} changes {changed & watched}"


# --- which are looked at


def test_only_streams_with_something_to_do_are_looked_at(engines: Engines) -> None:
    client, server = engines.client, engines.server
    for number in range(100):
        client.send_stream_data(4 * number, b"hello")
    engines.deliver()
    assert len(server._streams) == 100
    assert to_send(client) == to_send(server) == set()
    client.send_stream_data(200, b"x")
    client.reset_stream(40, 1)
    client.stop_stream(80, 1)
    server.send_stream_data(60, b"y", end_stream=True)
    assert to_send(client) == {40, 80, 200}
    assert to_send(server) == {60}
    engines.deliver()
    assert to_send(client) == to_send(server) == set()
    assert not client._streams.limits_due


def test_lost_data_resets_and_fin_are_sent_again(engines: Engines) -> None:
    client, server = engines.client, engines.server
    for number in range(4):
        client.send_stream_data(4 * number, b"hello")
    engines.deliver()
    Engines.events(server)
    client.send_stream_data(0, b"more", end_stream=True)
    client.reset_stream(4, 1)
    client.stop_stream(8, 2)
    client.datagrams_to_send(engines.now)  # lost
    assert to_send(client) == set()
    for _ in range(10):
        engines.now += 0.5
        engines.deliver(4)
    events = Engines.events(server)
    names = {type(event).__name__ for event in events}
    assert {"StreamDataReceived", "StreamReset", "StopSendingReceived"} <= names
    assert [event.data for event in events if isinstance(event, StreamDataReceived)] == [b"more"]


def test_nothing_is_kept_of_streams_that_are_over(engines: Engines) -> None:
    client, server = engines.client, engines.server
    for number in range(300):
        stream_id = 4 * number
        client.send_stream_data(stream_id, b"hello", end_stream=True)
        client.schedule.set_urgency(stream_id, 1)
        engines.deliver(6)
        assert stream_id in received(server)
        server.send_stream_data(stream_id, b"bye", end_stream=True)
        engines.deliver(6)
    for side in (client, server):
        side.send_ping(1)
    engines.deliver()
    for side in (client, server):
        schedule = side.schedule
        assert not side._streams
        assert not schedule._urgencies
        assert not schedule._unsettled
        assert not any(schedule._ready)
        assert not side._streams.limits_due


# --- in what order


def test_streams_of_one_urgency_take_turns(engines: Engines) -> None:
    for stream_id in (0, 4, 8):
        engines.client.send_stream_data(stream_id, bytes(50_000))
    order = [stream_id for stream_id, _ in a_round(engines)]
    assert len(order) >= 9
    firsts = order[: len(order) // 3 * 3]
    assert all(set(firsts[i : i + 3]) == {0, 4, 8} for i in range(0, len(firsts), 3))


def test_an_urgent_stream_overtakes_a_bulky_one(engines: Engines) -> None:
    """What is in flight is in flight; after that the urgent one has every packet but one in 33."""
    client = engines.client
    client.schedule.set_urgency(4, 7)
    client.send_stream_data(4, bytes(3_000_000))
    a_round(engines)
    client.schedule.set_urgency(8, 0)
    size = 300_000
    client.send_stream_data(8, bytes(size))
    before = after = urgent = 0
    while urgent < size:
        for stream_id, length in a_round(engines):
            if stream_id == 8:
                urgent += length
            elif urgent == 0:
                before += length
            elif urgent < size:
                after += length
    assert before < 30_000  # bytes of the bulk between the urgent data and its first packet
    assert after <= (size / 1100 / MAX_PASSED_OVER + 1) * 1200
    # And the rest comes.
    rest = 0
    for _ in range(100):
        rest += sum(length for stream_id, length in a_round(engines) if stream_id == 4)
    assert rest > 500_000


def test_nobody_starves(engines: Engines) -> None:
    """Streams of every urgency, all with more to send than is sent: each gets packets, the most urgent the most."""
    client = engines.client
    for urgency in range(8):
        stream_id = 4 * urgency
        client.send_stream_data(stream_id, bytes(2_000_000))
        client.schedule.set_urgency(stream_id, urgency)
    sent: dict[int, int] = dict.fromkeys(range(0, 32, 4), 0)
    while sum(sent.values()) < 500_000:
        for stream_id, length in a_round(engines):
            sent[stream_id] += length
    assert min(sent.values()) > 500_000 / 1200 / (MAX_PASSED_OVER + 8) * 1000 * 0.8
    assert sent[0] > sum(sent.values()) / 2


def test_a_stream_without_credit_does_not_hold_up_others(engines: Engines) -> None:
    client, server = engines.client, engines.server
    client.send_stream_data(0, b"x")
    engines.deliver()
    client._streams[0].max_stream_data_remote = 1  # the peer takes no more of it
    client.schedule.set_urgency(0, 0)
    client.send_stream_data(0, bytes(50_000))
    client.send_stream_data(4, b"y")
    Engines.events(server)
    engines.deliver()
    assert received(server) == [4]
    assert 0 in to_send(client)


def test_the_urgency_of_a_stream_with_data_waiting_can_change(engines: Engines) -> None:
    client, server = engines.client, engines.server
    client.send_stream_data(0, b"a")
    client.send_stream_data(4, b"b")
    client.schedule.set_urgency(4, 2)
    assert client.schedule.urgency(4) == 2
    engines.deliver()
    assert received(server) == [4, 0]
    client.send_stream_data(0, b"a")
    client.send_stream_data(4, b"b")
    client.schedule.set_urgency(4, 3)
    engines.deliver()
    assert received(server) == [0, 4]


# --- credit


def test_the_peer_may_open_another_stream_before_it_has_acknowledged_the_end_of_the_last(
    identities: Identities,
) -> None:
    pair = Engines(identities)
    private_streams.limit_streams(pair.server, 2, 2)
    pair.deliver()
    client, server = pair.client, pair.server
    for number in range(2):
        client.send_stream_data(4 * number, b"hello", end_stream=True)
    pair.deliver()
    assert private_streams.stream_credit(client) == 0
    server.send_stream_data(0, b"bye", end_stream=True)
    pair.now += 0.01
    for data, _ in server.datagrams_to_send(pair.now):
        client.receive_datagram(data, SERVER, pair.now)
    assert private_streams.stream_credit(client) == 1
    assert 0 in server._streams  # the client has not acknowledged yet
    pair.deliver()
    assert 0 not in server._streams
    assert server._local_max_streams_bidi.value == 3  # once for each stream
    server.send_stream_data(4, b"bye", end_stream=True)
    pair.deliver()
    client.send_ping(1)
    pair.deliver()
    assert server._local_max_streams_bidi.value == 4
    assert not server.schedule._granted


def test_credit_waits_for_both_directions(engines: Engines) -> None:
    client, server = engines.client, engines.server
    before = server._local_max_streams_bidi.value
    client.send_stream_data(0, b"hello")
    engines.deliver()
    server.send_stream_data(0, b"bye", end_stream=True)  # but the client has not ended its side
    engines.deliver()
    client.send_stream_data(4, b"hello", end_stream=True)
    engines.deliver()
    server.send_stream_data(4, b"bye")  # nor the server
    engines.deliver()
    assert server._local_max_streams_bidi.value == before


def test_a_peer_that_acknowledges_no_end_gets_so_much_credit_and_no_more(engines: Engines) -> None:
    client, server = engines.client, engines.server
    private.stop_pacing(server)
    before = server._local_max_streams_bidi.value
    for number in range(MAX_GRANTED + 40):
        client._remote_max_streams_bidi = server._local_max_streams_bidi.value = 1000 + before
        client.send_stream_data(4 * number, b"x", end_stream=True)
    for _ in range(20):
        engines.now += 0.01
        for data, _to in client.datagrams_to_send(engines.now):
            server.receive_datagram(data, CLIENT, engines.now)
    for number in range(MAX_GRANTED + 40):
        server.send_stream_data(4 * number, b"", end_stream=True)
    server.datagrams_to_send(engines.now)  # and never an answer
    assert server._local_max_streams_bidi.value == 1000 + before + MAX_GRANTED
