"""A broker of one's own on free ports, as a person has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import mqttquic_lab as mq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0
"""Seconds after which something that should have happened long ago counts as hanging."""


@pytest.fixture(scope="module")
def broker() -> Iterator[mq.Broker]:
    with mq.start_broker(quic_port=0, tls_port=0, tcp_port=0) as broker:
        yield broker


@pytest.fixture
def session(broker: mq.Broker) -> Iterator[mq.Session]:
    with mq.connect(broker) as session:
        yield session


def until(broker: mq.Broker, condition: Callable[[], object]) -> None:
    """Wait until the broker sees something."""
    broker._runtime.run(broker._core.wait_for(condition, PATIENCE))


def ids(broker: mq.Broker) -> list[str]:
    """Return the client ids that the broker knows; to be called on its loop, by :func:`until`."""
    return [client.client_id for client in broker._core.clients()]
