"""Keep-alive on a clock of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt.keepalive import KeepAlive, ServerKeepAlive

if TYPE_CHECKING:
    from collections.abc import Callable


def test_an_idle_client_pings_before_the_interval_is_over() -> None:
    keepalive = KeepAlive(60, 100.0)
    deadline = keepalive.next_deadline()
    assert deadline is not None
    assert 100.0 < deadline < 160.0
    assert keepalive.poll(deadline - 0.1) is None
    assert keepalive.poll(deadline) == "ping"
    assert keepalive.poll(deadline) is None  # once is enough
    keepalive.received(deadline + 0.05)
    following = keepalive.next_deadline()
    assert following is not None
    assert deadline < following < deadline + 60
    assert keepalive.pings == 1


def test_sending_alone_puts_the_ping_off_only_while_something_arrives() -> None:
    keepalive = KeepAlive(10, 0.0)
    for second in range(1, 9):
        keepalive.sent(second)
        keepalive.received(second)
    assert keepalive.poll(9.5) is None
    # QoS 0 goes on being sent, nothing arrives: the peer may be gone, so ask.
    for second in range(9, 17):
        keepalive.sent(second)
    assert keepalive.poll(17.5) == "ping"


def test_receiving_alone_does_not_put_the_ping_off() -> None:
    keepalive = KeepAlive(10, 0.0)
    for second in range(1, 10):
        keepalive.received(second)
    assert keepalive.poll(9.5) == "ping"


def test_a_server_that_does_not_answer_is_dead() -> None:
    keepalive = KeepAlive(10, 0.0, response_timeout=3)
    assert keepalive.poll(9.0) == "ping"
    assert keepalive.next_deadline() == 12.0
    assert keepalive.poll(11.9) is None
    assert keepalive.poll(12.0) == "dead"


def test_what_is_sent_after_a_ping_does_not_keep_a_dead_server_alive() -> None:
    keepalive = KeepAlive(10, 0.0, response_timeout=5)
    assert keepalive.poll(9.0) == "ping"
    for tenth in range(90, 140):
        keepalive.sent(tenth / 10)
        assert keepalive.poll(tenth / 10) is None
    assert keepalive.poll(14.0) == "dead"


def test_any_packet_answers_a_ping() -> None:
    keepalive = KeepAlive(10, 0.0, response_timeout=3)
    assert keepalive.poll(9.0) == "ping"
    keepalive.received(11.0)
    assert keepalive.poll(12.0) is None
    assert keepalive.poll(18.0) == "ping"


@pytest.mark.parametrize("response_timeout", [3.0, 30.0])
def test_a_stalled_loop_gives_the_peer_one_more_second(response_timeout: float) -> None:
    keepalive = KeepAlive(10, 0.0, response_timeout=response_timeout)
    assert keepalive.poll(9.0) == "ping"
    late = 9.0 + response_timeout + 60  # the cell computed for a minute; PINGRESP may wait unread
    assert keepalive.poll(late) == "ping"  # not "dead"; and nothing was sent for long
    assert keepalive.stalls == 1
    assert keepalive.next_deadline() == late + 1
    assert keepalive.poll(late + 1) == "dead"


def test_an_answer_read_after_a_stall_saves_the_connection() -> None:
    keepalive = KeepAlive(10, 0.0, response_timeout=3)
    assert keepalive.poll(9.0) == "ping"
    assert keepalive.poll(72.0) == "ping"
    keepalive.received(72.1)
    assert keepalive.poll(73.0) is None
    assert keepalive.poll(81.0) == "ping"
    assert keepalive.poll(84.0) == "dead"


def test_the_server_waits_one_and_a_half_intervals() -> None:
    keepalive = ServerKeepAlive(10, 0.0)
    assert keepalive.next_deadline() == 15.0
    assert keepalive.poll(14.9) is None
    keepalive.sent(14.9)  # what the server sends proves nothing
    assert keepalive.poll(15.0) == "dead"
    keepalive = ServerKeepAlive(10, 0.0)
    keepalive.received(14.9)
    assert keepalive.poll(15.0) is None
    assert keepalive.next_deadline() == pytest.approx(29.9)


def test_the_server_gives_each_silence_one_second_after_a_stall() -> None:
    keepalive = ServerKeepAlive(10, 0.0)
    assert keepalive.poll(100.0) is None
    assert keepalive.poll(100.9) is None
    keepalive.received(100.9)
    assert keepalive.poll(101.0) is None
    assert keepalive.poll(200.0) is None  # another silence, another stall
    assert keepalive.poll(201.0) == "dead"
    assert keepalive.stalls == 2


@pytest.mark.parametrize("make", [KeepAlive, ServerKeepAlive])
def test_zero_switches_it_off(make: Callable[[float, float], KeepAlive | ServerKeepAlive]) -> None:
    keepalive = make(0, 0.0)
    assert keepalive.next_deadline() is None
    assert keepalive.poll(1e9) is None


@pytest.mark.parametrize("make", [KeepAlive, ServerKeepAlive])
@pytest.mark.parametrize("interval", [-1, 65_536, float("nan")])
def test_intervals_out_of_range(make: Callable[[float, float], KeepAlive | ServerKeepAlive], interval: float) -> None:
    with pytest.raises(UsageError, match="65535"):
        make(interval, 0.0)


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 50), st.sampled_from(["sent", "received", "both"])), max_size=40),
)
def test_a_client_that_obeys_is_never_dead_to_its_server(interval: int, traffic: list[tuple[float, str]]) -> None:
    """Polled at its deadlines, and answered at once, the client never leaves 1.5 intervals of silence."""
    client, server, now = KeepAlive(interval, 0.0), ServerKeepAlive(interval, 0.0), 0.0
    for pause, what in traffic:
        until = now + pause
        while (deadline := client.next_deadline()) is not None and deadline <= until:
            now = max(now, deadline)
            assert server.poll(now) is None
            verdict = client.poll(now)
            assert verdict == "ping"
            server.received(now)
            client.received(now)
        now = until
        assert server.poll(now) is None
        if what in {"sent", "both"}:
            client.sent(now)
            server.received(now)
        if what in {"received", "both"}:
            client.received(now)
    assert server.stalls == 0
