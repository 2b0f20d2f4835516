"""Clients that authenticate, publish and subscribe at random: every one of them ends, nobody else notices."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.acl import AclRule
from mqttquic_lab.mqtt import Auth, Connect, PingReq, PubAck, Publish, PubRec, PubRel, Subscribe, Subscription, Will
from mqttquic_lab.mqtt.authentication import Challenge, Failure, Success

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet
    from tests.broker.conftest import MakeBench

CLIENTS = 400
TOPICS = ("a", "a/b", "secret/x", "$SYS/x")
FILTERS = ("a", "#", "a/#", "$share/g/a", "$SYS/#", "secret/#")


class Whim:
    """A method that answers as it likes, sometimes later."""

    name = "WHIM"

    def __init__(self, rnd: random.Random) -> None:
        self._rnd = rnd

    def start(self, _: Any) -> Whim:
        return self

    def step(self, _: bytes | None) -> Any:
        answer = self._rnd.choice([Challenge(b"?"), Success(b"!", "ann"), Success(), Failure(), Failure(0x10), None])

        async def later() -> Any:
            return answer

        return later() if self._rnd.random() < 0.3 else answer


def something(rnd: random.Random) -> Packet:
    method = {"authentication_method": rnd.choice(["WHIM", "SCRAM-SHA-256"]), "authentication_data": rnd.randbytes(4)}
    qos, packet_id = rnd.randrange(3), rnd.randrange(1, 5)
    alias = {"topic_alias": 1} if rnd.random() < 0.3 else {}
    packets: list[Packet] = [
        Auth(rnd.choice([0x00, 0x18, 0x19]), method),
        Publish(rnd.choice(TOPICS), b"x", qos, rnd.random() < 0.3, False, packet_id if qos else None, alias),
        Subscribe(packet_id, (Subscription(rnd.choice(FILTERS), qos),), {}),
        PingReq(),
        PubAck(packet_id, 0, {}),
        PubRec(packet_id, rnd.choice([0, 0x80]), {}),
        PubRel(packet_id, 0, {}),
    ]
    return rnd.choice(packets)


@pytest.mark.parametrize("seed", [1, 2])
async def test_many_of_them(make_bench: MakeBench, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    rnd = random.Random(seed)
    bench = await make_bench(
        auth_methods={"WHIM": Whim(rnd), "SCRAM-SHA-256": {"ann": "x"}},
        authenticate=lambda *_: True,
        acl=[
            AclRule("subscribe", "secret/#", allow=False),
            ("ann", "all", "#"),
            ("*", "all", "a/#"),
            ("witness", "all", "#"),
        ],
        sys_interval=1,
    )
    caplog.set_level(logging.CRITICAL, logger="mqttquic_lab.broker.authenticating")  # None is no step
    witness = await bench.join("witness", username="witness")
    await witness.subscribe("witness")
    for number in range(CLIENTS):
        peer = bench.attach(chunk=rnd.choice([None, 1, 7]))
        properties: dict[str, Any] = {"session_expiry_interval": rnd.choice([0, 60])}
        if rnd.random() < 0.7:
            properties["authentication_method"] = rnd.choice(["WHIM", "SCRAM-SHA-256", "NONE"])
        if rnd.random() < 0.5:
            properties |= {"topic_alias_maximum": rnd.randrange(4), "maximum_packet_size": rnd.randrange(20, 200)}
        will = rnd.choice([None, Will("a/will", b"w"), Will("secret/x", b"")])
        username = rnd.choice([None, "ann", "bob"])
        peer.send(Connect(rnd.choice("xyz"), 5, rnd.random() < 0.5, 0, username, None, will, properties))
        for _ in range(rnd.randrange(20)):
            if not peer.ended.is_set():
                peer.send(something(rnd))
        await witness.publish("witness-only", b"", 1)
        if not peer.ended.is_set() and rnd.random() < 0.8:
            await peer.vanish()
        if number % 50 == 0:
            bench.clock.advance(1)
    await witness.publish("other", b"")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    stats = bench.server.stats()
    assert min(stats.authentications, stats.authentications_refused, stats.publishes_refused) > 0
