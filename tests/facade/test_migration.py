"""Moving a session's connection, as a person does it: blocking, and awaited."""

from __future__ import annotations

import asyncio

import pytest

import mqttquic_lab as mq
from tests.facade.conftest import until


def test_migrate_and_rebind(broker: mq.Broker, session: mq.Session) -> None:
    feed = session.subscribe("move", qos=2)
    before = session.handshake.report.local_address
    moved = session.migrate("127.0.0.2")
    assert isinstance(moved, mq.MigrationResult)
    assert moved.old_local == before
    assert session.handshake.report.local_address == moved.new_local
    session.publish("move", "from there", qos=2)
    rebound = session.rebind(timeout="5 s")
    assert (rebound.kind, rebound.old_local) == ("rebinding", moved.new_local)
    session.publish("move", "from another port", qos=2)
    feed.wait(2)
    assert feed.df["payload"].tolist() == [b"from there", b"from another port"]
    until(broker, lambda: [client.address for client in broker._core.clients()] == [rebound.new_local])


def test_awaited(session: mq.Session) -> None:
    async def moves() -> None:
        moved = await session.aio.migrate("127.0.0.2")
        assert moved.new_local[0] == "127.0.0.2"
        rebound = await session.aio.rebind()
        assert rebound.old_local == moved.new_local

    asyncio.run(moves())
    assert session.ping() > 0


def test_what_cannot_move_says_why(broker: mq.Broker) -> None:
    with mq.connect(broker.urls["mqtt"]) as session:
        with pytest.raises(mq.UsageError, match="only a session over QUIC can migrate"):
            session.migrate()
        with pytest.raises(mq.UsageError, match="only a session over QUIC can change its port"):
            session.rebind()
    assert issubclass(mq.MigrationError, mq.LabError)


@pytest.mark.parametrize("local", [5, ("127.0.0.1",), "somewhere", ("127.0.0.1", "x"), {}])
def test_what_is_no_address_of_ours(session: mq.Session, local: object) -> None:
    with pytest.raises(mq.UsageError, match="is no IP address of ours"):
        session.migrate(local)  # type: ignore[arg-type]
    assert session.ping() > 0
