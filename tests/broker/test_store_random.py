"""Whatever happened before: a broker that starts with the store of another one is in the state that one was in."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import (
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Subscription,
    Unsubscribe,
    Will,
)
from tests.broker.store_house import House

if TYPE_CHECKING:
    from pathlib import Path

    from tests.broker.peer import Peer

FILTERS = ("t/1", "t/+", "t/#", "u/1", "$share/g/t/+", "$share/h/u/#")
TOPICS = ("t/1", "t/2", "u/1", "u/2")
NAMES = ("a", "b", "c", "d")


def state_of(house: House) -> dict[str, Any]:
    """Return all that is to be kept."""
    server = house.server
    sessions = {}
    for session in server.sessions:
        if session.kept is None:
            continue
        deliveries = session.deliveries
        sessions[session.client_id] = {
            "expiry": session.expiry_interval,
            "subscriptions": {
                name: (entry.qos, entry.no_local, entry.retain_as_published, entry.identifier)
                for name, entry in session.subscriptions.items()
            },
            "queue": [(o.message.payload, o.qos, o.retain, o.identifiers) for o in session.queue],
            "queued_bytes": session.queued_bytes,
            "inflight_bytes": session.inflight_bytes,
            "sent": [
                (d.packet_id, d.token.message.payload, d.token.qos, d.token.retain)
                for d in deliveries.unfinished()
                if d.state != 0
            ],
            "received": sorted(deliveries._incoming),
        }
    retained = {
        topic: message.payload
        for topic in server.retained.topics("#")
        if (message := server.retained.get(topic, house.bench.clock.time())) is not None
    }
    stats = server.stats()
    return {
        "sessions": sessions,
        "retained": retained,
        "stored": (stats.stored_messages, stats.stored_bytes),
        "wills": sorted(session.client_id for session in server._wills._waiting),
    }


class Actors:
    """Clients that do something at random."""

    def __init__(self, house: House, chance: random.Random) -> None:
        self.house = house
        self.chance = chance
        self.peers: dict[str, Peer] = {}
        self.count = 0
        self.unreleased: dict[str, list[int]] = {name: [] for name in NAMES}

    async def step(self) -> None:
        name = self.chance.choice(NAMES)
        peer = self.peers.get(name)
        if peer is None:
            await self.connect(name)
            return
        await self.chance.choices(
            (self.publish, self.answer, self.subscribe, self.unsubscribe, self.release, self.vanish, self.leave),
            (40, 25, 8, 3, 8, 4, 2),
        )[0](name, peer)

    async def connect(self, name: str) -> None:
        clean = self.chance.random() < 0.1
        expiry = 0 if self.chance.random() < 0.1 else 1000
        will = None
        if self.chance.random() < 0.3:
            will = Will("t/2", b"will of %s" % name.encode(), 1, False, {"will_delay_interval": 50})
        peer = self.house.bench.attach()
        answer = await peer.connect(
            name, clean_start=clean, will=will, session_expiry_interval=expiry, receive_maximum=5
        )
        if not answer.session_present:
            self.unreleased[name].clear()
        self.peers[name] = peer

    async def publish(self, name: str, peer: Peer) -> None:
        self.count += 1
        qos = self.chance.randrange(3)
        free = [i for i in range(1, 60) if i not in self.unreleased[name]]
        packet_id = self.chance.choice(free) if qos else None
        retain = self.chance.random() < 0.3
        payload = b"" if retain and self.chance.random() < 0.3 else b"%d" % self.count
        peer.send(Publish(self.chance.choice(TOPICS), payload, qos, retain, False, packet_id))
        for _ in range(5):
            await asyncio.sleep(0)
        self.house.bench.clock.advance(0.6)  # who is held for a slow consumer is let go
        if qos == 2 and packet_id is not None:
            self.unreleased[name].append(packet_id)

    async def release(self, name: str, peer: Peer) -> None:
        if self.unreleased[name]:
            peer.send(PubRel(self.unreleased[name].pop(0)))

    async def answer(self, name: str, peer: Peer) -> None:
        for packet in await peer.sync():
            if isinstance(packet, Publish) and packet.packet_id and self.chance.random() < 0.7:
                peer.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
            elif isinstance(packet, PubRel) and self.chance.random() < 0.7:
                peer.send(PubComp(packet.packet_id))

    async def subscribe(self, name: str, peer: Peer) -> None:
        topic_filter = self.chance.choice(FILTERS)
        is_shared = topic_filter.startswith("$share")
        no_local = not is_shared and self.chance.random() < 0.3
        options = Subscription(topic_filter, self.chance.randrange(3), no_local, self.chance.random() < 0.5, 2)
        identifier = {"subscription_identifier": self.chance.randrange(1, 9)} if self.chance.random() < 0.5 else {}
        peer.send(Subscribe(9, (options,), identifier))

    async def unsubscribe(self, name: str, peer: Peer) -> None:
        peer.send(Unsubscribe(8, (self.chance.choice(FILTERS),)))

    async def vanish(self, name: str, peer: Peer) -> None:
        await peer.sync()
        await peer.vanish()
        await self._gone(name)

    async def leave(self, name: str, peer: Peer) -> None:
        await peer.sync()
        await peer.leave()
        await self._gone(name)

    async def _gone(self, name: str) -> None:
        del self.peers[name]
        server = self.house.server
        await server.wait_for(lambda: name not in {client.client_id for client in server.clients()})


@pytest.mark.parametrize("seed", range(6))
async def test_random(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    house = House(tmp_path, max_queued=12)
    await house.start()
    for _ in range(5):
        actors = Actors(house, chance)
        for _ in range(60):
            await actors.step()
        for name in list(actors.peers):  # those that stay would have their wills published
            await actors.vanish(name, actors.peers[name])
        await house.journal.settled()
        before = state_of(house)
        assert before["sessions"]
        await (house.kill() if chance.random() < 0.7 else house.restart())
        assert state_of(house) == before
        await house.journal.settled()
        again = await house.kill()
        assert again is house.bench
        assert state_of(house) == before, "the second start found something else than the first"
    await house.end()
