"""Session tickets in a file that nobody but its owner can read.

Whoever has a ticket can resume the session that it is of, and read the early data sent with it: a ticket file is as
good as a password file. It is written to a new file that takes the old one's place, so that a crash leaves one or the
other; and taking a ticket out happens under a lock, so that two programs never use the same one.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import secrets
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError

if sys.platform != "win32":  # there: no lock, and permissions are those of the user's folder
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqttquic_lab.quic.tickets import Ticket

FORMAT = "mqttquic-lab session tickets"
MAX_SIZE = 4 * 1024 * 1024
"""Bytes; a file that is larger holds something else."""
LOCK_TIMEOUT = 2.0
"""Seconds to wait for other programs."""


class TicketFile:
    """One file of tickets.

    Parameters
    ----------
    path : path
        Where; ``~`` is the home folder.

    Raises
    ------
    UsageError
        Its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.parent.is_dir():
            raise UsageError(f"tickets={str(path)!r}: the folder {str(self.path.parent)!r} does not exist")

    def read(self) -> list[Ticket]:
        """Return the tickets, none if there is no file yet.

        Raises
        ------
        UsageError
            Others may read the file, or it holds something else.
        """
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            return self._parse(file.read(MAX_SIZE + 1))

    def change(self, change: Callable[[list[Ticket]], tuple[list[Ticket], Any]]) -> Any:
        """Replace the tickets by what `change` makes of them, and return its other result."""
        with self._locked() as descriptor:
            data = b""
            while len(data) <= MAX_SIZE and (more := os.read(descriptor, 65_536)):
                data += more
            before = self._parse(data)
            after, result = change(before)
            if after is not before:
                self._write(after, descriptor)
            return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file for this process alone, made if necessary."""
        while True:
            try:
                descriptor = self._open(os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                raise UsageError(f"the folder of the ticket file {str(self.path)!r} is gone") from None
            try:
                self._lock(descriptor)
                if self._is_current(descriptor):
                    yield descriptor
                    return
                # Another program has replaced the file while we waited: what we have locked is the old one.
            finally:
                os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        """Wait until no other program works on the file, which takes one a few milliseconds."""
        if sys.platform == "win32":
            return
        give_up = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise UsageError(
                        f"another program keeps the ticket file {str(self.path)!r} locked: end it, or give another path"
                    ) from None
                time.sleep(0.005)
            else:
                return

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _open(self, flags: int) -> int:
        """Open the file and check whose it is; what is checked is what was opened."""
        try:
            descriptor = os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o600)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UsageError(f"the ticket file {str(self.path)!r} cannot be opened: {error.strerror}") from error
        try:
            self._check(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, status: os.stat_result) -> None:
        name = str(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the ticket file {name!r} is not a plain file: give another path")
        if os.name != "posix":
            return
        if status.st_mode & 0o077:
            raise UsageError(
                f"the ticket file {name!r} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}), who could "
                f"take over sessions with it: chmod 600 it, or delete it"
            )
        if status.st_uid != os.geteuid():
            raise UsageError(f"the ticket file {name!r} belongs to another user: give a path of your own")

    def _write(self, tickets: list[Ticket], current: int) -> None:
        """Put a new file in the old one's place; `current` is open on the old one."""
        entries = [ticket_to_dict(ticket) for ticket in tickets]
        data = json.dumps({"format": FORMAT, "version": 1, "tickets": entries}, indent=1).encode()
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            if os.name == "nt":  # there, an open file cannot be replaced
                os.lseek(current, 0, os.SEEK_SET)
                os.ftruncate(current, 0)
                os.write(current, data)
                return
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self.path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UsageError(f"the ticket file {str(self.path)!r} cannot be written: {error.strerror}") from error

    def _parse(self, data: bytes) -> list[Ticket]:
        if not data:
            return []  # just made
        try:
            content = json.loads(data) if len(data) <= MAX_SIZE else {}
            if (content["format"], content["version"]) == (FORMAT, 1):
                return [ticket_from_dict(entry) for entry in content["tickets"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UsageError(f"{str(self.path)!r} is no ticket file of this version: delete it, or give another path")


def ticket_to_dict(ticket: Ticket) -> dict[str, Any]:
    """Return a ticket as JSON-able data, secret included."""
    session, key = ticket.session, ticket.key
    return {
        "host": key.host,
        "port": key.port,
        "name": key.name,
        "offered_alpn": list(key.alpn),
        "quic_version": key.version,
        "trust": key.trust,
        "alpn": ticket.alpn,
        "certificate_expires": ticket.certificate_expires.isoformat() if ticket.certificate_expires else None,
        "age_add": session.age_add,
        "cipher_suite": session.cipher_suite.name,
        "not_valid_before": session.not_valid_before.isoformat(),
        "not_valid_after": session.not_valid_after.isoformat(),
        "resumption_secret": _text(session.resumption_secret),
        "server_name": session.server_name,
        "ticket": _text(session.ticket),
        "max_early_data_size": session.max_early_data_size,
        "extensions": [[kind, _text(data)] for kind, data in session.other_extensions],
    }


def ticket_from_dict(entry: dict[str, Any]) -> Ticket:
    """Return what :func:`ticket_to_dict` was given; raises ValueError, KeyError or TypeError for anything else."""
    from aioquic.tls import CipherSuite, SessionTicket

    from mqttquic_lab.quic.tickets import Ticket, TicketKey

    session = SessionTicket(
        age_add=int(entry["age_add"]),
        cipher_suite=CipherSuite[entry["cipher_suite"]],
        not_valid_before=_moment(entry["not_valid_before"]),
        not_valid_after=_moment(entry["not_valid_after"]),
        resumption_secret=_bytes(entry["resumption_secret"]),
        server_name=str(entry["server_name"]),
        ticket=_bytes(entry["ticket"]),
        max_early_data_size=None if entry["max_early_data_size"] is None else int(entry["max_early_data_size"]),
        other_extensions=[(int(kind), _bytes(data)) for kind, data in entry["extensions"]],
    )
    offered = tuple(str(name) for name in entry["offered_alpn"])
    key = TicketKey(
        str(entry["host"]), int(entry["port"]), str(entry["name"]), offered, str(entry["quic_version"]),
        str(entry["trust"]),
    )  # fmt: skip
    expires = entry["certificate_expires"]
    return Ticket(key, session, entry["alpn"], _moment(expires) if expires is not None else None)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
