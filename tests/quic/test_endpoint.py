"""The UDP endpoint alone: batching, offloads and their absence, full buffers, errors of the socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.quic import endpoint as module
from mqttquic_lab.quic.endpoint import MAX_QUEUE, Endpoint, plain_address
from tests.helpers.quic import settle

if TYPE_CHECKING:
    from collections.abc import Iterator


class Recorder:
    """Takes datagrams in the place of a connection."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.addresses: set[Any] = set()
        self.pumps = 0
        self.transmits = 0

    def route(self, _data: bytes, _address: Any) -> Recorder:
        return self

    def receive(self, data: bytes, address: Any, now: float) -> None:
        self.received.append(data)
        self.addresses.add(address)

    def pump(self) -> None:
        self.pumps += 1

    def transmit(self) -> None:
        self.transmits += 1


class FakeSocket:
    """A real socket whose sending can be made to fail."""

    def __init__(self, sock: socket.socket) -> None:
        self.real = sock
        self.fail: dict[str, OSError] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]
        return getattr(self.real, name)(*arguments)

    def sendto(self, *arguments: Any) -> Any:
        return self._call("sendto", *arguments)

    def sendmsg(self, *arguments: Any) -> Any:
        return self._call("sendmsg", *arguments)


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.fixture
async def pair() -> Any:
    """Two endpoints, each with a recorder."""
    left, right = Endpoint(bound()), Endpoint(bound())
    for endpoint in (left, right):
        recorder = Recorder()
        endpoint.route = recorder.route
        endpoint.recorder = recorder  # type: ignore[attr-defined]
    yield left, right
    left.close()
    right.close()


async def exchange(left: Endpoint, right: Endpoint, payloads: list[bytes]) -> None:
    left.send([(payload, right.local_address) for payload in payloads])
    recorder: Recorder = right.recorder  # type: ignore[attr-defined]
    await settle(lambda: len(recorder.received) == len(payloads))
    assert recorder.received == payloads
    assert recorder.addresses == {left.local_address}
    assert 1 <= recorder.pumps <= len(payloads)
    assert left.counters.datagrams_sent == right.counters.datagrams_received == len(payloads)
    assert left.counters.bytes_sent == right.counters.bytes_received == sum(map(len, payloads))


PAYLOADS = [bytes([n]) * size for n, size in enumerate([1200] * 70 + [700, 1200, 1200, 300, 300, 1, 8000, 8000])]


async def test_runs_of_equal_size_arrive_as_separate_datagrams(pair: tuple[Endpoint, Endpoint]) -> None:
    await exchange(*pair, PAYLOADS)


async def test_without_offloads(pair: tuple[Endpoint, Endpoint]) -> None:
    for endpoint in pair:
        endpoint._gso = endpoint._gro = False
    await exchange(*pair, PAYLOADS)


async def test_platform_without_sendmsg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UDP_SEGMENT", 9999)
    sock = bound()
    endpoint = Endpoint(sock)
    assert not endpoint._gso
    assert not endpoint._gro
    endpoint.close()


async def test_an_interface_that_cannot_segment_falls_back_for_good(pair: tuple[Endpoint, Endpoint]) -> None:
    left, right = pair
    if not left._gso:
        pytest.skip("no UDP_SEGMENT here")
    fake = FakeSocket(left._socket)
    fake.fail["sendmsg"] = OSError(errno.EIO, "Input/output error")
    left._socket = fake  # type: ignore[assignment]
    await exchange(left, right, PAYLOADS)
    assert fake.calls.count("sendmsg") == 1
    assert left.counters.datagrams_dropped == 0


async def test_a_full_socket_buffer_delays_and_does_not_drop(pair: tuple[Endpoint, Endpoint]) -> None:
    left, right = pair
    left._gso = False
    fake = FakeSocket(left._socket)
    fake.fail["sendto"] = BlockingIOError()
    left._socket = fake  # type: ignore[assignment]
    left.send([(payload, right.local_address) for payload in PAYLOADS[:50]])
    assert left.blocked
    waiting = Recorder()
    left.when_writable(waiting)
    forgotten = Recorder()
    left.when_writable(forgotten)
    left.forget(forgotten)
    left.send([(payload, right.local_address) for payload in PAYLOADS[50:]])
    fake.fail.clear()
    recorder: Recorder = right.recorder  # type: ignore[attr-defined]
    await settle(lambda: len(recorder.received) == len(PAYLOADS))
    assert recorder.received == PAYLOADS
    assert waiting.transmits == 1
    assert forgotten.transmits == 0


async def test_the_queue_is_bounded(pair: tuple[Endpoint, Endpoint]) -> None:
    left, right = pair
    left._gso = False
    fake = FakeSocket(left._socket)
    fake.fail["sendto"] = BlockingIOError()
    left._socket = fake  # type: ignore[assignment]
    left.send([(b"x", right.local_address)] * (MAX_QUEUE + 10))
    assert len(left._queue) == MAX_QUEUE
    assert left.counters.datagrams_dropped == 10


@pytest.mark.parametrize("code", [errno.EMSGSIZE, errno.ENETUNREACH, errno.EPERM, errno.ENOBUFS])
async def test_errors_of_sending_are_counted_and_told(pair: tuple[Endpoint, Endpoint], code: int) -> None:
    left, right = pair
    left._gso = False
    told: list[OSError] = []
    left.on_error = told.append
    fake = FakeSocket(left._socket)
    fake.fail["sendto"] = OSError(code, "no")
    left._socket = fake  # type: ignore[assignment]
    left.send([(b"a", right.local_address), (b"b", right.local_address)])
    assert [error.errno for error in told] == [code, code]
    assert left.counters.datagrams_dropped == left.counters.errors == 2
    fake.fail.clear()
    left.send([(b"c", right.local_address)])
    recorder: Recorder = right.recorder  # type: ignore[attr-defined]
    await settle(lambda: recorder.received == [b"c"])


async def test_closing_from_the_error_callback(pair: tuple[Endpoint, Endpoint]) -> None:
    left, right = pair
    left._gso = False
    left.on_error = lambda _: left.close()
    fake = FakeSocket(left._socket)
    fake.fail["sendto"] = OSError(errno.EPERM, "no")
    left._socket = fake  # type: ignore[assignment]
    left.send([(b"a", right.local_address)] * 5)
    assert left.is_closed
    left.send([(b"a", right.local_address)])
    left.close()
    assert left.local_address[0] == "127.0.0.1"  # as it was


async def test_a_connected_socket_reaches_its_peer_only(pair: tuple[Endpoint, Endpoint]) -> None:
    _, right = pair
    sock = bound()
    sock.connect(right.local_address)
    endpoint = Endpoint(sock, peer=right.local_address)
    try:
        endpoint.send([(b"to somebody else", ("127.0.0.1", 9)), (b"to the peer", right.local_address)])
        recorder: Recorder = right.recorder  # type: ignore[attr-defined]
        await settle(lambda: recorder.received == [b"to the peer"])
        assert endpoint.counters.datagrams_dropped == 1
    finally:
        endpoint.close()


async def test_icmp_reaches_the_error_callback(free_port: int) -> None:
    sock = bound()
    sock.connect(("127.0.0.1", free_port))
    endpoint = Endpoint(sock, peer=("127.0.0.1", free_port))
    told = asyncio.get_running_loop().create_future()
    endpoint.on_error = told.set_result
    endpoint.send([(b"anybody?", ("127.0.0.1", free_port))])
    async with asyncio.timeout(10):
        assert isinstance(await told, ConnectionRefusedError)
    endpoint.close()


async def test_receivers_that_raise_do_not_stop_the_others(
    pair: tuple[Endpoint, Endpoint], caplog: pytest.LogCaptureFixture
) -> None:
    left, right = pair
    good: Recorder = right.recorder  # type: ignore[attr-defined]

    class Bad(Recorder):
        def receive(self, data: bytes, address: Any, now: float) -> None:
            super().receive(data, address, now)
            if data == b"raise at once":
                raise ValueError("at once")

        def pump(self) -> None:
            raise ValueError("later")

    bad = Bad()

    def route(data: bytes, _address: Any) -> Recorder | None:
        if data == b"nobody's":
            return None
        if data == b"unroutable":
            raise KeyError("route")
        return bad if data.startswith(b"raise") else good

    right.route = route
    with caplog.at_level(logging.CRITICAL):
        messages = [b"raise at once", b"raise in pump", b"nobody's", b"unroutable", b"fine"]
        left.send([(message, right.local_address) for message in messages])
        await settle(lambda: good.received == [b"fine"])
        await settle(lambda: good.pumps == 1)
    assert right.counters.datagrams_unrouted == 1
    assert right.counters.errors == 2


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 5)),
        (("::ffff:10.0.0.1", 5, 0, 0), ("10.0.0.1", 5)),
        (("fe80::1%eth0", 5, 0, 2), ("fe80::1%eth0", 5)),
    ],
)
def test_plain_address(address: Any, plain: tuple[str, int]) -> None:
    assert plain_address(address) == plain


@pytest.fixture(autouse=True)
def _no_loop_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail on exceptions that the loop swallowed."""
    yield
    assert not [record for record in caplog.records if record.name == "asyncio"]
