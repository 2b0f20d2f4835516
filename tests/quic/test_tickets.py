"""Session tickets: what they are kept for, how often they serve, and where they are kept."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.tls import CipherSuite, SessionTicket

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.ticket_file import TicketFile, ticket_from_dict, ticket_to_dict
from mqttquic_lab.quic.tickets import PER_SERVER, Ticket, TicketKey, TicketStore, process_tickets
from tests.helpers.quic import Server, connected, serving, settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.certs import Identities

SECRET = b"resumption secret, 32 bytes long"
KEY = TicketKey("broker.example", 14567, "broker.example", ("mqtt",), "v1", "trust")


def ticket(number: int = 0, key: TicketKey = KEY, *, age: float = 0.0, lifetime: float = 3600.0) -> Ticket:
    issued = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
    session = SessionTicket(
        age_add=12345,
        cipher_suite=CipherSuite.AES_256_GCM_SHA384,
        not_valid_before=issued,
        not_valid_after=issued + dt.timedelta(seconds=lifetime),
        resumption_secret=SECRET,
        server_name="broker.example",
        ticket=b"ticket %d" % number,
        max_early_data_size=0xFFFFFFFF,
        other_extensions=[(0x39, b"\x01\x02")],
    )
    return Ticket(key, session, "mqtt")


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TicketStore:
    return TicketStore(tmp_path / "tickets.json" if request.param == "file" else None, capacity=6)


# --- the store


def test_each_ticket_is_taken_once_the_newest_first(store: TicketStore) -> None:
    for number in range(3):
        store.put(ticket(number))
    taken = [store.take(KEY) for _ in range(4)]
    assert [one.session.ticket if one else None for one in taken] == [b"ticket 2", b"ticket 1", b"ticket 0", None]
    assert len(store) == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, host="other.example"),
        replace(KEY, port=1),
        replace(KEY, name="other"),
        replace(KEY, alpn=("mqtt", "x")),
        replace(KEY, version="v2"),
        replace(KEY, trust="off"),
    ],
)
def test_a_ticket_serves_only_what_it_was_given_for(store: TicketStore, other: TicketKey) -> None:
    store.put(ticket())
    assert store.take(other) is None
    assert list(store) == [KEY]
    assert store.take(KEY) is not None


def test_bounds(store: TicketStore) -> None:
    for number in range(PER_SERVER + 2):
        store.put(ticket(number))
    assert len(store) == PER_SERVER
    for number in range(6):
        store.put(ticket(number, replace(KEY, port=number)))
    assert [key.port for key in store] == list(range(6))
    store.clear()
    assert len(store) == 0
    assert bool(store)


def test_expired_tickets_are_not_used(store: TicketStore) -> None:
    store.put(ticket(1, age=7200.0))
    assert len(store) == 0
    assert store.take(KEY) is None
    # The certificate behind a ticket may end before it (RFC 8446 section 4.6.1).
    gone = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    store.put(replace(ticket(2), certificate_expires=gone))
    assert store.take(KEY) is None
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
    store.put(replace(ticket(3), certificate_expires=later))
    found = store.take(KEY)
    assert found is not None
    assert found.expires == later


def test_what_does_not_suit_stays(store: TicketStore) -> None:
    store.put(ticket())
    assert store.take(KEY, lambda one: one.session.cipher_suite.name == "AES_128_GCM_SHA256") is None
    assert len(store) == 1


def test_nothing_shows_the_secret(store: TicketStore) -> None:
    store.put(ticket())
    found = store.take(KEY)
    store.put(ticket())
    for shown in (repr(store), str(store), repr(found), repr(list(store))):
        assert SECRET.decode() not in shown
        assert SECRET.hex() not in shown
        assert "ticket 0" not in shown


def test_the_process_has_one_store() -> None:
    assert process_tickets() is process_tickets()


# --- the file


def test_written_form_comes_back_whole() -> None:
    one = replace(ticket(), certificate_expires=dt.datetime.now(dt.UTC))
    assert ticket_from_dict(json.loads(json.dumps(ticket_to_dict(one)))) == one


def test_a_file_outlives_its_store(tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    TicketStore(path).put(ticket())
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert list(tmp_path.iterdir()) == [path]
    again = TicketStore(path)
    assert repr(again) == f"<TicketStore of 1 in {str(path)!r}>"
    found = again.take(KEY)
    assert found is not None
    assert found.session.resumption_secret == SECRET
    assert len(TicketStore(path)) == 0


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        TicketStore(tmp_path / "t").put(ticket())
    finally:
        os.umask(before)
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tickets.json"
    store = TicketStore(path)
    store.put(ticket())
    path.chmod(mode)
    with pytest.raises(UsageError, match=rf"can be read by others \(mode 0{mode:o}\).*chmod 600"):
        TicketStore(path)
    with pytest.raises(UsageError, match="can be read by others"):
        store.take(KEY)
    with pytest.raises(UsageError, match="can be read by others"):
        store.put(ticket())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    TicketStore(path).put(ticket())
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        TicketStore(path)


def test_odd_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TicketStore(tmp_path / "no" / "tickets.json")
    with pytest.raises(UsageError, match=r"not a plain file|cannot be opened"):
        TicketStore(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with pytest.raises(UsageError, match="cannot be opened"):
        TicketStore(link)
    for content in ("{}", "[]", "no json", '{"format": "x", "version": 1, "tickets": []}', "null"):
        path = tmp_path / "odd"
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(UsageError, match="no ticket file"):
            TicketStore(path)


def test_entries_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    TicketStore(path).put(ticket())
    whole = json.loads(path.read_text())
    for field, value in (("cipher_suite", "NULL"), ("ticket", "%%"), ("not_valid_after", "2026-01-01"), ("port", "x")):
        broken = json.loads(json.dumps(whole))
        broken["tickets"][0][field] = value
        path.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="no ticket file"):
            TicketStore(path)


def test_two_programs_never_take_the_same_ticket(tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    store = TicketStore(path)
    for number in range(PER_SERVER):
        for port in range(5):
            store.put(ticket(number, replace(KEY, port=port)))
    code = (
        "import sys; from mqttquic_lab.quic.tickets import TicketStore; store = TicketStore(sys.argv[1]);\n"
        "for key in list(store) * 2:\n"
        "    found = store.take(key)\n"
        "    if found: print(key.port, found.session.ticket.decode())"
    )
    programs = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    taken = "".join(program.communicate(timeout=30)[0] for program in programs).splitlines()
    assert len(taken) == len(set(taken)) == 5 * PER_SERVER
    assert len(store) == 0


def test_a_file_that_is_replaced_while_one_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tickets.json"
    TicketStore(path).put(ticket(1))
    other = tmp_path / "other"
    TicketStore(other).put(ticket(2))
    file = TicketFile(path)
    looks: list[bool] = []
    original = TicketFile._is_current

    def look(self: TicketFile, descriptor: int) -> bool:
        if not looks:
            other.replace(path)
        looks.append(original(self, descriptor))
        return looks[-1]

    monkeypatch.setattr(TicketFile, "_is_current", look)
    found = file.change(lambda tickets: ([], [one.session.ticket for one in tickets]))
    assert found == [b"ticket 2"]
    assert looks == [False, True]


def test_a_lock_that_is_never_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("mqttquic_lab.quic.ticket_file.LOCK_TIMEOUT", 0.02)
    path = tmp_path / "tickets.json"
    store = TicketStore(path)
    store.put(ticket())
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another program keeps the ticket file"):
            store.take(KEY)
    assert store.take(KEY) is not None


# --- over sockets


async def remember(server: Server, identities: Identities, store: TicketStore, **options: Any) -> None:
    """Connect once, until there is a ticket."""
    async with connected(server, identities, tickets=store, **options) as (client, _accepted):
        await settle(lambda: len(client.report.tickets) == 1)


async def test_a_ticket_file_resumes(identities: Identities, tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    async with serving(identities) as server:
        await remember(server, identities, TicketStore(path))
        async with connected(server, identities, tickets=TicketStore(path)) as (client, accepted):
            assert client.report.resumed
            assert accepted.report.resumed
            assert client.refresh_report().verification == "resumed"


async def test_without_a_store_there_is_no_resumption(identities: Identities) -> None:
    async with serving(identities) as server:
        for _ in range(2):
            async with connected(server, identities) as (client, _accepted):
                assert not client.report.resumed
                assert client.refresh_report().verification == "verified"


async def test_the_certificates_end_is_remembered_and_inherited(identities: Identities) -> None:
    expires = identities.good.certificate.not_valid_after_utc
    async with serving(identities) as server:
        store = TicketStore()
        await remember(server, identities, store)
        for _ in range(2):  # the second time the connection is a resumed one, which shows no certificate
            found = store.take(next(iter(store)))
            assert found is not None
            assert found.certificate_expires == expires
            assert found.alpn == "mqtt"
            store.put(found)
            await remember(server, identities, store)
            assert len(store) == 1


async def test_trust_version_and_suite_have_to_be_the_same(identities: Identities) -> None:
    async with serving(identities) as server:
        store = TicketStore()
        await remember(server, identities, store)
        other = identities.with_intermediate  # the same authority, but other anchors
        trust = Trust(ca_data=identities.authority.pem + other.chain[0].public_bytes(_pem()))
        for options in (
            {"trust": trust},
            {"trust": Trust(verify=False)},
            {"knobs": Knobs.of(quic_version="v2")},
            {"knobs": Knobs.of(quic_version="v1-to-v2")},
            {"knobs": Knobs.of(cipher_suites=["AES_128_GCM_SHA256"])},
        ):
            async with connected(server, identities, tickets=store, **options) as (client, _accepted):
                assert not client.report.resumed, options
        async with connected(server, identities, tickets=store) as (client, _accepted):
            assert client.report.resumed


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


async def test_a_ticket_that_reached_nobody_is_not_used_up(identities: Identities, free_port: int) -> None:
    store = TicketStore()
    async with serving(identities) as server:
        await remember(server, identities, store)
    key = replace(next(iter(store)), port=free_port)
    found = store.take(next(iter(store)))
    assert found is not None
    store.put(replace(found, key=key))
    with pytest.raises(ConnectionError):
        await open_quic(Address.of("quic", "127.0.0.1", free_port), trust=identities.trust, tickets=store)
    assert list(store) == [key]
    # Here somebody is there, who says nothing: the ticket has been shown.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", free_port))
        with pytest.raises(TimeoutError):
            await open_quic(
                Address.of("quic", "127.0.0.1", free_port), trust=identities.trust, tickets=store, timeout=0.3
            )
    assert len(store) == 0


async def test_a_store_that_fails_does_not_end_the_connection(
    identities: Identities, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tickets.json"
    store = TicketStore(path)
    async with serving(identities) as server, connected(server, identities, tickets=store) as (client, _):
        await settle(lambda: path.exists())
    path.chmod(0o644)
    async with serving(identities) as server:
        with pytest.raises(UsageError, match="can be read by others"):
            await open_quic(server.address, trust=identities.trust, tickets=store)
        path.unlink()
        path.mkdir()
        path.rmdir()
        async with connected(server, identities, tickets=store) as (client, _):
            await settle(lambda: path.exists())
            path.chmod(0o644)
            await client.ping()
            # The next ticket cannot be kept: told in the log, and no reason to end.
            client.engine._session_ticket_handler(ticket().session)  # type: ignore[misc]
            assert not client.is_closed
            events = [event for event in client.trace if event.name == "ticket_not_kept"]
            assert "can be read by others" in events[0].data["reason"]
    assert "could not be kept" in caplog.text
    assert SECRET.hex() not in caplog.text


async def test_concurrent_connections_do_not_share_a_ticket(identities: Identities) -> None:
    async with serving(identities) as server:
        store = TicketStore()
        await remember(server, identities, store)
        opened = await asyncio.gather(
            *(open_quic(server.address, trust=identities.trust, tickets=store) for _ in range(3))
        )
        assert sum(one.report.resumed for one in opened) == 1
        for one in opened:
            await one.close()
