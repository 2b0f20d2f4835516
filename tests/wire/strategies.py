"""Hypothesis strategies for control packets that are valid in a version, and the end that may receive each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mqttquic_lab.mqtt import (
    PROPERTIES,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Property,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Receiver,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Version,
    Will,
)
from mqttquic_lab.mqtt.reason_codes import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Mapping

ONLY_AT: Mapping[str, Receiver] = {
    "CONNECT": "server",
    "CONNACK": "client",
    "SUBSCRIBE": "server",
    "SUBACK": "client",
    "UNSUBSCRIBE": "server",
    "UNSUBACK": "client",
    "PINGREQ": "server",
    "PINGRESP": "client",
}
V311_RETURN_CODES = (0x00, 0x84, 0x85, 0x88, 0x86, 0x87)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
packet_ids = st.integers(1, 65_535)
payloads = st.binary(max_size=300)
qualities = st.integers(0, 2)

_levels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#/"), max_size=4)
topics = st.lists(_levels, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def _plain_filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.one_of(_levels, st.just("+")), min_size=0, max_size=4))
    if draw(st.booleans()) or not levels:
        levels.append("#")
    return "/".join(levels) or "+"


filters = st.one_of(topics, _plain_filters()).filter(lambda text: not text.startswith("$share/"))
shared_filters = st.tuples(_levels.filter(bool), filters).map(lambda pair: f"$share/{pair[0]}/{pair[1]}")


def _values(row: Property) -> st.SearchStrategy[Any]:
    if row.kind == "pair":
        return st.lists(st.tuples(text, text), min_size=1, max_size=3)
    if row.name == "subscription_identifier":
        return st.lists(st.integers(1, 268_435_455), min_size=1, max_size=1)
    if row.name == "response_topic":
        return topics
    if row.kind == "utf8":
        return text
    if row.kind == "binary":
        return st.binary(max_size=8)
    return st.integers(row.least, row.most)


@st.composite
def properties(draw: st.DrawFn, place: str, version: Version, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Draw a property block that may stand in `place`."""
    if version == 4:
        return {}
    rows = {row.name: _values(row) for row in PROPERTIES if place in row.places and row.name not in exclude}
    block = draw(st.fixed_dictionaries({}, optional=rows))
    if "authentication_data" in block and "authentication_method" not in block:
        del block["authentication_data"]
    return {name: block[name] for name in draw(st.permutations(sorted(block)))}


def _codes(name: str, version: Version) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(ALLOWED[name])) if version == 5 else st.just(0)


@st.composite
def wills(draw: st.DrawFn, version: Version) -> Will:
    return Will(draw(topics), draw(payloads), draw(qualities), draw(st.booleans()), draw(properties("WILL", version)))


@st.composite
def connects(draw: st.DrawFn, version: Version) -> Connect:
    username = draw(st.none() | text)
    password = draw(st.none() | st.binary(max_size=8)) if version == 5 or username is not None else None
    clean_start = draw(st.booleans())
    client_id = draw(text if version == 5 or clean_start else text.filter(bool))
    return Connect(
        client_id,
        version,
        clean_start,
        draw(st.integers(0, 65_535)),
        username,
        password,
        draw(st.none() | wills(version)),
        draw(properties("CONNECT", version)),
    )


@st.composite
def connacks(draw: st.DrawFn, version: Version) -> ConnAck:
    code = draw(_codes("CONNACK", 5) if version == 5 else st.sampled_from(V311_RETURN_CODES))
    return ConnAck(draw(st.booleans()) and not code, code, draw(properties("CONNACK", version)))


@st.composite
def publishes(draw: st.DrawFn, version: Version, receiver: Receiver = "server") -> Publish:
    qos = draw(qualities)
    exclude = frozenset({"subscription_identifier"} if receiver == "server" else ())
    block = draw(properties("PUBLISH", version, exclude))
    topic = draw(topics)
    if "topic_alias" in block and draw(st.booleans()):
        topic = ""
    if "subscription_identifier" in block:
        block["subscription_identifier"] = draw(st.lists(st.integers(1, 268_435_455), min_size=1, max_size=3))
    return Publish(
        topic,
        draw(payloads),
        qos,
        draw(st.booleans()),
        bool(qos) and draw(st.booleans()),
        draw(packet_ids) if qos else None,
        block,
    )


@st.composite
def acknowledgements(draw: st.DrawFn, version: Version) -> Packet:
    cls = draw(st.sampled_from([PubAck, PubRec, PubRel, PubComp]))
    return cls(draw(packet_ids), draw(_codes(cls.NAME, version)), draw(properties(cls.NAME, version)))


@st.composite
def _subscriptions(draw: st.DrawFn, version: Version) -> Subscription:
    if version == 4:
        return Subscription(draw(filters), draw(qualities))
    shared = draw(st.booleans())
    return Subscription(
        draw(shared_filters if shared else filters),
        draw(qualities),
        not shared and draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 2)),
    )


@st.composite
def subscribes(draw: st.DrawFn, version: Version) -> Subscribe:
    subscriptions = draw(st.lists(_subscriptions(version), min_size=1, max_size=3))
    return Subscribe(draw(packet_ids), subscriptions, draw(properties("SUBSCRIBE", version)))


@st.composite
def subacks(draw: st.DrawFn, version: Version) -> SubAck:
    codes = _codes("SUBACK", 5) if version == 5 else st.sampled_from([0, 1, 2, 0x80])
    return SubAck(draw(packet_ids), draw(st.lists(codes, min_size=1, max_size=4)), draw(properties("SUBACK", version)))


@st.composite
def unsubscribes(draw: st.DrawFn, version: Version) -> Unsubscribe:
    names = draw(st.lists(filters if version == 4 else filters | shared_filters, min_size=1, max_size=3))
    return Unsubscribe(draw(packet_ids), names, draw(properties("UNSUBSCRIBE", version)))


@st.composite
def unsubacks(draw: st.DrawFn, version: Version) -> UnsubAck:
    codes = draw(st.lists(_codes("UNSUBACK", 5), min_size=1, max_size=4)) if version == 5 else []
    return UnsubAck(draw(packet_ids), codes, draw(properties("UNSUBACK", version)))


@st.composite
def disconnects(draw: st.DrawFn, version: Version, receiver: Receiver = "server") -> Disconnect:
    if version == 4:
        return Disconnect()
    exclude = frozenset({"session_expiry_interval"} if receiver == "client" else ())
    server_only = {0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, *range(0x9A, 0xA3)}
    wrong = server_only if receiver == "server" else {0x04}
    code = draw(st.sampled_from(sorted(ALLOWED["DISCONNECT"] - wrong)))
    return Disconnect(code, draw(properties("DISCONNECT", version, exclude)))


@st.composite
def auths(draw: st.DrawFn, receiver: Receiver = "server") -> Auth:
    block = draw(properties("AUTH", 5))
    code = draw(st.sampled_from([0x18, 0x19] if receiver == "server" else [0x00, 0x18]))
    if code or block:
        block.setdefault("authentication_method", draw(text))
    return Auth(code, block)


def packets(version: Version, receiver: Receiver) -> st.SearchStrategy[Packet]:
    """Return a strategy for the packets that `receiver` may get in `version`."""
    choices: list[st.SearchStrategy[Packet]] = [publishes(version, receiver), acknowledgements(version)]
    if receiver == "server":
        choices += [connects(version), subscribes(version), unsubscribes(version), st.builds(PingReq)]
        choices += [disconnects(version)]
    else:
        choices += [connacks(version), subacks(version), unsubacks(version), st.builds(PingResp)]
        if version == 5:
            choices += [disconnects(version, receiver)]
    if version == 5:
        choices += [auths(receiver)]
    return st.one_of(choices)


def light(examples: int) -> settings:
    """Return settings for a property test: no deadline, because this machine's load is not what is tested."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


ENDS: list[tuple[Version, Receiver]] = [(5, "server"), (5, "client"), (4, "server"), (4, "client")]
"""Versions and receivers, for parametrizing."""
