"""The checks that all scenarios rest on can fail."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.helpers.lossy import Passage
from tests.scenarios import wire
from tests.scenarios.load import Load
from tests.scenarios.matrix import Row, table


def complete() -> Load:
    load = Load("load", each=3)
    load.acknowledged = set(load.messages())
    load.received = Counter(load.messages())
    return load


def test_a_complete_load_passes() -> None:
    complete().check()


def test_qos_1_may_come_again_but_qos_2_may_not() -> None:
    load = complete()
    once, exactly_once = min(load.acknowledged), max(load.acknowledged)
    load.received[once] += 1
    load.check()
    assert load.repeated == 1
    load.received[exactly_once] += 1
    with pytest.raises(AssertionError, match="1 QoS 2 messages were delivered more than once"):
        load.check()


def test_an_acknowledged_message_that_never_came_is_noticed() -> None:
    load = complete()
    load.received.popitem()
    with pytest.raises(AssertionError, match="not delivered"):
        load.check()


def test_a_message_that_came_changed_is_noticed() -> None:
    load = complete()
    load.received[1, "load/0", b"load 1 0 with a bit of something else"] += 1
    with pytest.raises(AssertionError, match="nobody sent"):
        load.check()


def test_amplification_is_counted_until_the_clients_first_handshake_packet_arrives() -> None:
    handshake = b"\xe0\0\0\0\x01" + b"\x08" + bytes(8) + b"\x08" + bytes(8) + b"\x40\x14" + bytes(20)
    assert [packet.type.name for packet in wire.packets(handshake)] == ["HANDSHAKE"]
    client = ("127.0.0.1", 1)
    log = [
        Passage(client, True, bytes(1200), "passed"),
        Passage(client, False, bytes(3600), "passed"),
        Passage(client, True, handshake, "dropped"),  # lost: the server does not know yet
        Passage(client, False, bytes(1200), "passed"),
        Passage(client, True, handshake, "passed"),
        Passage(client, False, bytes(9000), "passed"),
    ]
    assert wire.before_validation(log) == (1200, 4800, 4.0)


def test_the_matrix_has_a_line_per_scenario() -> None:
    row = Row("handshake", "nothing", "QUIC v1", 600, 0, 500, 1, 2, 3, "2", 0.25)
    lines = table([row, row]).splitlines()
    assert len(lines) == 4
    assert lines[2] == lines[3] == "| handshake | nothing | QUIC v1 | 600 | 0 | 500 | 1 | 2 | 3 | 2 | 0.2 |"
    assert len({line.count("|") for line in lines}) == 1
