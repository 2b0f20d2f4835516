"""Clients that go on whatever happens to their broker, and remember what they were told."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as paho_client
from paho.mqtt import packettypes
from paho.mqtt import properties as paho_properties_module

from mqttquic_lab.broker import BrokerConfig, BrokerProcess
from mqttquic_lab.errors import ConnectError, LabError
from mqttquic_lab.session import AsyncSession

if TYPE_CHECKING:
    from pathlib import Path

paho: Any = paho_client
paho_properties: Any = paho_properties_module

PATIENCE = 30.0
"""Seconds after which something that should happen counts as a hang."""
KEPT: dict[str, Any] = {"session_expiry_interval": 3600, "verify": False, "reconnect": False}
"""Options of our sessions: every broker process has a certificate authority of its own."""


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Victim:
    """A broker in a process of its own that is killed and started again with the same store and ports."""

    def __init__(self, store: Path, **options: Any) -> None:
        self.config = BrokerConfig(
            tls=False,
            tcp_port=free_port(socket.SOCK_STREAM),
            quic_port=free_port(socket.SOCK_DGRAM),
            store=store,
            **options,
        )
        self.broker: BrokerProcess
        self.kills = 0

    async def start(self) -> None:
        self.broker = BrokerProcess(self.config)
        await self.broker.start()

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)
        await self.broker.close()
        self.kills += 1

    @property
    def urls(self) -> dict[str, str]:
        return {"quic": f"quic://localhost:{self.config.quic_port}", "tcp": f"mqtt://localhost:{self.config.tcp_port}"}


class Ours:
    """One of our sessions; told to come back by its test."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    @classmethod
    async def open(cls, url: str, client_id: str) -> Self:
        return cls(await AsyncSession.open(url, client_id=client_id, clean_start=False, **KEPT))

    async def come_back(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                await self.session.reconnect(timeout=5.0)
            except (ConnectError, LabError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


class Sender(Ours):
    """Publishes numbered messages, as many as are acknowledged."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session)
        self.acknowledged: set[tuple[int, int]] = set()
        """(QoS, number)."""
        self.begun = 0
        self._back = asyncio.Event()
        self._back.set()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, topic: str, window: int) -> None:
        for qos in (1, 2):
            numbers = itertools.count()
            self._tasks += [asyncio.create_task(self._run(topic, qos, numbers)) for _ in range(window)]

    async def _run(self, topic: str, qos: int, numbers: itertools.count[int]) -> None:
        while not self._stopping:
            await self._back.wait()
            number = next(numbers)
            self.begun += 1
            try:
                await self.session.publish(f"{topic}/{qos}", b"%d" % number, qos, timeout=PATIENCE)
            except LabError:  # connection lost: the session sends it again, but nobody is told any more
                if self.session.state != "connected":
                    self._back.clear()
            else:
                self.acknowledged.add((qos, number))

    async def come_back(self) -> None:
        self._back.clear()
        await super().come_back()
        self._back.set()

    async def stop(self) -> None:
        """Let everything be acknowledged that was ever begun."""
        self._stopping = True
        self._back.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)
            while self.session.unacknowledged:
                await asyncio.sleep(0.02)


class Receiver(Ours):
    """Counts what arrives."""

    feed: Any

    async def subscribe(self, topic_filter: str) -> None:
        self.feed = await self.session.subscribe(topic_filter, 2, decode="raw", max_messages=10_000_000)

    def counts(self) -> Counter[tuple[str, int]]:
        frame = self.feed.df
        return Counter((t, int(p)) for t, p in zip(frame["topic"].astype(str), frame["payload"], strict=True))


class Paho:
    """A paho client in threads of its own; told to come back by its test.

    Left to itself, paho 2.1 tries to reconnect while the broker is down, and after an attempt that failed sends PUBLISH
    again for messages that it has sent PUBREL for already (``_messages_reconnect_reset_out`` takes its own state
    "resend PUBREL" for an unsent message). If only PUBCOMP was lost, that is a new message to any broker [MQTT-4.3.3].
    """

    def __init__(self, port: int, client_id: str) -> None:
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        self.received: Counter[tuple[str, int]] = Counter()
        self.acknowledged: set[tuple[int, int]] = set()
        self._published: set[int] = set()
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        self._changed = threading.Event()
        self._stopping = False
        self._sender: threading.Thread | None = None
        self.client.on_connect = lambda *_: self._connected.set()
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        properties = paho_properties.Properties(packettypes.PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()
        assert self._connected.wait(PATIENCE)

    def come_back(self) -> None:
        self.client.loop_stop()
        self._connected.clear()
        self.client.reconnect()
        self.client.loop_start()
        assert self._connected.wait(PATIENCE)

    def _on_message(self, _c: Any, _u: Any, message: Any) -> None:
        self.received[message.topic, int(message.payload)] += 1

    def subscribe(self, topic_filter: str) -> None:
        self.client.subscribe(topic_filter, qos=2)
        assert self._subscribed.wait(PATIENCE)

    def start(self, topic: str, window: int) -> None:
        """Publish at QoS 2 from a thread, so many unacknowledged at a time."""
        self._sender = threading.Thread(target=self._send, args=(topic, window), daemon=True)
        self._sender.start()

    def _send(self, topic: str, window: int) -> None:
        numbers = itertools.count()
        waiting: dict[int, int] = {}
        while waiting or not self._stopping:
            while len(waiting) < window and not self._stopping:
                number = next(numbers)
                # Its rc says that there is no connection now; the message waits all the same.
                waiting[self.client.publish(f"{topic}/2", b"%d" % number, qos=2).mid] = number
            self._changed.wait(0.2)
            self._changed.clear()
            for mid in self._published & waiting.keys():
                self._published.discard(mid)
                self.acknowledged.add((2, waiting.pop(mid)))

    def _on_publish(self, _c: Any, _u: Any, mid: int, reason: Any, _p: Any) -> None:
        assert reason.value in (0x00, 0x10, 0x92), reason  # 0x92: the PUBCOMP before was lost
        self._published.add(mid)
        self._changed.set()

    def stop(self) -> None:
        """Let everything be acknowledged that was ever begun."""
        self._stopping = True
        assert self._sender is not None
        self._sender.join(PATIENCE)
        assert not self._sender.is_alive(), "paho's messages are not acknowledged"

    def close(self) -> None:
        self._stopping = True
        self.client.disconnect()
        self.client.loop_stop()
