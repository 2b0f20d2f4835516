"""Opening connections: both address families, and each way in which it can fail, at once and with the right words."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import (
    AlpnError,
    CertificateError,
    ConnectTimeoutError,
    HandshakeError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.connection import QuicConnection
from mqttquic_lab.records.handshake import HandshakeReport
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import Inbox, connected, echo, serving, settle

if TYPE_CHECKING:
    from tests.helpers.certs import Identities


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tuning", ["realistic", "loopback"])
async def test_bytes_go_both_ways(identities: Identities, host: str, tuning: str) -> None:
    async with serving(identities, host, tuning=tuning) as server:
        server.on_stream = echo
        async with connected(server, identities, tuning=tuning) as (client, accepted):
            inbox = Inbox(client.control)
            client.control.write(b"PING over QUIC")
            assert await inbox.read(14) == b"PING over QUIC"
            assert client.transport == accepted.transport == "quic"
            assert client.local_address == accepted.peer_address
            assert client.peer_address == (host, server.listener.port) == accepted.local_address
            assert client.control.id == accepted.control.id == 0


async def test_a_name_with_two_addresses_reaches_the_one_that_listens(identities: Identities) -> None:
    async with serving(identities) as server:
        address = Address.of("quic", "localhost", server.listener.port)
        async with connected(server, identities, address=address) as (client, _):
            assert client.peer_address[0] == "127.0.0.1"
            assert client.report.server_name == "localhost"


async def test_listening_on_a_name_takes_all_its_addresses(identities: Identities) -> None:
    async with serving(identities, "localhost") as server:
        hosts = {address[0] for address in server.listener.addresses}
        for host in hosts:
            address = Address.of("quic", host, server.listener.port)
            async with connected(server, identities, address=address) as (client, _):
                assert client.peer_address[0] == host


async def test_local_address(identities: Identities, free_port: int) -> None:
    async with (
        serving(identities) as server,
        connected(server, identities, local_address=("127.0.0.1", free_port)) as (client, accepted),
    ):
        assert client.local_address == accepted.peer_address == ("127.0.0.1", free_port)


async def test_system_authorities_are_trusted_by_default_and_ours_is_not_among_them(identities: Identities) -> None:
    async with serving(identities) as server:
        with pytest.raises(CertificateError) as caught:
            await open_quic(server.address, trust=Trust())
        assert caught.value.problem == "untrusted"
        assert "the system's authorities" in str(caught.value)


async def test_ca_file_with_comments_and_crlf(identities: Identities, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"# our authority\r\n" + identities.authority.pem.replace(b"\n", b"\r\n") + b"\r\n# end\r\n")
    async with (
        serving(identities) as server,
        connected(server, identities, trust=Trust(ca_file=file)) as (client, _),
    ):
        assert client.refresh_report().verification == "verified"


async def test_verification_can_be_switched_off(identities: Identities) -> None:
    async with (
        serving(identities, identity=identities.untrusted) as server,
        connected(server, identities, trust=Trust(verify=False)) as (client, _),
    ):
        assert client.refresh_report().verification == "off"
        assert "switched off" in client.refresh_report().verification_detail


async def test_server_name_replaces_the_host(identities: Identities) -> None:
    async with serving(identities, identity=identities.wrong_name) as server:
        trust = Trust(ca_data=identities.authority.pem, server_name="broker.example")
        async with connected(server, identities, trust=trust) as (client, accepted):
            assert client.report.server_name == accepted.report.server_name == "broker.example"


@pytest.mark.parametrize(
    ("identity", "problem", "words"),
    [
        ("untrusted", "untrusted", "issued by 'CN=some other CA', which is not among ca_data: pass its CA certificate"),
        ("wrong_name", "name", "is not for '127.0.0.1' but for broker.example"),
        ("expired", "expired", "expired on 20"),
        ("not_yet_valid", "not-yet-valid", "is valid only from 20"),
    ],
)
async def test_a_bad_certificate_is_refused_with_the_chain(
    identities: Identities, identity: str, problem: str, words: str
) -> None:
    async with serving(identities, identity=getattr(identities, identity)) as server:
        report = HandshakeReport()
        with pytest.raises(CertificateError) as caught:
            await open_quic(server.address, trust=identities.trust, report=report)
        assert caught.value.problem == problem
        assert words in str(caught.value)
        presented = caught.value.chain[0].fingerprint_sha256
        assert presented == report.certificates[0].fingerprint_sha256
        assert report.state == "failed"
        assert report.verification == "failed"
        assert report.error == str(caught.value) == report.verification_detail
        # The server is told, and keeps nothing.
        await settle(lambda: server.listener.failed == 1)
        assert server.listener.handshakes == 0
        assert server.connections.empty()


async def test_expired_intermediate_is_not_called_untrusted(identities: Identities) -> None:
    async with (
        serving(identities, identity=identities.with_intermediate) as server,
        connected(server, identities) as (client, _),
    ):
        assert len(client.refresh_report().certificates) == 2
        assert len(client.refresh_report().verified_chain) == 3


async def test_ca_file_that_cannot_be_read_sends_nothing(identities: Identities, tmp_path: Path) -> None:
    async with serving(identities) as server:
        with pytest.raises(UsageError, match="cannot be read"):
            await open_quic(server.address, trust=Trust(ca_file=tmp_path / "none.pem"))
        (tmp_path / "bad.pem").write_text("not a certificate")
        with pytest.raises(UsageError, match="no certificate"):
            await open_quic(server.address, trust=Trust(ca_file=tmp_path / "bad.pem"))
        assert server.listener.socket_counters[0].datagrams_received == 0


async def test_wrong_alpn(identities: Identities) -> None:
    async with serving(identities, alpn=("h3",)) as server:
        with pytest.raises(AlpnError, match=r"none of the application protocols offered \('mqtt', 'MQTT-next'\)"):
            await open_quic(server.address, trust=identities.trust, alpn=("mqtt", "MQTT-next"))


async def test_alpn_is_the_servers_choice(identities: Identities) -> None:
    async with (
        serving(identities, alpn=("MQTT-next", "mqtt")) as server,
        connected(server, identities, alpn=("mqtt", "MQTT-next")) as (client, accepted),
    ):
        assert client.report.alpn == accepted.report.alpn == "MQTT-next"
        assert client.report.offered_alpn == accepted.report.offered_alpn == ("mqtt", "MQTT-next")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_closed_port(identities: Identities, host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
    # Without ICMP this would run into the timeout, which is another error.
    with pytest.raises(UnreachableError, match=f"nothing listens on UDP port {port} there"):
        await open_quic(Address.of("quic", host, port), trust=identities.trust, timeout=15)


async def test_closed_port_on_every_address_of_a_name(identities: Identities, free_port: int) -> None:
    with pytest.raises(UnreachableError, match="nothing listens"):
        await open_quic(Address.of("quic", "localhost", free_port), trust=identities.trust, timeout=15)


async def test_unresolvable_host(identities: Identities) -> None:
    with pytest.raises(UnreachableError, match="does not resolve"):
        await open_quic(Address.of("quic", "no-such-host.invalid", 14567), trust=identities.trust)


async def test_unroutable_address(identities: Identities) -> None:
    # The limited broadcast address needs a permission that nobody here has asked for.
    with pytest.raises(UnreachableError, match="operating system forbids"):
        await open_quic(Address.of("quic", "255.255.255.255", 14567), trust=identities.trust, timeout=15)


async def test_silent_peer(identities: Identities) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        report = HandshakeReport()
        with pytest.raises(ConnectTimeoutError, match=r"no answer from 127.0.0.1:\d+ over UDP within 0.3 s") as caught:
            await open_quic(
                Address.of("quic", *silent.getsockname()), trust=identities.trust, timeout=0.3, report=report
            )
        assert isinstance(caught.value, TimeoutError)
        assert report.error == str(caught.value)
        assert silent.recv(65535)  # it was really tried


async def test_peer_that_falls_silent_in_the_handshake(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        task = asyncio.ensure_future(open_quic(Address.of("quic", *relay.address), trust=identities.trust, timeout=1.0))
        await settle(lambda: bool(relay.to_client))
        relay.blackhole = True
        # Either the ServerHello flight got through whole, and the handshake completed on our side, or it did not.
        try:
            connection = await task
        except ConnectTimeoutError as error:
            assert "answered, but the handshake did not complete" in str(error)  # noqa: PT017
        else:
            connection.abort()


async def test_something_else_than_quic_answers(identities: Identities) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.setblocking(False)
        loop = asyncio.get_running_loop()

        def answer() -> None:
            _, address = other.recvfrom(65535)
            other.sendto(b"\x00\x01 what do you want?", address)
            other.sendto(b"\xff" * 1200, address)

        loop.add_reader(other, answer)
        try:
            with pytest.raises(ConnectTimeoutError, match="answered, but"):
                await open_quic(Address.of("quic", *other.getsockname()), trust=identities.trust, timeout=0.5)
        finally:
            loop.remove_reader(other)


async def test_a_full_server_says_so(identities: Identities) -> None:
    async with serving(identities, max_connections=1) as server, connected(server, identities):
        with pytest.raises(HandshakeError, match="refuses connections now: the server has reached its limit"):
            await open_quic(server.address, trust=identities.trust)
        assert server.listener.refused == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpn": ()}, "at least one ALPN"),
        ({"idle_timeout": 0}, "above 0"),
        ({"timeout": -1}, "above 0"),
        ({"tuning": "warp"}, "there is no tuning 'warp'"),
        ({"local_address": ("::1", 0)}, "no address of the family"),
        ({"local_address": ("192.0.2.1", 0)}, "cannot send from local_address 192.0.2.1:0"),
    ],
)
async def test_unusable_arguments(identities: Identities, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await open_quic(Address.of("quic", "127.0.0.1", 9), trust=identities.trust, **options)  # type: ignore[arg-type]


# --- nothing is left behind


DESCRIPTORS = Path("/proc/self/fd")


class Leftovers:
    """Open file descriptors, live timers of the loop and connections, before and after."""

    def __init__(self) -> None:
        self.before = self.count()

    @staticmethod
    def count() -> tuple[int, int, int]:
        gc.collect()
        loop = asyncio.get_running_loop()
        scheduled = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        timers = sum(isinstance(getattr(h._callback, "__self__", None), QuicConnection) for h in scheduled)
        open_ones = sum(isinstance(o, QuicConnection) and not o.is_closed for o in gc.get_objects())
        return len(list(DESCRIPTORS.iterdir())), timers, open_ones

    def check(self) -> None:
        assert self.count() == self.before
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others


@pytest.fixture
def needs_proc() -> None:
    if not DESCRIPTORS.is_dir():
        pytest.skip("counts file descriptors in /proc")


@pytest.mark.usefixtures("needs_proc")
@pytest.mark.parametrize("steps", range(12))
async def test_cancelling_at_any_point_leaks_nothing(identities: Identities, steps: int) -> None:
    # The relay's delay makes the handshake last for a number of loop iterations.
    async with (
        serving(identities) as server,
        LossyRelay(server.listener.addresses[0], delay=0.003) as relay,
    ):
        address = Address.of("quic", *relay.address)
        warm = await open_quic(address, trust=identities.trust)
        await warm.close()
        await settle(lambda: server.listener.accepted == 1 and not server.listener.connections)
        relay_fds = len(relay._upstreams)
        leftovers = Leftovers()
        task = asyncio.ensure_future(open_quic(address, trust=identities.trust))
        for _ in range(steps):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result().abort()  # it was faster
        await settle(lambda: server.listener.handshakes == 0 and not server.listener.connections)
        fds, timers, open_ones = leftovers.before
        leftovers.before = fds + len(relay._upstreams) - relay_fds, timers, open_ones
        leftovers.check()


@pytest.mark.usefixtures("needs_proc")
async def test_failures_leak_nothing(identities: Identities, free_port: int) -> None:
    async with serving(identities, alpn=("h3",)) as server:
        leftovers = Leftovers()
        for address in (
            server.address,
            Address.of("quic", "127.0.0.1", free_port),
            Address.of("quic", "localhost", free_port),
            Address.of("quic", "no-such-host.invalid", 1),
        ):
            with pytest.raises(ConnectionError):
                await open_quic(address, trust=identities.trust)
        await settle(lambda: server.listener.handshakes == 0)
        # The resolver's thread pool may keep descriptors of its own; sockets are what counts.
        leftovers.check()


@pytest.mark.usefixtures("needs_proc")
async def test_open_and_close_leaks_nothing(identities: Identities) -> None:
    leftovers = Leftovers()
    async with serving(identities) as server:
        for _ in range(5):
            async with connected(server, identities):
                pass
    leftovers.check()
