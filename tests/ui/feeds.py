"""Feeds and sessions that need no network: real logs, everything else pretended."""

from __future__ import annotations

import json
import math
import random
import time
from typing import TYPE_CHECKING, Any

from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.records.log import MessageLog

if TYPE_CHECKING:
    from collections.abc import Callable

START_NS = 1_795_000_000_000_000_000
"""A moment in November 2026."""

SECOND = 1_000_000_000


class FakeFeed:
    def __init__(self, *filters: str, log: MessageLog | None = None, session: Any = None) -> None:
        self.filters = filters or ("plant/#",)
        self.log = MessageLog(decode="json") if log is None else log  # an empty log is false
        self.session = session
        self.is_active = True

    def put(
        self, topic: str, payload: bytes | str, time_ns: int = START_NS, *, latency: float | None = None, **fields: Any
    ) -> None:
        data = payload.encode() if isinstance(payload, str) else payload
        properties: dict[str, Any] = dict(fields.pop("properties", {}))
        if latency is not None:
            properties["user_property"] = [("sent_ns", str(time_ns - round(latency * 1e9)))]
        self.log.append(time_ns, topic, data, properties=properties or None, **fields)


class FakeSession:
    def __init__(self, *feeds: FakeFeed, report: HandshakeReport | None = None) -> None:
        self.feeds = list(feeds)
        self.handshake = report or HandshakeReport(
            url="quic://127.0.0.1:14567", state="connected", client_id="lab-7f2c"
        )
        self.url = self.handshake.url
        self.client_id = self.handshake.client_id
        self.transport = self.handshake.transport
        self.state = "connected"
        self.errors: list[Any] = []
        self.stats: Any = None
        self.published: list[tuple[Any, ...]] = []
        self.on_publish: Callable[[], Any] = lambda: None
        for feed in feeds:
            feed.session = self

    def publish(self, topic: str, payload: Any = None, qos: int = 0, retain: bool = False) -> Any:
        self.published.append((topic, payload, qos, retain))
        return self.on_publish()


def plant(feed: FakeFeed, now_ns: int, *, seconds: float = 60, rate: float = 40, seed: int = 4) -> None:
    """Let a small factory publish: what a screenshot should look like."""
    r = random.Random(seed)
    count = int(seconds * rate)
    for i in range(count):
        t = now_ns - int((count - i) / rate * SECOND)
        age = i / rate
        if r.random() > 0.75 + 0.25 * math.sin(age / 7):
            continue
        latency = max(0.0004, r.lognormvariate(math.log(0.0026), 0.5) * (1 + 0.4 * math.sin(age / 9)))
        line = 1 + i % 2
        kind = r.random()
        common = {
            "qos": i % 3,
            "stream_id": 4 * line,
            "packet_id": i % 65535 + 1 if i % 3 else None,
            "latency": latency,
        }
        if kind < 0.5:
            value = 21.5 + 2 * math.sin(age / 10 + line) + r.random() / 5
            feed.put(f"plant/{line}/temp", json.dumps({"c": round(value, 2), "ok": True}), t, **common)
        elif kind < 0.9:
            feed.put(f"plant/{line}/rpm", str(round(1480 + 30 * math.sin(age / 4) + r.random() * 4)), t, **common)
        elif kind < 0.97:
            feed.put("plant/1/door", "open" if r.random() < 0.5 else "closed", t, retain=True, **common)
        elif kind < 0.985:
            properties = {"content_type": "application/octet-stream"}
            feed.put("fw/image", bytes(r.randrange(256) for _ in range(3000)), t, stream_id=12, properties=properties)
        else:
            feed.put("$SYS/broker/clients", str(r.randrange(3, 9)), t, stream_id=0)


def now_ns() -> int:
    return time.time_ns()
