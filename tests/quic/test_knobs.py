"""What may be chosen about a connection, and whether both ends then really do it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.errors import DisconnectedError, HandshakeError, OperationTimeoutError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import CertificateAuthority, Trust
from mqttquic_lab.quic import knobs as knobs_module
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.congestion import CongestionControl, register_congestion_control
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.private_keys import key_phase
from mqttquic_lab.quic.reasons import CloseInfo
from mqttquic_lab.trace import Trace
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import HANG, Inbox, connected, echo, serving, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.certs import Identities

V1, V2 = "QUIC v1", "QUIC v2"


# --- names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quic_version": "v3"}, "did you mean 'v[12]'?.*known are v1, v2, v1-to-v2"),
        ({"quic_version": ()}, "quic_version is empty"),
        ({"quic_version": ("v1", "v9")}, "known are v1, v2, v1-to-v2"),
        ({"quic_version": "v1-to-v2", "server": True}, "known are v1, v2$"),
        ({"cipher_suites": ["AES_128_GCM"]}, "did you mean 'AES_128_GCM_SHA256'.*CHACHA20_POLY1305_SHA256"),
        ({"cipher_suites": []}, "cipher_suites is empty"),
        ({"cipher_suites": [5]}, "takes names, not 5"),
        ({"groups": "X2551"}, "did you mean 'X25519'.*known are X25519, SECP256R1"),
        ({"congestion": "bbr"}, "known are newreno, cubic.*register_congestion_control"),
        ({"congestion": "renoo"}, "did you mean 'newreno'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Knobs.of(**options)


def test_names_have_several_spellings() -> None:
    assert Knobs.of() == Knobs()
    assert Knobs.of(cipher_suites="tls_aes_128_gcm_sha256").cipher_suites == ("AES_128_GCM_SHA256",)
    assert Knobs.of(groups=["x25519", "P-256", "secp384r1", "p256"]).groups == ("X25519", "SECP256R1", "SECP384R1")
    assert Knobs.of(quic_version=["v2", "v1", "v2"]).versions == ("v2", "v1")


def test_which_tickets_fit() -> None:
    assert Knobs.of().ticket_version == "v1"
    assert Knobs.of(quic_version="v2").ticket_version == "v2"
    assert Knobs.of(quic_version=("v2", "v1")).ticket_version == "v2"
    assert Knobs.of(quic_version="v1-to-v2").ticket_version is None


def test_checking_names_does_not_import_aioquic() -> None:
    code = (
        "import sys; from mqttquic_lab.quic.knobs import Knobs; from mqttquic_lab.quic.tickets import TicketStore; "
        "from mqttquic_lab.session.options import SessionOptions; from mqttquic_lab.broker.config import BrokerConfig; "
        "SessionOptions(congestion='cubic', early_data=True); BrokerConfig(early_data=True); "
        "print('aioquic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- versions


@pytest.mark.parametrize(
    ("client", "server", "version", "first", "round_trips"),
    [
        (None, None, V1, V1, 1),
        ("v1", None, V1, V1, 1),
        ("v2", None, V2, V2, 1),
        (None, "v1", V1, V1, 1),
        (None, "v2", V2, V1, 2),  # Version Negotiation
        (("v2", "v1"), "v1", V1, V2, 2),
        ("v1-to-v2", None, V2, V1, 1),  # compatible version negotiation
        ("v1-to-v2", "v1", V1, V1, 1),
    ],
)
async def test_versions(
    identities: Identities, client: Any, server: Any, version: str, first: str, round_trips: int
) -> None:
    async with serving(identities, knobs=Knobs.of(quic_version=server, server=True)) as listening:
        listening.on_stream = echo
        knobs = Knobs.of(quic_version=client)
        async with connected(listening, identities, knobs=knobs) as (mine, theirs):
            mine.control.write(b"x")
            await Inbox(mine.control).read(1)
            for report in (mine.refresh_report(), theirs.refresh_report()):
                assert report.quic_version == version
            report = mine.report
            assert report.first_quic_version == first
            assert report.version_negotiated is (version != first)
            content = [flight.content[0] for flight in report.flights]
            assert ("Version Negotiation" in content) is (round_trips == 2)
            hellos = content.index("ServerHello")
            assert sum(flight.sender == "server" for flight in report.flights[: hellos + 1]) == round_trips
            assert listening.listener.version_negotiations == round_trips - 1


async def test_no_version_in_common(identities: Identities) -> None:
    async with serving(identities, knobs=Knobs.of(quic_version="v1", server=True)) as server:
        with pytest.raises(HandshakeError, match="try another quic_version"):
            await open_quic(server.address, trust=identities.trust, knobs=Knobs.of(quic_version="v2"))


# --- TLS


@pytest.mark.parametrize("suite", knobs_module.CIPHER_SUITES)
async def test_cipher_suites(identities: Identities, suite: str) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        async with connected(server, identities, knobs=Knobs.of(cipher_suites=suite)) as (client, accepted):
            client.control.write(b"x")
            await Inbox(client.control).read(1)
            assert client.report.cipher_suite == accepted.report.cipher_suite == f"TLS_{suite}"


@pytest.mark.parametrize("group", knobs_module.GROUPS)
async def test_groups(identities: Identities, group: str) -> None:
    # A server offers what it is told to, beyond its usual ones, too.
    async with (
        serving(identities, knobs=Knobs.of(groups=[group], server=True)) as server,
        connected(server, identities, knobs=Knobs.of(groups=[group])) as (client, accepted),
    ):
        assert client.report.key_exchange_group == accepted.report.key_exchange_group == group


async def test_the_servers_choice(identities: Identities) -> None:
    knobs = Knobs.of(cipher_suites=["CHACHA20_POLY1305_SHA256"], groups=["SECP384R1"], server=True)
    async with serving(identities, knobs=knobs) as server, connected(server, identities) as (client, _):
        assert client.report.cipher_suite == "TLS_CHACHA20_POLY1305_SHA256"
        assert client.report.key_exchange_group == "SECP384R1"


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"cipher_suites": "AES_128_GCM_SHA256"}, {"cipher_suites": "CHACHA20_POLY1305_SHA256"}),
        ({"groups": "X25519"}, {"groups": "SECP256R1"}),
    ],
)
async def test_nothing_in_common(identities: Identities, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    async with serving(identities, knobs=Knobs.of(**theirs, server=True)) as server:
        with pytest.raises(HandshakeError, match=r"offer more with cipher_suites and groups"):
            await open_quic(server.address, trust=identities.trust, knobs=Knobs.of(**mine))


# --- congestion control


class Fixed(CongestionControl):
    """Twenty packets, whatever happens."""

    made = 0

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = 20 * max_datagram_size
        type(self).made += 1

    def on_packet_sent(self, *, packet: Any) -> None:
        self.bytes_in_flight += packet.sent_bytes

    def on_packet_acked(self, *, now: float, packet: Any) -> None:
        self.bytes_in_flight -= packet.sent_bytes

    def on_packets_expired(self, *, packets: Any) -> None:
        self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    def on_packets_lost(self, *, now: float, packets: Any) -> None:
        self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(knobs_module.registered)
    yield
    knobs_module.registered.clear()
    knobs_module.registered.update(before)


@pytest.mark.parametrize("name", ["newreno", "cubic", "fixed"])
async def test_congestion_controllers_carry_data(identities: Identities, name: str, registry: None) -> None:
    register_congestion_control("fixed", Fixed)
    made = Fixed.made
    knobs = Knobs.of(congestion=name)
    async with serving(identities, knobs=Knobs.of(congestion=name, server=True)) as server:
        server.on_stream = echo
        async with connected(server, identities, knobs=knobs) as (client, _accepted):
            data = bytes(range(256)) * 1000
            client.control.write(data)
            assert await Inbox(client.control).read(len(data)) == data
            assert client.report.congestion_control == name
            await settle(lambda: client.bytes_in_flight == 0)
            if name == "fixed":
                assert client.congestion_window == 24_000
                assert Fixed.made == made + 2
            controller = client.engine._loss._cc
            assert type(controller).__name__.lower().startswith({"newreno": "reno"}.get(name, name))


async def test_the_default_controller(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        assert client.report.congestion_control == "newreno"
    async with serving(identities) as server, connected(server, identities, tuning="loopback") as (client, _):
        assert client.report.congestion_control == "loopback"


def test_registering_is_checked(registry: None) -> None:
    class Half(CongestionControl):
        def on_packet_sent(self, *, packet: Any) -> None:
            pass

    for name, factory, words in (
        ("cubic", Fixed, "built-in"),
        ("reno", Fixed, "built-in"),
        ("", Fixed, "needs a name"),
        (" ", Fixed, "needs a name"),
        ("x", dict, "must return an mq.CongestionControl, not dict"),
        ("x", lambda: None, "raised TypeError"),
        ("x", Half, "lacks on_packet_acked, on_packets_expired, on_packets_lost"),
    ):
        with pytest.raises(UsageError, match=words):
            register_congestion_control(name, cast("Any", factory))
    with pytest.raises(UsageError):
        Knobs.of(congestion="x")
    register_congestion_control("x", Fixed)
    register_congestion_control("x", Fixed)  # as a notebook cell does that is run again
    assert Knobs.of(congestion="x").congestion == "x"


async def test_a_controller_that_raises_ends_its_connection_only(
    identities: Identities, registry: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Fixed):
        def on_packet_acked(self, *, now: float, packet: Any) -> None:
            raise ZeroDivisionError("a bug in a lesson")

    register_congestion_control("broken", Broken)
    async with serving(identities) as server:
        with pytest.raises(HandshakeError, match="internal error"):
            await open_quic(server.address, trust=identities.trust, knobs=Knobs.of(congestion="broken"))
        async with connected(server, identities) as (client, _accepted):
            assert client.is_established
    assert "a bug in a lesson" in caplog.text


# --- key update (RFC 9001 section 6)


async def test_key_updates_of_both_sides(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        trace = Trace()
        async with connected(server, identities, trace=trace) as (client, accepted):
            inbox = Inbox(client.control)
            assert client.refresh_report().key_phase == 0
            phases = []
            for number in range(5):
                side = client if number % 2 == 0 else accepted
                phases.append(await side.update_keys())
                client.control.write(b"under new keys")
                assert await inbox.read(14) == b"under new keys"
                assert key_phase(client.engine) == key_phase(accepted.engine) == phases[-1]
            assert phases == [1, 0, 1, 0, 1]
            for connection in (client, accepted):
                report = connection.refresh_report()
                assert (report.key_phase, report.key_updates) == (1, 5)
            told = [event.data["by_peer"] for event in trace if event.name == "key_phase_updated"]
            assert told == [False, True, False, True, False]


async def test_key_updates_one_after_the_other(identities: Identities) -> None:
    """The next may begin only when the one before was acknowledged (RFC 9001 section 6.1)."""
    async with serving(identities) as server:
        server.on_stream = echo
        async with connected(server, identities) as (client, _accepted):
            assert await asyncio.gather(*(client.update_keys() for _ in range(4))) == [1, 0, 1, 0]
            client.control.write(b"x")
            await Inbox(client.control).read(1)
            assert client.report.key_updates == 4


async def test_a_key_update_before_the_handshake_is_confirmed(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0], delay=0.03) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, _accepted):
            assert "handshake_confirmed" not in client.report.timings
            assert await client.update_keys() == 1


async def test_key_updates_under_load_on_a_bad_path(identities: Identities) -> None:
    from tests.helpers.lossy import Ills

    async with serving(identities) as server:
        server.on_stream = echo
        async with LossyRelay(server.listener.addresses[0], Ills(0.05, 0.05, 0.1), seed=5) as relay:
            address = Address.of("quic", *relay.address)
            async with connected(server, identities, address=address) as (client, _accepted):
                inbox = Inbox(client.control)
                data = bytes(range(256)) * 400
                client.control.write(data)
                for _ in range(4):
                    await client.update_keys(timeout=HANG)
                assert await inbox.read(len(data)) == data


async def test_a_key_update_that_nobody_answers(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, accepted):
            await client.ping()
            relay.blackhole = True
            with pytest.raises(OperationTimeoutError, match=r"under new keys within 0\.05 s"):
                await client.update_keys(timeout=0.05)
            relay.blackhole = False
            await client.ping(HANG)
            await accepted.close()
            await client.closed
            with pytest.raises(DisconnectedError):
                await client.update_keys()


# --- idle timeout and PINGs (RFC 9000 section 10.1)


async def test_the_idle_timeout_ends_a_silent_connection(identities: Identities) -> None:
    async with serving(identities) as server:
        options = {"idle_timeout": 0.7, "keep_alive": False}
        async with connected(server, identities, **options) as (client, accepted):
            assert client.report.idle_timeout == accepted.report.idle_timeout == pytest.approx(0.7)
            async with asyncio.timeout(HANG):
                reason = await client.closed
            assert "nothing was heard from the peer for 0.7 s" in str(reason)
            assert client.report.closed_with == "nothing was heard from the peer for the QUIC idle timeout"


async def test_pings_keep_it_alive(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities, idle_timeout=0.7) as (client, accepted):
        before = accepted.datagrams_received
        await asyncio.sleep(1.2)  # longer than the idle timeout: that nothing ends is what is tested
        assert not client.is_closed
        assert accepted.datagrams_received >= before + 3


async def test_the_shorter_idle_timeout_counts(identities: Identities) -> None:
    async with serving(identities, idle_timeout=30.0) as server, connected(server, identities) as (client, _):
        assert client.report.idle_timeout == 30.0


# --- close codes


async def test_close_codes_are_readable(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        await accepted.close(0xB4, "rule broken")
        await client.closed
        info = client.close_info
        assert info is not None
        assert (info.error_code, info.application, info.reason, info.by_peer) == (0xB4, True, "rule broken", True)
        said = "the peer closed the connection with application code 0xb4: rule broken"
        assert client.report.closed_with == info.sentence() == said
        theirs = accepted.report.closed_with
        assert theirs == "this side closed the connection with application code 0xb4: rule broken"


def test_an_idle_timeout_is_no_error_code() -> None:
    info = CloseInfo(1, application=False, reason="Idle timeout", by_peer=False)
    assert "INTERNAL_ERROR" not in info.sentence()


# --- Retry and the anti-amplification limit (RFC 9000 sections 8.1 and 8.1.2)


def large_identity() -> tuple[Any, Trust]:
    """A certificate of more than three datagrams: two hundred names."""
    authority = CertificateAuthority.create("an authority with a large customer")
    names = ["127.0.0.1", *(f"number-{n:04}.of-a-rather-long-name.example" for n in range(150))]
    return authority.issue(names), Trust(ca_data=authority.pem)


async def test_a_server_sends_at_most_three_times_as_much(identities: Identities) -> None:
    identity, trust = large_identity()
    trace = Trace()
    async with serving(identities, identity=identity, trace=trace) as server:
        # Everything after the first datagram of the client is held up: the server must stop and wait.
        async with LossyRelay(server.listener.addresses[0], lost_to_server=range(2, 8)) as relay:
            address = Address.of("quic", *relay.address)
            async with connected(server, identities, address=address, trust=trust) as (client, _accepted):
                assert client.refresh_report().verification == "verified"
        received = sent = 0
        for passage in relay.log:
            if passage.to_server and passage.fate == "passed":
                if received and received != 1200:
                    break
                received += len(passage.data)
                if received > 1200:
                    break  # the second that arrived: the address is validated by what is in it
            elif not passage.to_server:
                sent += len(passage.data)
                assert sent <= 3 * received
        assert sent > 2 * 1200  # it made use of what it may send
        assert server.listener.amplification_limited == 1
        [event, *_] = [event for event in trace if event.name == "amplification_limited"]
        assert event.data["received"] == 1200
        assert event.data["limit"] == 3600
        assert 2400 < event.data["sent"] <= 3600


async def test_a_retry_lifts_the_limit(identities: Identities) -> None:
    """A client that brings a token has proved its address."""
    identity, trust = large_identity()
    async with (
        serving(identities, identity=identity, retry=True) as server,
        connected(server, identities, trust=trust) as (client, accepted),
    ):
        assert client.report.retry
        assert accepted.report.retry
        assert server.listener.retries == 1
        assert server.listener.amplification_limited == 0


async def test_a_small_certificate_meets_no_limit(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities):
        assert server.listener.amplification_limited == 0
