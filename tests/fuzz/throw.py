"""Throwing plans at a broker, and looking whether it answers or closes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from typing import TYPE_CHECKING, Any, cast

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection as Engine

from mqttquic_lab.errors import LabError
from mqttquic_lab.mqtt import Connect, FlowHeaderDecoder, PacketDecoder, PubAck, PubComp, Publish, PubRec, PubRel
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.client import open_quic
from tests.fuzz.mutate import ONE, pieces

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from mqttquic_lab.mqtt import Packet, Version
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.quic.connection import QuicConnection
    from tests.fuzz.packets import Lane, Plan

BOUND = 10.0
"""Seconds within which a broker must have answered or closed."""


class Unanswered(Exception):  # noqa: N818 - a finding, not an error of this program
    """The broker did neither answer nor close in time."""


class Answering:
    """Reads what the other side sends on a stream and acknowledges deliveries, sometimes wrongly."""

    def __init__(self, r: Random, version: Version, write: Any, *, headers: bool = False) -> None:
        self._r = r
        self._version = version
        self._write = write
        self._header = FlowHeaderDecoder(required=False) if headers else None
        self._decoder: PacketDecoder | None = PacketDecoder(version, receiver="client")

    def feed(self, data: bytes) -> None:
        """Take bytes; gives up at the first that cannot be read."""
        if self._decoder is None:
            return
        try:
            if self._header is not None:
                self._header.feed(data)
                if not self._header.done:
                    return
                data, self._header = self._header.rest, None
            packets = self._decoder.feed(data)
        except LabError:
            self._decoder = None
            return
        for packet in packets:
            self._answer(packet)

    def _answer(self, packet: Packet) -> None:
        r = self._r
        answer: Packet | None = None
        if isinstance(packet, Publish) and packet.packet_id is not None:
            kinds: list[Any] = [PubAck if packet.qos == 1 else PubRec]
            if r.random() < 0.1:
                kinds = [r.choice((PubAck, PubRec, PubRel, PubComp))] * r.choice((1, 2))
            for kind in kinds:
                self._write(kind(packet.packet_id).encode(self._version))
        elif isinstance(packet, PubRec):
            answer = PubRel(packet.packet_id)
        elif isinstance(packet, PubRel):
            answer = PubComp(packet.packet_id)
        if answer is not None and r.random() < 0.9:
            self._write(answer.encode(self._version))


# --- TCP and TLS ------------------------------------------------------------------------------------------------------


async def over_tcp(r: Random, plan: Plan, port: int, ca_file: Path | None) -> str:
    """Throw a plan over TCP, or over TLS if there is a CA; returns what came of it.

    Raises
    ------
    Unanswered
        The broker stopped reading, or did not close after we had.
    """
    context = ssl.create_default_context(cafile=str(ca_file)) if ca_file is not None else None
    host = "localhost" if context is not None else None
    try:
        async with asyncio.timeout(BOUND):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    except OSError as error:
        return f"not connected: {error}"
    answering = Answering(r, plan.version, writer.write) if plan.answers else None

    may_write = True

    async def read() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answering is not None and may_write and not writer.is_closing():
                    answering.feed(data)

    reading = asyncio.ensure_future(read() if plan.reads else asyncio.sleep(BOUND))
    lane = plan.lanes[0]
    if not plan.reads:
        cast("asyncio.Transport", writer.transport).pause_reading()
    try:
        async with asyncio.timeout(BOUND):
            with contextlib.suppress(OSError):
                for piece in pieces(r, lane.packets, plan.pieces):
                    writer.write(piece)
                    if r.random() < 0.5:
                        await asyncio.sleep(0)
                    if plan.reads:
                        await writer.drain()
                if lane.end == "fin":
                    may_write = False
                    if context is None:
                        writer.write_eof()
                    else:
                        await asyncio.sleep(0.005)
                        writer.close()
                elif lane.end == "open":
                    await asyncio.wait([reading], timeout=r.choice((0.02, 0.3)))
                    if not plan.reads:
                        reading.cancel()
                    writer.transport.abort()
                else:
                    writer.transport.abort()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.result()
    except TimeoutError:
        raise Unanswered(f"{lane.end} after {sum(map(len, lane.packets))} bytes over TCP") from None
    finally:
        reading.cancel()
        writer.transport.abort()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()
    return "closed"


# --- QUIC -------------------------------------------------------------------------------------------------------------


async def over_quic(r: Random, plan: Plan, url: str, ca_file: Path, *, ends_with_control: bool) -> str:
    """Throw a plan over QUIC: its lanes are streams, interleaved; returns what came of it.

    Raises
    ------
    Unanswered
        The broker did not end the control stream, or the connection, after we had.
    """
    try:
        async with asyncio.timeout(BOUND):
            connection = await open_quic(parse_url(url), trust=Trust(ca_file=ca_file), alpn=plan.alpn)
    except LabError as error:
        return f"not connected: {error}"
    over = asyncio.Event()

    def listen_to(stream: ByteStream, *, headers: bool) -> None:
        answering = Answering(r, plan.version, stream.write, headers=headers)
        stream.on_data = answering.feed if plan.answers else lambda _: None
        if not plan.reads:
            stream.pause_reading()
        if stream.id == 0:
            stream.on_end = over.set
            stream.on_reset = lambda _: over.set()

    def refuse_or_listen(stream: ByteStream) -> None:
        if r.random() < 0.2:
            stream.reset(r.choice((0, 0xB3, 0xBC, 0xBD, 0xBE, 0xC0)))
        else:
            listen_to(stream, headers=True)
            if r.random() < 0.1:
                stream.end()

    connection.on_stream = refuse_or_listen
    connection.closed.add_done_callback(lambda _: over.set())
    try:
        async with asyncio.timeout(BOUND):
            await _write_lanes(r, plan, connection, listen_to)
            lane = plan.lanes[0]
            if ends_with_control and lane.end == "fin":
                await over.wait()
            elif lane.end == "reset":
                await asyncio.sleep(0.005)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), r.choice((0.02, 0.2)))
    except TimeoutError:
        raise Unanswered(f"{plan.lanes[0].end} on the control stream over QUIC") from None
    finally:
        if r.random() < 0.5:
            await connection.close()
        else:
            connection.abort()
    return "closed"


async def _write_lanes(r: Random, plan: Plan, connection: QuicConnection, listen_to: Any) -> None:
    lanes = list(plan.lanes)
    streams: list[ByteStream | None] = []
    waiting: list[list[bytes]] = []
    open_lanes: list[Lane] = []
    for lane in lanes:
        stream: ByteStream | None = None
        if lane.kind == "control":
            stream = connection.control
        elif lane.kind != "datagram":
            unidirectional = lane.kind == "uni"
            if connection.stream_credit(unidirectional=unidirectional) <= 0:
                continue
            stream = connection.open_stream(unidirectional=unidirectional)
        if stream is not None:
            listen_to(stream, headers=False)
        streams.append(stream)
        packets = [lane.header, *lane.packets] if lane.header else lane.packets
        waiting.append(pieces(r, packets, "packets" if stream is None else plan.pieces)[::-1])
        open_lanes.append(lane)
    todo = list(range(len(open_lanes)))
    if r.random() < 0.7:  # mostly CONNECT comes first
        while waiting[0] and r.random() < 0.9:
            cast("ByteStream", streams[0]).write(waiting[0].pop())
    while todo and not connection.is_closed:
        number = r.choice(todo)
        stream = streams[number]
        if waiting[number]:
            piece = waiting[number].pop()
            if stream is not None:
                stream.write(piece)
            else:
                with contextlib.suppress(LabError):
                    connection.send_datagram(piece)
            if r.random() < 0.3:
                await asyncio.sleep(0)
            continue
        todo.remove(number)
        if stream is not None:
            await asyncio.sleep(0)
            if open_lanes[number].end == "fin":
                stream.end()
            elif open_lanes[number].end == "reset":
                stream.reset(r.choice((0, 0xBC, 0xBD, 1 << 40)))


# --- the handshake ----------------------------------------------------------------------------------------------------


FRAMES = tuple(
    bytes.fromhex(text)
    for text in (
        "01", "02000000", "0200ffffffff0000", "0300000001010101", "0400" + "40ff" + "00", "050000", "0600050102030405",
        "0700", "070403010203", "08003000", "0a0005c000000000", "0e00bfffffff0161", "0f00ffffffffffffffff0161", "1000",
        "10ffffffffffffffff", "1100ffffffffffffffff", "12d000000000000001", "12ffffffffffffffff", "1300", "1400",
        "150000", "1600", "18010008" + "01" * 24, "1801000000", "190f", "1aaaaaaaaaaaaaaaaa", "1bbbbbbbbbbbbbbbbb",
        "1c0a0000", "1d000000", "1e", "30" + "00" * 8, "310461626364", "4031", "ffffffffffffffff",
    )
)  # fmt: skip
"""QUIC frames, good and bad: each type of RFC 9000 section 19 and RFC 9221, with numbers that are at the edge."""


class _Mutated(Engine):
    """A client's QUIC engine whose TLS messages and frames are mutated before they are encrypted."""

    r: Random
    share = 0.0
    frames = 0.0

    def spoil_packets(self) -> None:
        """Mutate the frames of packets, with everything around them as it should be."""
        for pair in {id(each): each for each in self._pairs()}.values():
            self._spoil(pair)

    def _pairs(self) -> list[Any]:
        own = cast("Any", self)
        return [*own._cryptos.values(), *own._cryptos_initial.values()]

    def _spoil(self, pair: Any) -> None:
        encrypt, r = pair.encrypt_packet, self.r

        def spoiled(header: bytes, payload: bytes, number: int) -> Any:
            if payload and r.random() < self.frames:
                size = len(payload)
                payload = r.choice(FRAMES) + payload if r.random() < 0.5 else r.choice(ONE)(r, payload)
                payload = payload[:size].ljust(size, b"\0")  # the header says how long it is
            return encrypt(header, payload, number)

        pair.encrypt_packet = spoiled

    def _push_crypto_data(self) -> None:
        for epoch, buffer in cast("Any", self)._crypto_buffers.items():
            data = bytes(buffer.data)
            if data and self.r.random() < self.share:
                data = self.r.choice(ONE)(self.r, data)
            cast("Any", self)._crypto_streams[epoch].sender.write(data)
            buffer.seek(0)


class _Sink(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)


def _mutate_datagrams(r: Random, datagrams: list[bytes], earlier: list[bytes]) -> list[bytes]:
    out: list[bytes] = []
    for datagram in datagrams:
        how = r.randrange(12)
        if how < 6:
            datagram = r.choice(ONE)(r, datagram)
        elif how == 6:
            out.append(datagram)  # twice
        elif how == 7:
            continue  # lost
        elif how == 8 and earlier:
            out.append(r.choice(earlier))  # an old one again
        elif how == 9 and earlier:
            other = r.choice(earlier)
            datagram = datagram[: r.randrange(len(datagram))] + other[r.randrange(len(other)) :]
        elif how == 10:
            out.append(r.randbytes(r.choice((1, 20, 1200))))
        out.append(datagram)
    if r.random() < 0.2:
        r.shuffle(out)
    return out


async def handshake(r: Random, port: int) -> str:
    """Throw the datagrams of a handshake at a listener, mutated; whether it answers is its own affair.

    Bytes that have been encrypted do not get far, so in most cases it is what stands in them that is mutated.
    """
    loop = asyncio.get_running_loop()
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["mqtt"], server_name="localhost", verify_mode=ssl.CERT_NONE
    )
    engine = _Mutated(configuration=configuration)
    engine.r = r
    address = ("127.0.0.1", port)
    transport, sink = await loop.create_datagram_endpoint(_Sink, remote_addr=address)
    earlier: list[bytes] = []
    target = r.choice(("datagrams", "tls", "frames", "frames", "late frames", "late frames"))
    if target == "tls":
        engine.share = r.choice((0.5, 1.0))
    calm = target != "datagrams"
    is_sent = False
    try:
        engine.connect(address, now=time.monotonic())
        if "frames" in target:
            engine.spoil_packets()
            engine.frames = 0.0 if target == "late frames" else r.choice((0.2, 1.0))
        for _ in range(r.choice((1, 2, 4, 6, 12))):
            if cast("Any", engine)._handshake_complete:
                if target == "late frames":
                    engine.frames = r.choice((0.3, 1.0))
                for stream_id in (0,) if not is_sent else (0, 4, 2):
                    data = Connect("fuzz-1").encode() if not is_sent else b"\x30\x03\x00\x01a"
                    with contextlib.suppress(AssertionError, ValueError, RuntimeError):  # the peer may have reset it
                        engine.send_stream_data(stream_id, data)
                is_sent = True
            datagrams = [data for data, _ in engine.datagrams_to_send(now=time.monotonic())]
            for datagram in datagrams if calm else _mutate_datagrams(r, datagrams, earlier):
                if datagram:
                    transport.sendto(datagram)
            earlier += datagrams
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    engine.receive_datagram(await sink.received.get(), address, now=time.monotonic())
            while not sink.received.empty():
                engine.receive_datagram(sink.received.get_nowait(), address, now=time.monotonic())
    finally:
        transport.close()
    return "handshake complete" if cast("Any", engine)._handshake_complete else "no handshake"
