"""Exchanges at QoS 1 and 2 of which several are under way at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import PubAck, PubComp, Publish, PubRec, PubRel

if TYPE_CHECKING:
    from tests.broker.peer import Peer


async def taken(peer: Peer, count: int) -> list[Publish]:
    """Take in `count` messages, answering each packet as it comes."""
    found: list[Publish] = []
    released = 0
    while len(found) < count or released < sum(each.qos == 2 for each in found):
        each = await peer.next()
        if isinstance(each, PubRel):
            released += 1
            peer.send(PubComp(each.packet_id))
        else:
            assert isinstance(each, Publish)
            found.append(each)
            if each.packet_id is not None:
                peer.send((PubAck if each.qos == 1 else PubRec)(each.packet_id))
    return found
