"""Sessions against a broker that nobody here wrote: mosquitto, over TCP and TLS."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import ConnectRefusedError, DisconnectedError
from mqttquic_lab.mqtt import Will
from mqttquic_lab.session import AsyncSession
from tests.helpers.peers import running
from tests.session.load import Load
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.certs import Identities

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.matrix("MQTT {version}", "{scheme}", ours="client", peer="mosquitto"),
]


class Mosquitto:
    """Where a running mosquitto listens."""

    def __init__(self, tcp: int, tls: int, ca_file: Path) -> None:
        self.urls = {"mqtt": f"mqtt://127.0.0.1:{tcp}", "mqtts": f"mqtts://127.0.0.1:{tls}"}
        self.ca_file = ca_file

    async def open(self, scheme: str = "mqtt", **options: Any) -> AsyncSession:
        return await hang(AsyncSession.open(self.urls[scheme], ca_file=self.ca_file, **options))


@asynccontextmanager
async def mosquitto_with(identities: Identities, folder: Path, *settings: str) -> AsyncIterator[Mosquitto]:
    """Run mosquitto with a TCP and a TLS listener."""
    certificate, key = identities.good.pem_files(folder)
    ca_file = identities.authority.write_ca(folder / "ca.pem")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        tcp, tls = one.getsockname()[1], other.getsockname()[1]
    listeners = f"listener {tcp} 127.0.0.1\nlistener {tls} 127.0.0.1\ncertfile {certificate}\nkeyfile {key}\n"
    user = "user root\n" if os.geteuid() == 0 else ""  # else it could not read the key
    (folder / "mosquitto.conf").write_text(user + "".join(f"{line}\n" for line in settings) + listeners)
    async with running("mosquitto", "-c", str(folder / "mosquitto.conf")):
        for port in (tcp, tls):
            await _listens(port)
        yield Mosquitto(tcp, tls, ca_file)


async def _listens(port: int) -> None:
    """Wait until something listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


@pytest.fixture
async def mosquitto(identities: Identities, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A mosquitto that takes five QoS 1 and 2 messages at a time, and keeps ``secret/#`` to itself."""
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite #\ntopic deny secret/#\n")
    settings = ("allow_anonymous true", f"acl_file {acl}", "max_inflight_messages 5")
    async with mosquitto_with(identities, tmp_path, *settings) as broker:
        yield broker


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
@pytest.mark.matrix("QoS 0", "QoS 1", "QoS 2", "many messages")
async def test_every_qos(mosquitto: Mosquitto, scheme: str, version: str) -> None:
    async with await mosquitto.open(scheme, version=version, client_id="lab") as session:
        feed = await session.subscribe("a/#", 2)
        for qos in (0, 1, 2):
            await session.publish("a/b", f"qos {qos}", qos)
        await hang(feed.wait(3))
        assert feed.df["value"].tolist() == ["qos 0", "qos 1", "qos 2"]
        summary = await hang(session.publish_many((("a/many", n) for n in range(200)), 1))
        assert (summary.count, summary.refused) == (200, 0)
        await hang(feed.wait(203))
        assert await hang(session.ping()) > 0
        await hang(session.unsubscribe(feed))
        assert session.errors == []


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
@pytest.mark.matrix("retained")
async def test_retained(mosquitto: Mosquitto, scheme: str, version: str) -> None:
    async with await mosquitto.open(scheme, version=version) as session:
        await session.publish("a/b", "kept", 1, retain=True)
        feed = await session.subscribe("a/#", 1)
        await hang(feed.wait(1))
        message = feed.log.message(0)
        assert (message.payload, message.qos, message.retain) == (b"kept", 1, True)


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.matrix("shared subscription")
async def test_a_shared_subscription(mosquitto: Mosquitto, version: str) -> None:
    async with await mosquitto.open(version=version) as one, await mosquitto.open("mqtts", version=version) as other:
        feeds = [await session.subscribe("$share/g/a", 1) for session in (one, other)]
        for number in range(10):
            await one.publish("a", str(number), 1)
        await hang(asyncio.gather(one.ping(), other.ping()))
        assert sorted(int(p) for feed in feeds for p in feed.df["payload"]) == list(range(10))
        assert all(feed.total for feed in feeds)


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
@pytest.mark.matrix("session resumed", note="what waited comes right after CONNACK")
async def test_a_session_is_resumed(mosquitto: Mosquitto, scheme: str) -> None:
    kept: dict[str, Any] = {"client_id": "lasting", "clean_start": False, "session_expiry_interval": 300}
    first = await mosquitto.open(scheme, **kept)
    await first.subscribe("a", 2)
    await hang(first.close())
    async with await mosquitto.open(scheme) as publisher:
        for qos in (1, 2):
            await publisher.publish("a", str(qos), qos)
    async with await mosquitto.open(scheme, **kept) as again:
        assert again.handshake.session_present
        await hang(again.ping())
        assert sorted(again.unrouted.frame()["payload"]) == [b"1", b"2"]


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
@pytest.mark.matrix("large message", note="5 MB there and back")
async def test_a_large_message(mosquitto: Mosquitto, scheme: str) -> None:
    payload = bytes(range(256)) * 20_000
    async with await mosquitto.open(scheme) as session:
        feed = await session.subscribe("a", 1, decode="raw")
        await session.publish("a", payload, 1)
        await hang(feed.wait(1))
        assert feed.log.message(0).payload == payload


async def test_overlapping_subscriptions(mosquitto: Mosquitto) -> None:
    async with await mosquitto.open() as session:
        feeds = [await session.subscribe(f, 1) for f in ("a/#", "a/b", "+/b", "a/b")]
        await session.publish("a/b", b"once", 1)
        for feed in feeds:
            await hang(feed.wait(1))
        await hang(session.ping())
        assert [feed.total for feed in feeds] == [1, 1, 1, 1]


@pytest.mark.matrix("ACL", note="what may not be read does not come")
async def test_what_mosquitto_does_not_allow(mosquitto: Mosquitto) -> None:
    async with await mosquitto.open() as session:
        feed = await session.subscribe("secret/x", 1)
        await session.publish("secret/x", b"hidden", 0)
        await hang(session.ping())
        assert feed.total == 0


@pytest.mark.matrix("take-over", "will")
async def test_taken_over_and_will(mosquitto: Mosquitto) -> None:
    async with await mosquitto.open("mqtts") as watcher:
        feed = await watcher.subscribe("will", 1)
        first = await mosquitto.open(client_id="same", will=Will("will", b"gone", 1), reconnect=False)
        second = await mosquitto.open(client_id="same")
        reason = await hang(first.wait_closed())
        assert isinstance(reason, DisconnectedError)  # this broker says nothing, it just closes
        await hang(feed.wait(1))
        await hang(second.close())


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.matrix("password", note="0x87 with both versions")
async def test_a_stranger_is_refused(identities: Identities, tmp_path: Path, version: str) -> None:
    async with mosquitto_with(identities, tmp_path, "allow_anonymous false") as broker:
        with pytest.raises(ConnectRefusedError, match="username and password") as caught:
            await broker.open(version=version)
        assert caught.value.reason_code == 0x87


@pytest.mark.matrix(
    "change of transport", note="TLS to TCP and back under load: nothing lost, nothing doubled at QoS 2"
)
async def test_a_session_moves_between_tls_and_tcp_under_load(identities: Identities, tmp_path: Path) -> None:
    settings = ("allow_anonymous true", "max_queued_messages 0")
    kept = {"session_expiry_interval": 60, "client_id": "sender"}
    async with (
        mosquitto_with(identities, tmp_path, *settings) as broker,
        await broker.open("mqtts", **kept) as sender,
        await broker.open("mqtt", **{**kept, "client_id": "receiver"}) as receiver,
    ):
        load = await Load.start(sender, receiver)
        await load.until(0.2)
        await hang(sender.reconnect(broker.urls["mqtt"]))
        await hang(receiver.reconnect(broker.urls["mqtts"]))
        await load.until(0.5)
        await hang(sender.reconnect(broker.urls["mqtts"]))
        await load.check()
        assert [(event.what, event.transport) for event in sender.events] == [
            ("connected", "tls"),
            ("resumed", "tcp"),
            ("resumed", "tls"),
        ]


async def test_a_mosquitto_that_forgets_is_told_everything_anew(mosquitto: Mosquitto) -> None:
    # No session_expiry_interval: it keeps nothing.
    async with await mosquitto.open("mqtts", reconnect=False) as session:
        feed = await session.subscribe("a/#", 2)
        overlapping = await session.subscribe("a/+", 1)
        session.connection.abort("cable")
        await hang(session.wait_closed())
        await hang(session.reconnect())
        assert session.handshake.session_present is False
        await session.publish("a/b", b"x", 2)
        await hang(asyncio.gather(feed.wait(1), overlapping.wait(1)))
        await hang(session.ping())
        assert (feed.total, overlapping.total) == (1, 1)
