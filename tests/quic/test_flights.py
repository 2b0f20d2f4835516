"""The ladder: flights told apart by cause, not by time."""

from __future__ import annotations

import itertools

import pytest

from mqttquic_lab.quic.flights import MAX_FLIGHTS, MAX_PACKETS, FlightRecorder


class Story:
    """Feeds a recorder, with a clock that ticks."""

    def __init__(self) -> None:
        self.recorder = FlightRecorder()
        self.clock = itertools.count(100)

    def message(self, sender: str, kind: int) -> Story:
        self.recorder.message(sender, kind, next(self.clock))  # type: ignore[arg-type]
        return self

    def packet(self, sender: str, kind: str, *frames: str) -> Story:
        self.recorder.packet(sender, kind, frames, next(self.clock))  # type: ignore[arg-type]
        return self

    def ladder(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return [(flight.sender, flight.packets, flight.content) for flight in self.recorder.flights(100)]


def hello(story: Story) -> Story:
    story.message("client", 1).packet("client", "initial", "crypto", "padding")
    return story


def answer(story: Story) -> Story:
    story.message("server", 2).packet("server", "initial", "ack", "crypto")
    story.packet("client", "initial", "ack")  # in between: an acknowledgement only
    for kind in (8, 11, 15, 20):
        story.message("server", kind)
    return story.packet("server", "handshake", "crypto")


def test_full_handshake() -> None:
    story = answer(hello(Story()))
    story.message("client", 20).packet("client", "handshake", "ack", "crypto")
    story.packet("server", "1RTT", "handshake_done", "crypto")
    story.message("server", 4)
    story.recorder.content("client", "CONNECT", sent_already=False)
    story.packet("client", "1RTT", "stream", "ack")
    story.packet("server", "1RTT", "ack")
    story.packet("server", "1RTT", "stream")
    story.recorder.content("server", "CONNACK", sent_already=True)
    story.recorder.freeze()
    story.packet("client", "1RTT", "stream")
    assert story.ladder() == [
        ("client", ("Initial",), ("ClientHello",)),
        (
            "server",
            ("Initial", "Handshake"),
            ("ServerHello", "EncryptedExtensions", "Certificate", "CertificateVerify", "Finished"),
        ),
        ("client", ("Handshake", "1-RTT"), ("Finished", "CONNECT")),
        ("server", ("1-RTT",), ("HANDSHAKE_DONE", "NewSessionTicket", "CONNACK")),
    ]
    assert story.recorder.round_trips() == 2
    starts = [flight.start for flight in story.recorder.flights(100)]
    assert starts == sorted(starts)
    assert starts[0] == 0


def test_resumption_with_early_data_takes_one_round_trip() -> None:
    story = Story()
    story.recorder.content("client", "CONNECT", sent_already=False)
    story.message("client", 1).packet("client", "initial", "crypto").packet("client", "0RTT", "stream")
    for kind in (2, 8, 20):
        story.message("server", kind)
    story.packet("server", "initial", "crypto").packet("server", "handshake", "crypto")
    story.message("client", 20).packet("client", "handshake", "crypto")
    story.packet("server", "1RTT", "stream")  # half a round trip after the ClientHello, though it arrives later
    story.packet("server", "1RTT", "handshake_done", "crypto")
    story.recorder.content("server", "CONNACK", sent_already=True)
    story.recorder.freeze()
    assert story.ladder() == [
        ("client", ("Initial", "0-RTT"), ("ClientHello", "CONNECT")),
        (
            "server",
            ("Initial", "Handshake", "1-RTT"),
            ("ServerHello", "EncryptedExtensions", "Finished", "CONNACK"),
        ),
    ]
    assert story.recorder.round_trips() == 1


@pytest.mark.parametrize(("packet", "name"), [("retry", "Retry"), ("version_negotiation", "Version Negotiation")])
def test_starting_again_costs_a_round_trip(packet: str, name: str) -> None:
    story = hello(Story()).packet("server", packet)
    answer(story.packet("client", "initial", "crypto"))
    assert [content for _, _, content in story.ladder()][:3] == [("ClientHello",), (name,), ("ClientHello",)]
    assert story.recorder.round_trips() == 2


def test_authentication_exchange_adds_round_trips() -> None:
    story = answer(hello(Story()))
    story.message("client", 20).packet("client", "handshake", "crypto")
    for _ in range(3):
        story.packet("client", "1RTT", "stream").packet("server", "1RTT", "stream")
    assert [sender for sender, _, _ in story.ladder()] == ["client", "server"] * 4
    assert story.recorder.round_trips() == 4


@pytest.mark.parametrize("known", [False, True])
def test_data_that_was_written_before_the_answer_came_is_no_answer_to_it(known: bool) -> None:
    """A message of many packets, or one that is sent again after a loss; only our own side is known to have written."""
    story = answer(hello(Story()))
    story.message("client", 20).packet("client", "handshake", "crypto")
    for _ in range(2):
        if known:
            story.recorder.wrote("client")
        for _ in range(3):
            story.packet("client", "1RTT", "stream").packet("server", "1RTT", "stream")
    assert [sender for sender, _, _ in story.ladder()] == ["client", "server"] * (3 if known else 7)


def test_a_repeated_client_hello_is_one() -> None:
    story = hello(Story()).packet("client", "initial", "crypto").packet("client", "initial", "crypto")
    assert story.ladder() == [("client", ("Initial",), ("ClientHello",))]
    assert story.recorder.flights(100)[0].end == 3


def test_a_late_repetition_of_the_clients_finished_opens_no_flight() -> None:
    story = answer(hello(Story()))
    story.message("client", 20).packet("client", "handshake", "crypto")
    story.packet("server", "1RTT", "handshake_done").packet("client", "handshake", "crypto")
    assert len(story.ladder()) == 4


def test_bounded() -> None:
    story = answer(hello(Story())).message("client", 20)
    for _ in range(MAX_FLIGHTS):
        story.packet("client", "1RTT", "stream").packet("server", "1RTT", "stream")
    assert len(story.ladder()) <= MAX_FLIGHTS
    other = hello(Story())
    for _ in range(MAX_PACKETS):
        other.packet("server", "1RTT", "stream")
    assert other.recorder.frozen


def test_unknown_message_types_are_shown_as_numbers() -> None:
    assert hello(Story()).message("server", 99).ladder()[-1][2] == ("TLS message 99",)
