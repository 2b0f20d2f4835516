"""The codec: PUBLISH packets decoded and encoded per second, beside paho-mqtt, mqtt5, ohmqtt and zmqtt in the same run.

Each contender gets what its own interface offers: ours and zmqtt take a stream of chunks, mqtt5 and ohmqtt one whole
packet per call (ohmqtt's reader is fused with its socket, so framing is left out there). paho-mqtt has no decoder apart
from its socket; its packet writer is driven through a client without a connection.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import platform
import time
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import PacketDecoder, encode_publish

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 500
"""Packets per timed call."""

CHUNK = 1200
"""Bytes per chunk: about what a QUIC datagram carries."""

PROPERTIES: dict[str, Any] = {
    "payload_format_indicator": 1,
    "message_expiry_interval": 60,
    "content_type": "application/json",
    "response_topic": "plant/answers",
    "user_property": [("unit", "celsius")],
}
WORKLOADS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "QoS 0, 64 B": (0, 64, {}),
    "QoS 1, 64 B": (1, 64, {}),
    "QoS 0, 64 B, 5 properties": (0, 64, PROPERTIES),
    "QoS 0, 1 KiB": (0, 1024, {}),
}
TOPICS = [f"plant/{number % 16}/temp" for number in range(COUNT)]

Contender = tuple[str, "Callable[[], object]"]


def _wire(qos: int, size: int, properties: dict[str, Any]) -> list[bytes]:
    return [
        encode_publish(topic, bytes(size), qos, packet_id=number + 1 if qos else None, properties=properties)
        for number, topic in enumerate(TOPICS)
    ]


def decoders(qos: int, size: int, properties: dict[str, Any]) -> list[Contender]:
    """Return what decodes :data:`COUNT` packets at a call; ours comes first."""
    packets = _wire(qos, size, properties)
    stream = b"".join(packets)
    chunks = [stream[at : at + CHUNK] for at in range(0, len(stream), CHUNK)]

    def ours() -> None:
        unit = PacketDecoder(5, receiver="client")
        assert sum(len(unit.feed(chunk)) for chunk in chunks) == COUNT

    def ours_singly() -> None:
        unit = PacketDecoder(5, receiver="client")
        for packet in packets:
            unit.feed(packet)

    found: list[Contender] = [("mqttquic_lab", ours), ("mqttquic_lab, a packet per call", ours_singly)]
    with contextlib.suppress(ImportError):
        import mqtt5

        views = [memoryview(packet) for packet in packets]
        found.append(("mqtt5 (Rust)", lambda: [mqtt5.read(view) for view in views]))
    with contextlib.suppress(ImportError):
        from ohmqtt.packet import decode_packet

        found.append(("ohmqtt", lambda: [decode_packet(packet) for packet in packets]))
    with contextlib.suppress(ImportError):
        from zmqtt._internal.packets.reader import PacketBuffer

        def zmqtt() -> None:
            buffer = PacketBuffer("5.0")
            for chunk in chunks:
                buffer.feed(chunk)
                for _ in buffer:
                    pass

        found.append(("zmqtt", zmqtt))
    return found


def encoders(qos: int, size: int, properties: dict[str, Any]) -> list[Contender]:
    """Return what encodes :data:`COUNT` packets at a call; ours comes first."""
    payload = bytes(size)
    numbers: list[int | None] = [number + 1 if qos else None for number in range(COUNT)]
    jobs = list(zip(TOPICS, numbers, strict=True))

    def ours() -> None:
        for topic, number in jobs:
            encode_publish(topic, payload, qos, packet_id=number, properties=properties)

    found: list[Contender] = [("mqttquic_lab", ours)]
    with contextlib.suppress(ImportError):
        import mqtt5

        names = {"user_property": "user_properties"}
        arguments = {names.get(name, name): value for name, value in properties.items()}
        quality = mqtt5.QoS(qos)

        def rust() -> None:
            for topic, number in jobs:
                mqtt5.PublishPacket(topic, payload, qos=quality, packet_id=number, **arguments).write()

        found.append(("mqtt5 (Rust)", rust))
    with contextlib.suppress(ImportError):
        from ohmqtt.mqtt_spec import MQTTQoS
        from ohmqtt.packet import MQTTPublishPacket
        from ohmqtt.property import MQTTPublishProps

        camel = {name.title().replace("_", ""): value for name, value in properties.items()}
        quality_ohmqtt = MQTTQoS(qos)

        def ohmqtt() -> None:
            for topic, number in jobs:
                props = MQTTPublishProps(**camel)
                MQTTPublishPacket(topic, payload, quality_ohmqtt, False, number or 0, props).encode()

        found.append(("ohmqtt", ohmqtt))
    with contextlib.suppress(ImportError):
        from zmqtt._internal.packets.codec import encode
        from zmqtt._internal.packets.properties import PublishProperties
        from zmqtt._internal.packets.publish import Publish
        from zmqtt._internal.types.qos import QoS

        values = dict(properties)
        if values:
            values["user_properties"] = tuple(values.pop("user_property"))
        quality_zmqtt = QoS(qos)

        def zmqtt() -> None:
            for topic, number in jobs:
                props = PublishProperties(**values) if values else None
                packet = Publish(
                    topic=topic,
                    payload=payload,
                    qos=quality_zmqtt,
                    retain=False,
                    dup=False,
                    packet_id=number,
                    properties=props,
                )
                encode(packet, version="5.0")

        found.append(("zmqtt", zmqtt))
    paho = _paho(qos, payload, properties)
    if paho is not None:
        found.append(("paho-mqtt", paho))
    return found


def _paho(qos: int, payload: bytes, properties: dict[str, Any]) -> Callable[[], object] | None:
    """Return paho's packet writer, with its queue emptied instead of sent; None where paho is missing or changed."""
    try:
        client: Any = importlib.import_module("paho.mqtt.client")
        make_properties: Any = importlib.import_module("paho.mqtt.properties").Properties
    except ImportError:
        return None
    unit = client.Client(client.CallbackAPIVersion.VERSION2, protocol=client.MQTTv5)
    if not hasattr(unit, "_send_publish") or not hasattr(unit, "_out_packet"):
        return None
    block = None
    if properties:
        block = make_properties(3)  # of PUBLISH
        for name, value in properties.items():
            setattr(block, name.title().replace("_", ""), value)
    # A packet is queued only while there is a socket; with this one in place nothing is ever sent.
    unit._sock = _NoSocket()
    unit._thread = object()
    topics = [topic.encode() for topic in TOPICS]

    def write() -> None:
        for number, topic in enumerate(topics):
            unit._send_publish(number + 1, topic, payload, qos, False, False, None, block)
        assert len(unit._out_packet) == COUNT
        unit._out_packet.clear()

    write()
    return write


class _NoSocket:
    """Stands in for paho's socket."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def rate(call: Callable[[], object], seconds: float) -> float:
    """Return packets per second of the fastest repetition within `seconds`: the one least disturbed by others."""
    best = float("inf")
    stop = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        call()
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended >= stop:
            return COUNT / best


def run(seconds: float = 1.0) -> dict[str, Any]:
    """Return packets per second by task, workload and contender.

    Parameters
    ----------
    seconds : float
        Time per task and workload, shared by the contenders.
    """
    figures: dict[str, Any] = {"decode": {}, "encode": {}}
    for task, contenders in (("decode", decoders), ("encode", encoders)):
        for workload, parameters in WORKLOADS.items():
            calls = contenders(*parameters)
            figures[task][workload] = {name: rate(call, seconds / len(calls)) for name, call in calls}
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text: thousand packets per second, and ours as a multiple of each."""
    lines = []
    for task, workloads in figures.items():
        lines.append(f"\nPUBLISH {task}, MQTT 5.0 (thousand packets/s; ours is ... times as fast)")
        for workload, rates in workloads.items():
            lines.append(f"  {workload}")
            ours = rates["mqttquic_lab"]
            lines += [f"    {name:34}{value / 1e3:10,.0f}{ours / value:9.2f} x" for name, value in rates.items()]
    return "\n".join(lines)


def main() -> None:
    """Print the table, or the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_codec", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per task and workload (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = run(arguments.seconds)
    if arguments.json:
        print(json.dumps({"python": platform.python_version(), "codec": figures}, indent=2))
    else:
        print(tables(figures))


if __name__ == "__main__":
    main()
