"""Packets written byte by byte, for what the codec refuses to build."""

from __future__ import annotations

from mqttquic_lab.mqtt.writing import varint


def text(data: bytes | str) -> bytes:
    """Return a string with its length in front, whatever its bytes are."""
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, *parts: bytes) -> bytes:
    """Return a packet with the right remaining length."""
    body = b"".join(parts)
    return bytes((first,)) + varint(len(body)) + body


def block(*properties: bytes) -> bytes:
    """Return a property length and the properties."""
    body = b"".join(properties)
    return varint(len(body)) + body


def connect(
    *payload: bytes,
    level: int = 5,
    flags: int = 0x02,
    name: bytes | str = "MQTT",
    properties: bytes = b"\0",
    client_id: bytes | str = "raw",
) -> bytes:
    """Return a CONNECT; `payload` follows the client identifier."""
    head = text(name) + bytes((level, flags)) + b"\0\0" + (properties if level == 5 else b"")
    return packet(0x10, head, text(client_id), *payload)
