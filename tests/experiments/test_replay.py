"""The replay experiment: it shows the danger, shows the protection, and attacks nobody else."""

from __future__ import annotations

import inspect
import socket
from typing import Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import OperationTimeoutError, UsageError
from mqttquic_lab.experiments import replay as experiment
from mqttquic_lab.experiments.replay import Relay, run_replay

QUIC: dict[str, Any] = {"quic_port": 0, "tls": False, "tcp": False}


def test_with_and_without_protection() -> None:
    frame = mq.replay(patience=0.3)
    assert frame["protection"].tolist() == ["once per ticket", "none"]
    assert frame["published"].tolist() == [1, 1]
    assert frame["delivered"].tolist() == [1, 2]
    assert frame["verdict"].tolist() == ["arrived once", "arrived 2 times"]
    assert frame["replays_refused"].iloc[0] >= 1
    assert frame["replays_refused"].iloc[1] == 0
    assert (frame["datagrams"] >= 1).all()
    assert (frame["bytes"] >= 1200).all()


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_no_qos_protects(qos: int) -> None:
    """Exactly once is a promise to a session; a replay is another session."""
    protected, unprotected = await run_replay(qos=qos, patience=0.3, payload={"pay": 10})
    assert (protected.delivered, unprotected.delivered) == (1, 2)


@pytest.mark.parametrize("early_data", [True, "unprotected"])
async def test_a_broker_that_is_given(early_data: Any) -> None:
    async with BrokerServer(BrokerConfig(**QUIC, early_data=early_data)) as broker:
        [outcome] = await run_replay(broker, patience=0.3)
        assert outcome.protection == "its own"
        assert outcome.delivered == (2 if early_data == "unprotected" else 1)
        assert broker.stats().early_messages == outcome.delivered
        assert (outcome.replays_refused or 0) >= (early_data is True)
        # By its URL, too: any broker on this machine.
        [outcome] = await run_replay(broker.url, ca_file=broker.ca_file, patience=0.3)
        assert outcome.replays_refused is None
        assert outcome.delivered == (2 if early_data == "unprotected" else 1)


def test_a_handle() -> None:
    with mq.start_broker(**QUIC, early_data=True) as broker:
        frame = mq.replay(broker, patience=0.2)
        assert frame["verdict"].tolist() == ["arrived once"]
        assert frame["replays_refused"].tolist()[0] >= 1


async def test_a_long_first_flight() -> None:
    """Of several datagrams, all are recorded."""
    protected, unprotected = await run_replay(payload=bytes(5000), patience=0.3)
    assert protected.datagrams > 3
    assert (protected.delivered, unprotected.delivered) == (1, 2)


async def test_a_retry_spoils_the_recording() -> None:
    """The token in it is for the address of the client (RFC 9000 section 8.1.4)."""
    async with BrokerServer(BrokerConfig(**QUIC, early_data="unprotected", retry=True)) as broker:
        [outcome] = await run_replay(broker, patience=0.3)
        assert outcome.delivered == 1


@pytest.mark.parametrize(
    "url", ["quic://192.0.2.1", "quic://[2001:db8::1]:14567", "quic://10.0.0.1", "quic://0.0.0.0", "quic://8.8.8.8"]
)
async def test_others_are_not_attacked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_is_sent(*_: object, **__: object) -> None:
        raise AssertionError("a packet was about to be sent")

    monkeypatch.setattr("mqttquic_lab.experiments.replay.AsyncSession.open", nothing_is_sent)
    monkeypatch.setattr(Relay, "_bound", nothing_is_sent)
    with pytest.raises(UsageError, match="is not on this machine"):
        await run_replay(url)


async def test_a_name_that_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, ("127.0.0.1", 14567)), (socket.AF_INET, ("192.0.2.7", 14567))]

    monkeypatch.setattr("mqttquic_lab.experiments.replay.resolve", both)
    with pytest.raises(UsageError, match="is not on this machine"):
        await run_replay("quic://two.example")


@pytest.mark.parametrize(
    ("broker", "options", "words"),
    [
        ("mqtts://localhost", {}, "is not QUIC"),
        (5, {}, "cannot replay to a int"),
        (None, {"username": "x"}, "options are for a broker that is given"),
    ],
)
async def test_what_cannot_be_used(broker: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await run_replay(broker, **options)


async def test_a_broker_that_takes_no_early_data() -> None:
    async with BrokerServer(BrokerConfig(**QUIC)) as broker:
        with pytest.raises(UsageError, match=r"takes no early data: start_broker\(early_data=True\)"):
            await run_replay(broker)


async def test_a_broker_that_gives_no_tickets() -> None:
    async with BrokerServer(BrokerConfig(**QUIC)) as broker:
        listener: Any = broker._listeners[0]
        listener.admission.capacity = 0
        with pytest.raises(UsageError, match="gives no session tickets"):
            await run_replay(broker)


async def test_a_broker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "ATTEMPT_SECONDS", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with Relay(silent.getsockname()) as relay:
            relay.recorded.append(b"x" * 1200)
            with pytest.raises(OperationTimeoutError, match="did not answer the recording"):
                await relay.replay()


def test_it_is_one_of_the_packages_verbs() -> None:
    assert mq.replay is experiment.replay
    assert "timeout" in inspect.signature(mq.replay).parameters
