"""``python -m tests.helpers.netns_worker server|client``: what runs inside the namespaces of :mod:`.netns`.

The server's is a broker with a session beside it that receives what the client publishes, and publishes what the client
receives. Both sides speak lines of JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import LabError
from mqttquic_lab.session import AsyncSession
from tests.helpers.netns import SERVER
from tests.helpers.numbered import PATIENCE, NumberedLoad

if TYPE_CHECKING:
    from mqttquic_lab.session import AsyncFeed

Verb = Callable[..., Awaitable[dict[str, Any]]]

DOWN_RATE = 200.0
"""Messages per second that the client receives."""


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer, default=str), flush=True)


async def listen(verbs: dict[str, Verb]) -> None:
    """Answer questions until there are no more."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        question = json.loads(line)
        try:
            say(await verbs[question.pop("do")](**question))
        except LabError as error:
            say({"error": type(error).__name__, "message": str(error), "problem": getattr(error, "problem", None)})


async def received(feed: AsyncFeed, count: int) -> dict[str, Any]:
    """Wait until so many messages have arrived."""
    await feed.wait(count, timeout=PATIENCE)
    return {"received": feed.total}


def arrivals(feed: AsyncFeed) -> list[tuple[int, float]]:
    """Return (number, seconds since the epoch) of what has arrived."""
    frame = feed.df
    times = frame["time"].astype("int64") / 1e9
    return [(int(payload), float(time)) for payload, time in zip(frame["payload"], times, strict=True)]


async def server(qos: int) -> None:
    config = BrokerConfig(host=SERVER, quic_port=0, tcp_port=0, tls=False)
    async with BrokerServer(config) as broker:
        beside = await AsyncSession.open(broker.urls["mqtt"], client_id="beside")
        feed = await beside.subscribe("numbered", qos, decode="raw")
        load = NumberedLoad(beside, "down", qos=qos, rate=DOWN_RATE)
        say({"url": broker.urls["quic"], "ca_file": str(broker.ca_file)})

        def client() -> dict[str, Any]:
            [info] = [info for info in broker.clients() if info.client_id == "client"]
            return dataclasses.asdict(info)

        async def begin() -> dict[str, Any]:
            load.start()
            return client()

        async def end() -> dict[str, Any]:
            return {"acknowledged": sorted(await load.stop())}

        async def report() -> dict[str, Any]:
            return {"arrivals": arrivals(feed), "client": client(), "stats": broker.stats().to_dict()}

        await listen({"begin": begin, "end": end, "received": partial(received, feed), "report": report})


async def client(url: str, ca_file: str, local: str, qos: int, rate: float) -> None:
    session = await AsyncSession.open(url, client_id="client", ca_file=ca_file, local_address=(local, 0))
    feed = await session.subscribe("down", qos, decode="raw")
    load = NumberedLoad(session, qos=qos, rate=rate or None)
    load.start()
    say({"local": session.connection.local_address})

    async def reached(count: int) -> dict[str, Any]:
        await load.reached(count)
        return {"acknowledged": len(load.acknowledged)}

    async def migrate(**options: Any) -> dict[str, Any]:
        return (await session.migrate(**options)).to_dict()

    async def stop() -> dict[str, Any]:
        return {"acknowledged": sorted(await load.stop())}

    async def report() -> dict[str, Any]:
        return {
            "arrivals": arrivals(feed),
            "errors": [error.message for error in session.errors],
            "handshake": session.handshake.local_address,
        }

    verbs: dict[str, Verb] = {"reached": reached, "migrate": migrate, "stop": stop, "report": report}
    await listen({**verbs, "received": partial(received, feed)})
    await session.close()


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "server":
        asyncio.run(server(int(arguments[0])))
    else:
        url, ca_file, local, qos, rate = arguments
        asyncio.run(client(url, ca_file, local, int(qos), float(rate)))


if __name__ == "__main__":
    main()
