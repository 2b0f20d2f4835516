"""The same four jobs by each client: receive into a DataFrame, send, publish round trips, connect.

Each job runs in a process of its own (:mod:`tests.benchmarks.worker`) and returns plain figures. Times are taken on
``time.time`` (one machine, one clock) where two processes share them, else on ``time.perf_counter``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

INFLIGHT = 1000
"""Unacknowledged QoS 1 messages each sender may have, where the client lets one choose."""
TOPICS = tuple(f"bench/sensor/{number}" for number in range(16))
END = "bench/end"


@dataclass(frozen=True)
class Target:
    """Where to connect, and what to trust."""

    url: str
    ca_file: str
    tuning: str = "realistic"

    @property
    def host_port(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


def ready() -> None:
    """Tell the parent process that the subscription stands."""
    print("ready", flush=True)


class Lab:
    """This project, over whatever the URL says."""

    def connect(self, target: Target) -> Any:
        import mqttquic_lab as mq

        return mq.connect(target.url, ca_file=target.ca_file, tuning=target.tuning)

    def receive(self, target: Target, count: int, qos: int, timeout: float) -> dict[str, Any]:
        with self.connect(target) as session:
            feed = session.subscribe("bench/sensor/+", qos=qos, decode="raw")
            end = session.subscribe(END, qos=1, decode="raw")
            ready()
            end.wait(1, timeout=timeout)
            if qos:
                feed.wait(count, timeout=timeout)
            frame = feed.df
            done = time.time()
            transport = session.handshake.transport
        return {"rows": len(frame), "done": done, "transport": transport}

    def send(self, target: Target, count: int, qos: int, size: int) -> dict[str, Any]:
        payload = bytes(size)
        with self.connect(target) as session:
            start = time.time()
            session.publish_many(((TOPICS[i & 15], payload) for i in range(count)), qos=qos, timeout=300)
            sent = time.time()
            session.publish(END, b"", qos=1)
        return {"start": start, "sent": sent}

    def round_trips(self, target: Target, count: int, size: int) -> list[float]:
        payload, times = bytes(size), []
        with self.connect(target) as session:
            for _ in range(count):
                before = time.perf_counter()
                session.publish(TOPICS[0], payload, qos=1)
                times.append(time.perf_counter() - before)
        return times

    def connects(self, target: Target, count: int) -> list[float]:
        times = []
        for _ in range(count):
            before = time.perf_counter()
            session = self.connect(target)
            times.append(time.perf_counter() - before)
            session.close()
        return times


class Paho:
    """paho-mqtt with its own thread, as its documentation shows; rows as a list of dicts, as people do."""

    def client(self, target: Target) -> Any:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        client: Any = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        if urlsplit(target.url).scheme == "mqtts":
            client.tls_set(ca_certs=target.ca_file, tls_version=ssl.PROTOCOL_TLS_CLIENT)
        client.max_inflight_messages_set(INFLIGHT)
        client.max_queued_messages_set(0)
        client.on_socket_open = lambda _c, _u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def connect(self, target: Target) -> Any:
        client = self.client(target)
        up = threading.Event()
        client.on_connect = lambda *_: up.set()
        client.connect(*target.host_port)
        client.loop_start()
        if not up.wait(10):
            raise TimeoutError("paho did not connect")
        return client

    def receive(self, target: Target, count: int, qos: int, timeout: float) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        ended, subscribed = threading.Event(), threading.Event()

        def on_message(_client: Any, _userdata: Any, message: Any) -> None:
            if message.topic == END:
                ended.set()
                return
            rows.append(
                {
                    "time": time.time_ns(),
                    "topic": message.topic,
                    "payload": message.payload,
                    "qos": message.qos,
                    "retain": message.retain,
                }
            )

        client = self.connect(target)
        client.on_message = on_message
        client.on_subscribe = lambda *_: subscribed.set()
        client.subscribe([("bench/sensor/+", qos), (END, 1)])
        subscribed.wait(10)
        ready()
        ended.wait(timeout)
        frame = pd.DataFrame(rows)
        done = time.time()
        client.disconnect()
        client.loop_stop()
        return {"rows": len(frame), "done": done, "transport": "tls"}

    def send(self, target: Target, count: int, qos: int, size: int) -> dict[str, Any]:
        payload = bytes(size)
        client = self.connect(target)
        start = time.time()
        for i in range(count):
            info = client.publish(TOPICS[i & 15], payload, qos=qos)
        if qos:
            info.wait_for_publish(300)
        sent = time.time()
        client.publish(END, b"", qos=1).wait_for_publish(300)
        client.disconnect()
        client.loop_stop()
        return {"start": start, "sent": sent}

    def round_trips(self, target: Target, count: int, size: int) -> list[float]:
        payload, times = bytes(size), []
        client = self.connect(target)
        for _ in range(count):
            before = time.perf_counter()
            client.publish(TOPICS[0], payload, qos=1).wait_for_publish(10)
            times.append(time.perf_counter() - before)
        client.disconnect()
        client.loop_stop()
        return times

    def connects(self, target: Target, count: int) -> list[float]:
        times = []
        for _ in range(count):
            before = time.perf_counter()
            client = self.connect(target)
            times.append(time.perf_counter() - before)
            client.disconnect()
            client.loop_stop()
        return times


class Gmqtt:
    """gmqtt on its own asyncio loop (asyncio sets TCP_NODELAY); rows as a list of dicts."""

    async def _connect(self, target: Target) -> Any:
        from gmqtt import Client
        from gmqtt.mqtt.constants import MQTTv50

        client = Client(f"bench-{time.time_ns()}", receive_maximum=INFLIGHT)
        context = ssl.create_default_context(cafile=target.ca_file) if target.url.startswith("mqtts") else False
        await client.connect(*target.host_port, ssl=context, version=MQTTv50)
        return client

    def receive(self, target: Target, count: int, qos: int, timeout: float) -> dict[str, Any]:
        return asyncio.run(self._receive(target, qos, timeout))

    async def _receive(self, target: Target, qos: int, timeout: float) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        ended, subscribed = asyncio.Event(), asyncio.Event()

        def on_message(_client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
            if topic == END:
                ended.set()
            else:
                rows.append({"time": time.time_ns(), "topic": topic, "payload": payload, "qos": qos,
                             "retain": properties.get("retain")})  # fmt: skip
            return 0

        client = await self._connect(target)
        client.on_message = on_message
        client.on_subscribe = lambda *_: subscribed.set()
        client.subscribe("bench/sensor/+", qos=qos)
        await asyncio.wait_for(subscribed.wait(), 10)
        subscribed.clear()
        client.subscribe(END, qos=1)
        await asyncio.wait_for(subscribed.wait(), 10)
        ready()
        await asyncio.wait_for(ended.wait(), timeout)
        frame = pd.DataFrame(rows)
        done = time.time()
        await client.disconnect()
        return {"rows": len(frame), "done": done, "transport": "tls"}

    def send(self, target: Target, count: int, qos: int, size: int) -> dict[str, Any]:
        return asyncio.run(self._send(target, count, qos, size))

    async def _send(self, target: Target, count: int, qos: int, size: int) -> dict[str, Any]:
        payload = bytes(size)
        client = await self._connect(target)
        ids = client._connection._protocol.id_generator
        start = time.time()
        for i in range(count):
            client.publish(TOPICS[i & 15], payload, qos=qos)
            if i & 63 == 63:
                await asyncio.sleep(0)  # its documentation's way: without it nothing is read or acknowledged
            while len(ids._used_ids) >= min(INFLIGHT, ids._max - 2):  # it does not wait at the limit, it raises
                await asyncio.sleep(0)
        sent = time.time()
        client.publish(END, b"", qos=1)
        await asyncio.sleep(0.5)  # it has no call that waits for what was published
        await client.disconnect()
        return {"start": start, "sent": sent}

    def round_trips(self, target: Target, count: int, size: int) -> list[float]:
        return asyncio.run(self._round_trips(target, count, size))

    async def _round_trips(self, target: Target, count: int, size: int) -> list[float]:
        """gmqtt cannot wait for a PUBACK, so this is publish to own delivery: one hop more than the others' figure."""
        payload, times, arrived = bytes(size), [], asyncio.Event()

        def on_message(*_: Any) -> int:
            arrived.set()
            return 0

        client = await self._connect(target)
        client.on_message = on_message
        subscribed = asyncio.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.subscribe(TOPICS[0], qos=0)
        await asyncio.wait_for(subscribed.wait(), 10)
        for _ in range(count):
            arrived.clear()
            before = time.perf_counter()
            client.publish(TOPICS[0], payload, qos=1)
            await arrived.wait()
            times.append(time.perf_counter() - before)
        await client.disconnect()
        return times

    def connects(self, target: Target, count: int) -> list[float]:
        async def run() -> list[float]:
            times = []
            for _ in range(count):
                before = time.perf_counter()
                client = await self._connect(target)
                times.append(time.perf_counter() - before)
                await client.disconnect()
            return times

        return asyncio.run(run())


CLIENTS: dict[str, Any] = {"lab": Lab(), "paho": Paho(), "gmqtt": Gmqtt()}
