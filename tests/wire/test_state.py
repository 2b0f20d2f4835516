"""The two tables: complete, and right where the standard says something definite."""

from __future__ import annotations

import pytest

from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt.packets import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
)
from mqttquic_lab.mqtt.state import (
    CONNECTION_TABLE,
    DELIVERY_TABLE,
    ConnectionState,
    DeliveryState,
    PacketKind,
    Role,
    Violation,
    check_packet,
    packet_kind,
)

C, S = Role.CLIENT, Role.SERVER
METHOD = {"authentication_method": "SCRAM-SHA-1"}

PACKETS: dict[str, Packet] = {
    "connect": Connect("c", 5, True, 60, None, None, None, {}),
    "connect-auth": Connect("c", 5, True, 60, None, None, None, METHOD),
    "connack": ConnAck(False, 0, {}),
    "refused": ConnAck(False, 0x87, {}),
    "publish": Publish("a", b"", 0),
    "puback": PubAck(1),
    "pubrec": PubRec(1),
    "pubrel": PubRel(1),
    "pubcomp": PubComp(1),
    "subscribe": Subscribe(1, (Subscription("a", 0),), {}),
    "suback": SubAck(1, (0,), {}),
    "unsubscribe": Unsubscribe(1, ("a",), {}),
    "unsuback": UnsubAck(1, (0,), {}),
    "pingreq": PingReq(),
    "pingresp": PingResp(),
    "disconnect": Disconnect(0, {}),
    "auth": Auth(0x18, METHOD),
    "auth-success": Auth(0x00, METHOD),
    "reauthenticate": Auth(0x19, METHOD),
}
CLIENT_ONLY = {"connect", "connect-auth", "subscribe", "unsubscribe", "pingreq"}
SERVER_ONLY = {"connack", "refused", "suback", "unsuback", "pingresp"}
CONNECTION_KINDS = {packet_kind(packet) for packet in PACKETS.values()}


def test_every_role_state_and_packet_has_an_entry() -> None:
    assert len(CONNECTION_KINDS) == 19
    wanted = {(role, state, kind) for role in Role for state in ConnectionState for kind in CONNECTION_KINDS}
    assert set(CONNECTION_TABLE) == wanted


def test_every_delivery_state_and_packet_has_an_entry() -> None:
    sender = {DeliveryState.NONE, DeliveryState.AWAIT_PUBACK, DeliveryState.AWAIT_PUBREC, DeliveryState.AWAIT_PUBCOMP}
    answers = {PacketKind.PUBACK, PacketKind.PUBREC, PacketKind.PUBREC_REFUSED, PacketKind.PUBCOMP}
    receiver = {DeliveryState.NONE, DeliveryState.AWAIT_PUBREL}
    questions = {PacketKind.PUBLISH_QOS1, PacketKind.PUBLISH_QOS2, PacketKind.PUBREL}
    wanted = {(s, k) for s in sender for k in answers} | {(s, k) for s in receiver for k in questions}
    assert set(DELIVERY_TABLE) == wanted
    assert {state for state, _ in DELIVERY_TABLE} == set(DeliveryState)


def test_every_violation_cites_its_section() -> None:
    entries = [*CONNECTION_TABLE.values(), *DELIVERY_TABLE.values()]
    violations = [entry for entry in entries if isinstance(entry, Violation)]
    assert violations
    for violation in violations:
        assert violation.section.startswith("MQTT 5.0 section ")
        assert violation.reason_code >= 0x80
        assert not violation.rule or violation.rule.startswith("MQTT-")


def test_every_state_can_be_reached_and_left_only_to_states_of_the_table() -> None:
    nexts: dict[ConnectionState, set[ConnectionState]] = {}
    for (_, state, _), entry in CONNECTION_TABLE.items():
        if isinstance(entry, ConnectionState):
            nexts.setdefault(state, set()).add(entry)
    reached, frontier = {ConnectionState.IDLE}, {ConnectionState.IDLE}
    while frontier:
        frontier = {after for state in frontier for after in nexts.get(state, ())} - reached
        reached |= frontier
    assert reached == set(ConnectionState)
    assert ConnectionState.CLOSED not in nexts


@pytest.mark.parametrize("state", ConnectionState)
def test_nobody_sends_what_only_the_other_end_sends(state: ConnectionState) -> None:
    for role, names in ((C, SERVER_ONLY), (S, CLIENT_ONLY)):
        for name in names:
            with pytest.raises(ProtocolError, match=f"{role.name.lower()} is sent by"):
                check_packet(role, state, PACKETS[name])


@pytest.mark.parametrize(
    "steps",
    [
        "C connect, S connack, C subscribe, S suback, S publish, C puback, C pingreq, S pingresp, C disconnect",
        "C connect, S connack, C publish, S pubrec, C pubrel, S pubcomp, C unsubscribe, S unsuback, S disconnect",
        "C connect, C subscribe, C publish, C pingreq, S connack, S suback",  # sends on before CONNACK
        "C connect, C disconnect",
        "C connect, S refused",
        "C connect-auth, S auth, C auth, S auth, C auth, S connack, C publish",
        "C connect-auth, S auth, C disconnect",
        "C connect-auth, S refused",
        "C connect-auth, S connack, C reauthenticate, S publish, C puback, S auth-success, C disconnect",
        "C connect-auth, S connack, C reauthenticate, S auth-success, C reauthenticate, S auth-success, C publish",
        "C connect-auth, S connack, C reauthenticate, S disconnect",
    ],
)
def test_lives_of_connections(steps: str) -> None:
    state = ConnectionState.IDLE
    for step in steps.split(", "):
        who, name = step.split()
        state = check_packet(C if who == "C" else S, state, PACKETS[name])
    assert (state is ConnectionState.CLOSED) == steps.endswith(("disconnect", "refused"))


@pytest.mark.parametrize(
    ("before", "wrong", "rule"),
    [
        ("", "C publish", "MQTT-3.1.0-1"),
        ("", "C disconnect", "MQTT-3.1.0-1"),
        ("", "C auth", "MQTT-3.1.0-1"),
        ("", "S connack", "MQTT-3.1.0-1"),
        ("C connect", "C connect", "MQTT-3.1.0-2"),
        ("C connect", "C connect-auth", "MQTT-3.1.0-2"),
        ("C connect", "C auth", "MQTT-4.12.0-7"),
        ("C connect", "S auth", "MQTT-4.12.0-6"),
        ("C connect", "S publish", "MQTT-3.2.0-1"),
        ("C connect", "S pingresp", "MQTT-3.2.0-1"),
        ("C connect", "S disconnect", "MQTT-3.14.0-1"),
        ("C connect-auth", "C publish", "MQTT-3.1.2-30"),
        ("C connect-auth", "C reauthenticate", ""),
        ("C connect-auth", "C auth-success", ""),
        ("C connect-auth", "S auth-success", ""),
        ("C connect, S connack", "C connect", "MQTT-3.1.0-2"),
        ("C connect, S connack", "S connack", "MQTT-3.2.0-2"),
        ("C connect, S connack", "S refused", "MQTT-3.2.0-2"),
        ("C connect, S connack", "C auth", ""),
        ("C connect, S connack", "S auth", ""),
        ("C connect-auth, S connack, C reauthenticate", "C reauthenticate", ""),
        ("C connect-auth, S connack, C reauthenticate", "S reauthenticate", ""),
        ("C connect, S connack, C disconnect", "C publish", "MQTT-3.14.4-1"),
        ("C connect, S connack, S disconnect", "S publish", "MQTT-3.14.4-1"),
        ("C connect, S refused", "S connack", "MQTT-3.14.4-1"),
    ],
)
def test_what_must_not_be_sent(before: str, wrong: str, rule: str) -> None:
    state = ConnectionState.IDLE
    for step in before.split(", ") if before else ():
        who, name = step.split()
        state = check_packet(C if who == "C" else S, state, PACKETS[name])
    who, name = wrong.split()
    packet = PACKETS[name]
    with pytest.raises(ProtocolError) as caught:
        check_packet(C if who == "C" else S, state, packet)
    error = caught.value
    assert error.rule == rule
    assert error.reason_code == 0x82
    assert error.packet is packet
    assert packet.NAME in str(error)
    assert ("client" if who == "C" else "server") in str(error)


def test_v311_has_neither_auth_nor_a_servers_disconnect() -> None:
    connected = ConnectionState.CONNECTED
    for role, name in ((S, "disconnect"), (C, "reauthenticate"), (S, "auth"), (C, "auth-success")):
        with pytest.raises(ProtocolError, match=r"3\.1\.1"):
            check_packet(role, connected, PACKETS[name], version=4)
    assert check_packet(C, connected, PACKETS["disconnect"], version=4) is ConnectionState.CLOSED
    assert check_packet(S, connected, PACKETS["publish"], version=4) is connected


def test_a_refusing_connack_is_told_apart_in_both_versions() -> None:
    assert packet_kind(ConnAck(False, 0x87, {})) is PacketKind.CONNACK_REFUSED
    assert packet_kind(ConnAck(False, 0, {})) is PacketKind.CONNACK
    assert packet_kind(ConnAck(False, 0x87, {}), version=4) is PacketKind.CONNACK_REFUSED
