"""The file: who may read it, what it may be, what becomes of it when the disk does not take it."""

from __future__ import annotations

import sqlite3
import stat
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.broker.store import StoreFile, journal
from mqttquic_lab.errors import StoreError, UsageError
from mqttquic_lab.mqtt import ConnAck, Connect, Disconnect, PubAck, Publish, PubRec, PubRel
from tests.broker.conftest import OFFLINE
from tests.broker.store_house import House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.broker.peer import Peer


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.start()
    yield house
    await house.end()


async def refused(path: Any, match: str) -> None:
    server = BrokerServer(BrokerConfig(**OFFLINE, store=path))
    with pytest.raises(StoreError, match=match):
        await server.start()
    await server.close()


# What it may be


async def test_only_its_owner_may_read_it(house: House) -> None:
    await house.bench.join("s", session_expiry_interval=10)
    files = sorted(house.folder.iterdir())
    assert [file.name for file in files] == ["store0.db", "store0.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    house.path.chmod(0o664)
    await house.restart()
    assert stat.S_IMODE(house.path.stat().st_mode) == 0o600


async def test_no_password_is_in_it(tmp_path: Path) -> None:
    house = House(tmp_path, users={"ann": "hunter2"})
    await house.start()
    await house.bench.join("s", session_expiry_interval=10, username="ann", password=b"hunter2")
    await house.restart()
    await house.end()
    assert all(b"hunter2" not in file.read_bytes() for file in tmp_path.iterdir())


async def test_one_broker_at_a_time(house: House) -> None:
    await refused(house.path, "in use by another broker")
    link = house.folder / "link.db"
    link.symlink_to(house.path)
    await refused(link, "in use by another broker")
    assert (await house.bench.join("still")).ended.is_set() is False


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    await refused(tmp_path / "no" / "store.db", "cannot be opened: No such file")
    await refused(tmp_path, "cannot be opened: Is a directory")


@pytest.mark.parametrize("path", ["", b"bytes", 5])
def test_something_that_is_no_path(path: Any) -> None:
    with pytest.raises((UsageError, TypeError)):
        BrokerConfig(store=path)
    with pytest.raises(UsageError, match="store_sync"):
        BrokerConfig(store="x", store_sync="off")  # type: ignore[arg-type]


async def test_a_file_of_something_else(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to have a header of one hundred bytes" * 3)
    await refused(text, "not the store of a broker")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = other.read_bytes(), other.stat().st_mode
    await refused(other, "SQLite file of another program")
    assert (other.read_bytes(), other.stat().st_mode) == before


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_file_of_a_later_version(house: House) -> None:
    await house.server.close()
    change(house.path, "PRAGMA user_version = 99")
    await refused(house.path, "later version of mqttquic_lab .tables of version 99, this one knows 1")
    change(house.path, "PRAGMA user_version = 0")
    await refused(house.path, "unknown version 0")


async def test_a_damaged_file(house: House) -> None:
    client = await house.bench.join("s", session_expiry_interval=100)
    await client.subscribe("#", qos=1)
    await client.vanish()
    publisher = await house.bench.join("p")
    for number in range(300):
        await publisher.publish("a", bytes(500), 1, packet_id=number + 1)
    await house.server.close()
    data = bytearray(house.path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    (house.folder / "torn.db").write_bytes(data)
    await refused(house.folder / "torn.db", "damaged")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE message SET properties = x'0526'",
        "UPDATE delivery SET message = 99",
        "UPDATE delivery SET packet_id = 70000",
        "UPDATE delivery SET identifiers = 'x'",
        "UPDATE message SET payload = 5, topic = x'ff'",
        "UPDATE subscription SET filter = '$share/g'",
    ],
)
async def test_rows_that_cannot_be(house: House, statement: str) -> None:
    client = await house.bench.join("s", session_expiry_interval=100)
    await client.subscribe("a", qos=1)
    publisher = await house.bench.join("p")
    await publisher.publish("a", b"x", 1)
    await house.journal.settled()
    await house.server.close()
    change(house.path, statement)
    with pytest.raises(StoreError, match="damaged"):
        await house.start()


def test_without_a_store_nothing_is_imported() -> None:
    from tests.helpers.processes import script

    assert script(
        """
        import asyncio, sys
        from mqttquic_lab.broker import BrokerConfig, BrokerServer
        async def main():
            async with BrokerServer(BrokerConfig(quic=False, tls=False, tcp=False)):
                print('sqlite3' in sys.modules)
        asyncio.run(main())
        """
    ).split() == ["False"]


# What has to be on disk first


class Gate:
    """Keeps the disk from doing anything."""

    def __init__(self, house: House) -> None:
        import threading

        self.open = threading.Event()
        real = house.journal.file.commit

        def commit(delta: Any) -> None:
            self.open.wait(10)
            real(delta)

        house.journal.file.commit = commit  # type: ignore[method-assign]


async def came(peer: Peer) -> list[str]:
    """Return what has come, by kind, without a packet that could wait behind it."""
    import asyncio

    for _ in range(20):
        await asyncio.sleep(0)
    found = [packet.NAME for packet in peer.inbox]
    peer.inbox.clear()
    return found


async def test_nothing_is_acknowledged_before_it_is_on_disk(house: House) -> None:
    lasting = await house.bench.join("lasting", session_expiry_interval=100, clean_start=False)
    await lasting.subscribe("a", qos=2)
    transient = await house.bench.join("transient")
    await transient.subscribe("#", qos=2)
    publisher = await house.bench.join("p", session_expiry_interval=100)
    plain = await house.bench.join("plain")
    await house.journal.settled()
    gate = Gate(house)
    publisher.send(Publish("a", b"1", 1, False, False, 1))
    publisher.send(Publish("a", b"2", 2, False, False, 2))
    assert (await transient.expect(Publish)).payload == b"1"  # nobody promised it anything
    assert (await transient.expect(Publish)).payload == b"2"
    plain.send(Publish("b", b"3"))
    assert (await transient.expect(Publish)).payload == b"3"
    assert await plain.sync() == []
    newcomer = house.bench.attach()
    newcomer.send(Connect("new", 5, True, 0, properties={"session_expiry_interval": 5}))
    assert await came(publisher) == await came(lasting) == await came(newcomer) == []
    gate.open.set()
    assert [type(await publisher.next()) for _ in range(2)] == [PubAck, PubRec]
    assert [type(await lasting.next()) for _ in range(2)] == [Publish, Publish]
    assert isinstance(await newcomer.next(), ConnAck)
    gate.open.clear()
    publisher.send(PubRel(2))
    lasting.send(PubRec(2))
    assert await came(publisher) == await came(lasting) == []
    gate.open.set()
    assert (await publisher.next()).NAME == "PUBCOMP"
    assert (await lasting.next()).NAME == "PUBREL"


async def test_goodbye_comes_after_what_waits(house: House) -> None:
    publisher = await house.bench.join("p", session_expiry_interval=100)
    await house.journal.settled()
    gate = Gate(house)
    publisher.send(Publish("a", b"1", 2, False, False, 1))
    assert await came(publisher) == []
    house.bench.attach().send(Connect("p", 5, False, 0, properties={"session_expiry_interval": 100}))
    assert await came(publisher) == []
    gate.open.set()
    assert [packet.NAME for packet in await publisher.closed()] == ["PUBREC", "DISCONNECT"]


async def test_publishers_wait_for_a_slow_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MUCH", 20)
    lasting = await house.bench.join("lasting", session_expiry_interval=100)
    await lasting.subscribe("a", qos=1)
    publisher = await house.bench.join("p")
    await house.journal.settled()
    gate = Gate(house)
    for number in range(1, 500):
        publisher.send(Publish("a", b"x", 1, False, False, number))
        if number % 50 == 0:
            await came(publisher)
    assert house.server.counters.messages_in < 200
    gate.open.set()
    for _ in range(1, 500):
        await publisher.expect(PubAck)


# When the disk does not take it


class Full:
    """Makes the file full, and gives it room again."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def _limit(self, pages: Callable[[int], int]) -> None:
        connection = self._house.journal.file.connection

        def limit() -> None:
            (count,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages(count)}")

        await self._house.journal.in_thread(limit)

    async def begin(self) -> None:
        await self._limit(lambda count: count)

    async def end(self) -> None:
        await self._limit(lambda count: 1_000_000)


async def test_a_full_disk(house: House) -> None:
    lasting = await house.bench.join("lasting", session_expiry_interval=1000)
    await lasting.subscribe("a", qos=2)
    await lasting.vanish()
    five = await house.bench.join("five", session_expiry_interval=1000)
    three = await house.bench.join("three", 4)
    other = await house.bench.join("other")
    await other.subscribe("b", qos=0)
    await house.journal.settled()
    full = Full(house)
    await full.begin()
    five.send(Publish("a", bytes(100_000), 2, False, False, 1))
    ends = await five.closed()
    assert [type(packet) for packet in ends] == [Disconnect]
    assert isinstance(ends[0], Disconnect)
    assert (ends[0].reason_code, ends[0].properties["reason_string"]) == (
        0x97, "the broker has no room to store messages",
    )  # fmt: skip
    stats = house.server.stats()
    assert (stats.store_errors, stats.store_error) == (1, "OperationalError: database or disk is full")
    # Meanwhile: refused, and nobody else notices.
    late = await house.bench.join("late")
    assert await late.publish("a", b"x", 1) == 0x97
    assert await late.publish("a", b"x", 2) == 0x97
    three.send(Publish("a", b"x", 1, False, False, 1))
    assert await three.closed() == []
    await late.publish("b", b"x", 0)
    assert (await other.message()).payload == b"x"
    assert house.server.stats().store_refused == 3
    durable = house.bench.attach()
    durable.send(Connect("durable", 5, True, 0, properties={"session_expiry_interval": 5}))
    assert await came(durable) == []
    house.bench.clock.advance(journal.RETRY_INTERVAL)
    answer = await durable.expect(ConnAck)
    assert answer.reason_code == 0x97
    # Room again: what was taken and not acknowledged is kept, and known when it comes again.
    await full.end()
    house.bench.clock.advance(journal.RETRY_INTERVAL)
    await house.journal.settled()
    await house.server.wait_for(lambda: True)
    back = await house.bench.join("five", session_expiry_interval=1000, clean_start=False)
    back.send(Publish("a", bytes(100_000), 2, False, True, 1))
    assert (await back.expect(PubRec)).reason_code == 0
    assert house.server.stats().store_error == ""
    await house.kill()
    assert (house.server.stats().queued, house.server.stats().stored_messages) == (1, 1)


async def test_an_error_of_the_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await house.bench.join("s", session_expiry_interval=1000)
    await house.journal.settled()

    def fails(file: StoreFile, delta: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(StoreFile, "commit", fails)
        client.send(Publish("a", b"x", 2, False, False, 1))
        ends = await client.closed()
        assert [packet.reason_code for packet in ends if isinstance(packet, Disconnect)] == [0x80]
    house.bench.clock.advance(journal.RETRY_INTERVAL)
    await house.restart()
    back = await house.bench.join("s", session_expiry_interval=1000, clean_start=False)
    back.send(PubRel(1))
    assert (await back.next()).NAME == "PUBCOMP"


async def test_closing_with_a_broken_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.bench.join("s", session_expiry_interval=1000)
    await house.journal.settled()

    def fails(file: StoreFile, delta: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(StoreFile, "commit", fails)
        await house.server.close()
    assert house.server.counters.store_errors == 2
