"""Codes of MQTT-next, the rules that use them, and the table of packets and flows: complete, and as in the draft."""

from __future__ import annotations

import itertools

import pytest

from mqttquic_lab.mqtt import (
    CONTROL_FLAGS,
    FLOW_PACKET_TABLE,
    FLOW_PHASES,
    TYPE_NAMES,
    ConnectionCode,
    ErrorLevel,
    FlowError,
    FlowKind,
    FlowPhase,
    StreamCode,
    check_flow_packet,
    connection_code_text,
    flow_rules,
    stream_code_text,
)
from mqttquic_lab.mqtt.flow_codes import as_stream_code
from mqttquic_lab.mqtt.flow_rules import FlowRule
from mqttquic_lab.mqtt.flow_state import Part
from tests.wire.test_state import PACKETS

RULES = {name: rule for name, rule in vars(flow_rules).items() if isinstance(rule, FlowRule)}


def test_numbers_of_the_draft() -> None:
    assert {code.name: int(code) for code in ConnectionCode} == {
        "NO_ERROR": 0x00,
        "TLS_ERROR": 0xB1,
        "UNSPECIFIED": 0xB2,
        "TOO_MANY_RECOVER_ATTEMPTS": 0xB3,
        "PROTOCOL_L0": 0xB4,
    }
    assert [int(code) for code in StreamCode] == [0, *range(0xB3, 0xC1)]
    assert StreamCode(0xC0) is StreamCode.SERVER_PUSH_NOT_WELCOME


def test_no_flow_state_has_two_numbers() -> None:
    assert StreamCode(0xB3) is StreamCode(0xC1) is StreamCode.NO_FLOW_STATE
    assert int(StreamCode.NO_FLOW_STATE) == 0xB3
    assert "NO_FLOW_STATE (0xC1)" in stream_code_text(0xC1)


def test_column_discard_state_of_the_draft() -> None:
    keeping = {0x00, 0xB4, 0xB5, 0xB7, 0xBA, 0xBB, 0xBD, 0xBE}
    assert {int(code) for code in StreamCode if not code.discards_state} == keeping


@pytest.mark.parametrize("code", [-1, 0, 0xB0, 0xB3, 0xC2, 2**62])
def test_texts_never_raise(code: int) -> None:
    for text in (connection_code_text(code), stream_code_text(code)):
        assert text
        assert f"0x{code:02X}" in text or code < 0
    assert (as_stream_code(code) is None) == (code in {-1, 0xB0, 0xC2, 2**62})


def test_every_code_has_its_own_words() -> None:
    for codes in (ConnectionCode, StreamCode):
        texts = [code.text for code in codes]
        assert len(set(texts)) == len(texts)


def test_every_rule_says_what_where_and_how_far() -> None:
    assert len(RULES) > 20
    for name, rule in RULES.items():
        error = rule.broken("detail", flow_id=4)
        assert rule.text in str(error), name
        assert f"MQoQ draft section {rule.section}" in str(error)
        assert error.flow_id == 4
        assert error.reason_code is not None
        assert error.reason_code >= 0x80
        assert rule.level is ErrorLevel.CONNECTION or rule.close is ConnectionCode.PROTOCOL_L0
    assert len({rule.text for rule in RULES.values()}) == len(RULES)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_of_level_2_never_tells_the_peer_to_discard(name: str) -> None:
    rule = RULES[name]
    if rule.level is ErrorLevel.STREAM and rule.code is not StreamCode.NO_FLOW_STATE:
        assert not rule.code.discards_state


def test_the_packet_table_is_complete() -> None:
    assert set(FLOW_PACKET_TABLE) == set(itertools.product(range(1, 16), FlowKind))


def test_the_packet_table_is_the_draft_s() -> None:
    def carried(kind: FlowKind) -> set[str]:
        return {TYPE_NAMES[type_] for type_, on in FLOW_PACKET_TABLE if on is kind and FLOW_PACKET_TABLE[type_, on]}

    everything = set(TYPE_NAMES[1:])
    session = {"CONNECT", "CONNACK", "DISCONNECT", "AUTH"}
    pings = {"PINGREQ", "PINGRESP"}
    subscribing = {"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK"}
    assert carried(FlowKind.CONTROL) == everything
    assert carried(FlowKind.CLIENT_DATA) == everything - session
    assert carried(FlowKind.SERVER_DATA) == everything - session - subscribing
    assert carried(FlowKind.DATAGRAM) == everything - session - pings
    assert carried(FlowKind.USER_DEFINED) == set()


@pytest.mark.parametrize("name", sorted(PACKETS))
@pytest.mark.parametrize("kind", FlowKind)
def test_check_flow_packet_follows_the_table(name: str, kind: FlowKind) -> None:
    packet = PACKETS[name]
    if FLOW_PACKET_TABLE[packet.TYPE, kind]:
        check_flow_packet(packet, kind)
        return
    with pytest.raises(FlowError, match=packet.NAME) as caught:
        check_flow_packet(packet, kind, 6)
    assert kind.text in str(caught.value)
    assert "a control flow" in str(caught.value)  # where it may travel
    assert caught.value.level is ErrorLevel.STREAM
    assert caught.value.flow_id == 6
    assert caught.value.packet is packet


def test_composite_states_are_complete_and_symmetric() -> None:
    assert set(FLOW_PHASES) == set(itertools.product(Part, Part))
    assert set(FLOW_PHASES.values()) == set(FlowPhase)
    mirrored = {
        FlowPhase.HALF_CLOSED_LOCAL: FlowPhase.HALF_CLOSED_REMOTE,
        FlowPhase.HALF_CLOSED_LOCAL_GRACEFUL: FlowPhase.HALF_CLOSED_REMOTE_GRACEFUL,
    }
    mirrored |= {b: a for a, b in mirrored.items()}
    for (sending, receiving), phase in FLOW_PHASES.items():
        assert FLOW_PHASES[receiving, sending] is mirrored.get(phase, phase)


def test_a_control_flow_keeps_what_a_session_keeps() -> None:
    assert CONTROL_FLAGS.persistent_qos
    assert CONTROL_FLAGS.persistent_subscriptions
    assert not CONTROL_FLAGS.persistent_topic_alias
    assert not CONTROL_FLAGS.clean
