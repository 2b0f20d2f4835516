"""The options of a session that only QUIC has: tickets, early data, and what RFC 9000 and 9001 leave to choose."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import check_topic_name, encode_publish
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.tickets import TicketStore, process_tickets
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from mqttquic_lab.session.options import SessionOptions

ONLY_QUIC: dict[str, Any] = {
    "tickets": None,
    "early_data": False,
    "publish_early": (),
    "quic_version": None,
    "cipher_suites": None,
    "groups": None,
    "congestion": None,
    "idle_timeout": None,
    "quic_keepalive": True,
    "datagrams": False,
}
"""Option -> its default."""

MAX_EARLY = 100
"""Messages that may go before CONNACK."""
MAX_EARLY_ACKNOWLEDGED = 10
"""Of those at QoS 1 and 2: the broker's Receive Maximum is not known yet, and few brokers allow less."""
MAX_EARLY_BYTES = 64 * 1024
"""Bytes of their packets: a first flight has room for about 10 kB, what does not fit follows the handshake."""


@dataclass(frozen=True, slots=True)
class EarlyMessage:
    """A message that is published before CONNACK."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool

    def encode(self, packet_id: int | None, version: Version) -> bytes:
        """Return its PUBLISH."""
        return encode_publish(self.topic, self.payload, self.qos, self.retain, False, packet_id, None, version)


def settle_quic_options(options: SessionOptions) -> None:
    """Check the options that only QUIC has, and give them their final form.

    Raises
    ------
    UsageError
        One cannot be used, or they contradict one another.
    """
    knobs_of(options)
    if not isinstance(options.datagrams, bool):
        raise UsageError(f"datagrams={options.datagrams!r}: must be True or False")
    if not isinstance(options.quic_keepalive, bool):
        raise UsageError(f"quic_keepalive={options.quic_keepalive!r}: must be True or False")
    if options.idle_timeout is not None:
        seconds = parse_seconds(options.idle_timeout, name="idle_timeout")
        if seconds <= 0:
            raise UsageError("idle_timeout must be more than 0 seconds (RFC 9000 section 10.1)")
        object.__setattr__(options, "idle_timeout", seconds)
    if options.early_data not in (False, True, "publish"):
        raise UsageError(
            f'early_data={options.early_data!r}: must be True (CONNECT goes in the first flight), "publish" '
            "(messages of publish_early as well), or False"
        )
    object.__setattr__(options, "tickets", _store(options.tickets, bool(options.early_data)))
    object.__setattr__(options, "publish_early", _early_messages(options))


def refuse_without_quic(options: SessionOptions, url: str) -> None:
    """Raise UsageError for options that the transport of `url`, which is not QUIC, cannot honour."""
    given = [name for name, default in ONLY_QUIC.items() if getattr(options, name) != default]
    if given:
        many = len(given) > 1
        raise UsageError(
            f"{', '.join(given)} {'are options' if many else 'is an option'} of QUIC, and {url} is not: "
            f"leave {'them' if many else 'it'} out, or connect to a quic:// URL"
        )


def knobs_of(options: SessionOptions) -> Knobs:
    """Return version, cipher suites, groups, congestion controller, and whether DATAGRAM frames are taken."""
    return Knobs.of(
        quic_version=options.quic_version,
        cipher_suites=options.cipher_suites,
        groups=options.groups,
        congestion=options.congestion,
        datagrams=options.datagrams or options.streams == "flows",  # who speaks MQTT-next reads them
    )


def _store(wanted: Any, needed: bool) -> TicketStore | None:
    if wanted is False and needed:
        raise UsageError("early_data needs session tickets: leave tickets=False out")
    if wanted is None or wanted is False:
        return process_tickets() if needed else None
    if wanted is True:
        return process_tickets()
    if isinstance(wanted, TicketStore):
        return wanted
    if isinstance(wanted, (str, os.PathLike)) and str(wanted):
        return TicketStore(wanted)
    raise UsageError(f"tickets takes True, a path or an mq.TicketStore, not {type(wanted).__name__}")


def _early_messages(options: SessionOptions) -> tuple[EarlyMessage, ...]:
    if not isinstance(options.publish_early, (list, tuple)):
        raise UsageError("publish_early takes a list of (topic, payload), (topic, payload, qos) or with retain")
    found = tuple(_early_message(item) for item in options.publish_early)
    if not found:
        return ()
    if options.early_data != "publish":
        raise UsageError(
            'publish_early needs early_data="publish": messages in the first flight can be replayed by who records '
            "them, which must be said aloud (RFC 9001 section 9.2)"
        )
    if options.fallback:
        raise UsageError(
            "publish_early and fallback do not go together: when QUIC is given up nobody knows whether the messages "
            "arrived, and they might be published twice"
        )
    if any(message.qos == 2 for message in found) and not options.clean_start:
        raise UsageError(
            "publish_early at QoS 2 needs clean_start=True: in a session that the broker holds, a packet identifier "
            "may still belong to another message"
        )
    acknowledged = sum(message.qos > 0 for message in found)
    if len(found) > MAX_EARLY or acknowledged > MAX_EARLY_ACKNOWLEDGED:
        raise UsageError(
            f"publish_early takes {MAX_EARLY} messages at most, {MAX_EARLY_ACKNOWLEDGED} of them at QoS 1 or 2; "
            f"these are {len(found)} and {acknowledged}: publish the others when connected"
        )
    size = sum(len(message.encode(1 if message.qos else None, options.level)) for message in found)
    if size > MAX_EARLY_BYTES:
        raise UsageError(f"the messages of publish_early have {size} bytes, at most {MAX_EARLY_BYTES} may go early")
    return found


def _early_message(item: Any) -> EarlyMessage:
    if isinstance(item, EarlyMessage):
        return item
    if not isinstance(item, (list, tuple)) or not 2 <= len(item) <= 4:
        raise UsageError(f"publish_early: {item!r:.80} is not (topic, payload), with qos and retain if wanted")
    topic, payload, *rest = item
    qos = rest[0] if rest else 0
    retain = rest[1] if len(rest) > 1 else False
    check_topic_name(topic)
    if qos not in (0, 1, 2) or isinstance(qos, bool):
        raise UsageError(f"publish_early: qos={qos!r} must be 0, 1 or 2")
    if not isinstance(retain, bool):
        raise UsageError(f"publish_early: retain={retain!r} must be True or False")
    return EarlyMessage(topic, encode_payload(payload), qos, retain)
