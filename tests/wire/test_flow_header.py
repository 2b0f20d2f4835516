"""Flow headers: RFC 9000 integers, flags, incremental decoding, field spans, and what a bad one raises."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import ErrorLevel, FlowError, FlowFlags, FlowHeader, FlowHeaderDecoder, FlowType, PacketDecoder
from mqttquic_lab.mqtt.flow_codes import StreamCode
from mqttquic_lab.mqtt.flow_header import MAX_HEADER_SIZE, MAX_VARINT, check_header, decode_varint, encode_varint
from mqttquic_lab.mqtt.state import Role
from tests.wire.strategies import light, packets

C, S = Role.CLIENT, Role.SERVER
varints = st.one_of(
    st.sampled_from([0, 63, 64, 16_383, 16_384, 2**30 - 1, 2**30, MAX_VARINT]), st.integers(0, MAX_VARINT)
)
flags = st.builds(
    FlowFlags, st.booleans(), st.booleans(), st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()
)


@st.composite
def headers(draw: st.DrawFn) -> FlowHeader:
    type_ = draw(st.sampled_from(FlowType))
    data = type_ in (FlowType.CLIENT_DATA, FlowType.SERVER_DATA)
    interval = draw(varints) if data else 0
    return FlowHeader(type_, draw(varints), interval, FlowFlags() if type_ is FlowType.USER_DEFINED else draw(flags))


def decode(data: bytes) -> FlowHeader:
    header = FlowHeaderDecoder().feed(data)
    assert header is not None
    return header


@pytest.mark.parametrize(
    ("value", "wire"),
    [  # the examples of RFC 9000 appendix A.1
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
    ],
)
def test_varint_examples_of_rfc_9000(value: int, wire: str) -> None:
    assert encode_varint(value).hex() == wire
    assert decode_varint(bytes.fromhex(wire)) == (value, len(wire) // 2)


def test_varint_in_more_bytes_than_needed_is_read() -> None:
    assert decode_varint(b"\xff\x40\x25", 1) == (37, 3)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1, 1.5, None])
def test_varint_refuses_what_does_not_fit(value: Any) -> None:
    with pytest.raises(UsageError, match="2\\*\\*62"):
        encode_varint(value)


@light(200)
@given(varints)
def test_varint_round_trip_and_every_prefix_is_incomplete(value: int) -> None:
    data = encode_varint(value)
    assert decode_varint(data + b"x") == (value, len(data))
    assert all(decode_varint(data[:n]) is None for n in range(len(data)))


def test_every_flag_has_the_draft_s_bit() -> None:
    one_bit = {
        "clean": 0x01,
        "abort_if_no_state": 0x02,
        "persistent_qos": 0x10,
        "persistent_topic_alias": 0x20,
        "persistent_subscriptions": 0x40,
        "optional_headers": 0x80,
    }
    for name, bit in one_bit.items():
        assert FlowFlags(**{name: True}).to_byte() == bit
    assert [FlowFlags(err_tolerance=n).to_byte() for n in range(4)] == [0x00, 0x04, 0x08, 0x0C]


def test_each_flags_byte_means_itself() -> None:
    for value in range(256):
        read = FlowFlags.from_byte(value)
        assert read.to_byte() == value
        bits = read.bits()
        assert sum(int(bit.value) << bit.low for bit in bits) == value
        assert [bit.high for bit in bits] == [7, 6, 5, 4, 3, 1, 0]


def test_flags_repr_shows_what_is_set() -> None:
    assert repr(FlowFlags(clean=True, err_tolerance=2)) == "FlowFlags(clean, err_tolerance=2)"
    assert repr(FlowFlags()) == "FlowFlags()"


def test_discard_signal_is_clean_and_keeps_nothing() -> None:
    assert FlowFlags(clean=True, err_tolerance=3).discards
    assert not FlowFlags(clean=True, persistent_qos=True).discards
    assert not FlowFlags().discards


@pytest.mark.parametrize(
    ("header", "wire"),
    [
        (FlowHeader(FlowType.CONTROL, 0, flags=FlowFlags(clean=True)), "11 00 01"),
        (FlowHeader(FlowType.CLIENT_DATA, 2, 300, FlowFlags(persistent_qos=True)), "12 02 412c 10"),
        (FlowHeader(FlowType.SERVER_DATA, 3, 0, FlowFlags(abort_if_no_state=True)), "13 03 00 02"),
        (FlowHeader(FlowType.USER_DEFINED, 70), "14 4046"),
    ],
)
def test_headers_on_the_wire(header: FlowHeader, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert header.encode() == data
    read = decode(data + b"\x10")
    assert read == header
    assert read.raw == data


def test_fields_have_spans_and_bits() -> None:
    read = decode(bytes.fromhex("1240464180 91".replace(" ", ""))[:5] + b"\x51")
    fields = read.fields()
    assert [(f.name, f.start, f.end, f.value) for f in fields] == [
        ("flow_type", 0, 1, "CLIENT DATA FLOW"),
        ("flow_id", 1, 3, 70),
        ("flow_expire_interval", 3, 5, 0x180),
        ("flow_flags", 5, 6, 0x51),
    ]
    assert {bit.name: bit.value for bit in fields[3].bits}["persistent_subscriptions"] is True
    assert FlowHeader.control().fields() == ()


@light(200)
@given(headers())
def test_fields_tile_the_header(header: FlowHeader) -> None:
    read = decode(header.encode())
    spans = read.fields()
    assert spans[0].start == 0
    assert spans[-1].end == len(read.raw) <= MAX_HEADER_SIZE
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))


@st.composite
def _streams(draw: st.DrawFn) -> tuple[FlowHeader, list[Any], list[bytes]]:
    header = draw(headers())
    carried = draw(st.lists(packets(5, "server"), max_size=3)) if header.type is not FlowType.USER_DEFINED else []
    data = header.encode() + b"".join(packet.encode(5) for packet in carried)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return header, carried, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@light(200)
@given(_streams())
def test_any_chunking_of_header_and_packets(case: tuple[FlowHeader, list[Any], list[bytes]]) -> None:
    header, carried, chunks = case
    decoder, packet_decoder = FlowHeaderDecoder(), PacketDecoder(5, receiver="server")
    read: list[Any] = []
    for chunk in chunks:
        if decoder.done:
            read += packet_decoder.feed(chunk)
            continue
        if decoder.feed(chunk) is not None:
            read += packet_decoder.feed(decoder.rest)
        assert decoder.buffered <= MAX_HEADER_SIZE
    assert decoder.header == header
    assert read == carried
    decoder.finish()


@light(300)
@given(headers(), st.data())
def test_mutated_headers_raise_only_protocol_errors(header: FlowHeader, data: st.DataObject) -> None:
    wire = bytearray(header.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    wire += data.draw(st.binary(max_size=4))
    decoder = FlowHeaderDecoder(required=data.draw(st.booleans()))
    try:
        any(decoder.feed(bytes((byte,))) or decoder.done for byte in wire)
        decoder.finish()
        if decoder.header is not None:
            initiator = data.draw(st.sampled_from(Role))
            strict = data.draw(st.booleans())
            check_header(decoder.header, initiator=initiator, unidirectional=data.draw(st.booleans()), strict=strict)
    except FlowError:
        pass


@pytest.mark.parametrize("kind", [0x00, 0x10, 0x15, 0x21, 0x40, 0x54, 0x100])
def test_unknown_types_abort_the_stream(kind: int) -> None:
    decoder = FlowHeaderDecoder()
    with pytest.raises(FlowError, match="unknown flow type") as caught:
        decoder.feed(encode_varint(kind) + b"\x00\x00\x00")
    assert (caught.value.level, caught.value.code) == (ErrorLevel.STREAM, StreamCode.STREAM_TYPE)
    assert (caught.value.field, caught.value.offset) == ("flow_type", 0)
    assert ("reserved" in str(caught.value)) == (kind in {0x21, 0x40})
    with pytest.raises(FlowError):
        decoder.feed(b"\x11\x00\x00")  # poisoned


def test_optional_headers_cannot_be_read_past() -> None:
    header = FlowHeader(FlowType.CLIENT_DATA, 2, 5, FlowFlags(optional_headers=True), (b"abc",))
    wire = header.encode()
    assert wire[-4:] == b"\x03abc"
    with pytest.raises(FlowError, match="optional headers") as caught:
        decode(wire)
    assert caught.value.level is ErrorLevel.FLOW
    assert caught.value.code is StreamCode.OPTIONAL_HEADER
    assert caught.value.flow_id == 2
    assert (caught.value.field, caught.value.offset) == ("flow_flags", 3)


@pytest.mark.parametrize("size", range(5))
def test_fin_inside_a_header_is_an_incomplete_packet(size: int) -> None:
    decoder = FlowHeaderDecoder()
    assert not decoder.feed(bytes.fromhex("1202412c")[:size])
    with pytest.raises(FlowError, match="inside its flow header") as caught:
        decoder.finish()
    assert (caught.value.code, caught.value.level) == (StreamCode.INCOMPLETE_PACKET, ErrorLevel.STREAM)


def test_a_missing_header_is_fine_where_none_is_required() -> None:
    decoder = FlowHeaderDecoder(required=False)
    assert decoder.feed(b"") is None
    assert decoder.buffered == 0
    assert decoder.feed(b"\x10\x0d") is None
    assert decoder.done
    assert decoder.rest == b"\x10\x0d"
    with pytest.raises(UsageError, match="packet decoder"):
        decoder.feed(b"x")


def test_an_optional_header_is_read_where_there_is_one() -> None:
    decoder = FlowHeaderDecoder(required=False)
    assert not decoder.feed(b"\x11\x00")
    assert decoder.feed(b"\x50\x10") == FlowHeader.control() == decoder.header
    assert decoder.rest == b"\x10"


BAD_HEADERS = [
    # type, id, flags, initiator, unidirectional -> level, code, field
    (FlowType.CONTROL, 0, 0, S, False, ErrorLevel.CONNECTION, StreamCode.NOT_FLOW_OWNER, "flow_type"),
    (FlowType.CONTROL, 2, 0, C, False, ErrorLevel.CONNECTION, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.CONTROL, 0, 0, C, True, ErrorLevel.CONNECTION, StreamCode.STREAM_TYPE, "flow_type"),
    (FlowType.CONTROL, 0, 3, C, False, ErrorLevel.FLOW, StreamCode.DISCARD_STATE, "flow_persistent_flag"),
    (FlowType.CLIENT_DATA, 2, 0, S, False, ErrorLevel.FLOW, StreamCode.NOT_FLOW_OWNER, "flow_type"),
    (FlowType.SERVER_DATA, 3, 0, C, True, ErrorLevel.FLOW, StreamCode.NOT_FLOW_OWNER, "flow_type"),
    (FlowType.CLIENT_DATA, 3, 0, C, False, ErrorLevel.FLOW, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.CLIENT_DATA, 0, 0, C, False, ErrorLevel.FLOW, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.SERVER_DATA, 2, 0, S, False, ErrorLevel.FLOW, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.USER_DEFINED, 2, 0, S, False, ErrorLevel.FLOW, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.USER_DEFINED, 0, 0, C, False, ErrorLevel.FLOW, StreamCode.BAD_FLOW_ID, "flow_id"),
    (FlowType.CLIENT_DATA, 2, 3, C, False, ErrorLevel.FLOW, StreamCode.DISCARD_STATE, "flow_flags"),
    (FlowType.SERVER_DATA, 3, 0x40, S, False, ErrorLevel.FLOW, StreamCode.PERSISTENT_SUB, "flow_flags"),
]


@pytest.mark.parametrize(("type_", "flow_id", "bits", "initiator", "uni", "level", "code", "name"), BAD_HEADERS)
def test_headers_that_do_not_fit_their_stream(
    type_: FlowType,
    flow_id: int,
    bits: int,
    initiator: Role,
    uni: bool,
    level: ErrorLevel,
    code: StreamCode,
    name: str,
) -> None:
    header = decode(FlowHeader(type_, flow_id, flags=FlowFlags.from_byte(bits)).encode())
    with pytest.raises(FlowError) as caught:
        check_header(header, initiator=initiator, unidirectional=uni)
    error = caught.value
    assert (error.level, error.code, error.field, error.flow_id) == (level, code, name, flow_id)
    assert error.offset == next(field.start for field in header.fields() if field.name == name)


@pytest.mark.parametrize("uni", [False, True])
@pytest.mark.parametrize(
    ("type_", "flow_id", "initiator"),
    [
        (FlowType.CLIENT_DATA, 2, C),
        (FlowType.SERVER_DATA, 1, S),
        (FlowType.USER_DEFINED, 4, C),
        (FlowType.USER_DEFINED, 5, S),
    ],
)
def test_headers_that_fit(type_: FlowType, flow_id: int, initiator: Role, uni: bool) -> None:
    check_header(FlowHeader(type_, flow_id), initiator=initiator, unidirectional=uni)


def test_a_server_flow_with_a_client_s_id_is_mqttv5_s_own() -> None:
    header = FlowHeader(FlowType.SERVER_DATA, 2)
    check_header(header, initiator=S, unidirectional=False, strict=False)
    with pytest.raises(FlowError):
        check_header(FlowHeader(FlowType.CLIENT_DATA, 3), initiator=C, unidirectional=False, strict=False)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (FlowHeader(FlowType.CONTROL, 0, 5), "no expire interval"),
        (FlowHeader(FlowType.USER_DEFINED, 2, flags=FlowFlags(clean=True)), "no flags"),
        (FlowHeader(FlowType.CLIENT_DATA, -1), "2\\*\\*62"),
        (FlowHeader(FlowType.CLIENT_DATA, 2, 2**62), "2\\*\\*62"),
        (FlowHeader(FlowType.CLIENT_DATA, 2, flags=FlowFlags(err_tolerance=4)), "from 0 to 3"),
        (FlowHeader(FlowType.CLIENT_DATA, 2, optional=(b"x",)), "the flag optional_headers"),
        (FlowHeader(FlowType.CLIENT_DATA, 2, 0, FlowFlags(optional_headers=True), (bytes(256),)), "ends at 255"),
    ],
)
def test_local_headers_that_cannot_be_sent(header: FlowHeader, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        header.encode()
