"""The SQLite file of a broker: opened, checked, read in portions, and written one delta per transaction.

Everything here blocks, and runs on the thread of the :class:`~mqttquic_lab.broker.store.journal.Journal`. Rows are
written many per statement: each statement gives up the interpreter lock and has to get it back from a busy event loop.

The write-ahead log is what makes a transaction cheap (one write, one fsync). Locking is exclusive: one broker per file,
which also saves the shared-memory file beside it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.errors import StoreError
from mqttquic_lab.mqtt.properties import EMPTY, read_properties, write_properties
from mqttquic_lab.mqtt.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mqttquic_lab.broker.store.delta import Delta
    from mqttquic_lab.mqtt import Properties

APPLICATION_ID = 0x4D514C42
"""What tells our files from other SQLite files: "MQLB"."""
SCHEMA_VERSION = 1
"""Version of the tables; a higher one was written by a later version of this package."""

ROWS = 1000
"""Rows read at a time."""
WAL_SIZE = 16 * 1024 * 1024
"""Bytes to which the write-ahead log shrinks again after a large transaction."""

SCHEMA = """
CREATE TABLE session (
    key INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, expiry_interval INTEGER NOT NULL, expires_at REAL
);
CREATE TABLE subscription (
    session INTEGER NOT NULL, filter TEXT NOT NULL, qos INTEGER NOT NULL, no_local INTEGER NOT NULL,
    retain_as_published INTEGER NOT NULL, identifier INTEGER, PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE message (
    number INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, properties BLOB NOT NULL, expires_at REAL
);
CREATE TABLE delivery (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL, message INTEGER NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, identifiers TEXT NOT NULL, packet_id INTEGER, released INTEGER
);
CREATE TABLE received (place INTEGER PRIMARY KEY);
CREATE TABLE retained (topic TEXT PRIMARY KEY, message INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE will (
    client_id TEXT PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, properties BLOB NOT NULL, due_at REAL
) WITHOUT ROWID;
"""
"""``place`` of what was received is the session's key times 65536 plus the packet identifier."""

CHUNKS = (64, 8, 1)
"""Rows per statement: so that few different statements are compiled, whatever the number of rows."""


@lru_cache(maxsize=64)
def _insert_sql(table: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * rows)}"  # noqa: S608 - names from this module


@lru_cache(maxsize=64)
def _delete_sql(table: str, column: str, rows: int) -> str:
    return f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * rows)})"  # noqa: S608 - names from this module


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    """Return where each statement begins, and how many rows it takes."""
    start = 0
    for size in CHUNKS:
        while count - start >= size:
            yield start, size
            start += size


def pack_properties(properties: Properties, place: Literal["PUBLISH", "WILL"]) -> bytes:
    """Return properties as they stand on the wire; nothing at all if there are none."""
    return write_properties(properties, place, 5) if properties else b""


def unpack_properties(data: bytes, place: Literal["PUBLISH", "WILL"]) -> Properties:
    """Return what :func:`pack_properties` wrote.

    Raises
    ------
    MalformedPacketError
        It did not write this.
    """
    return read_properties(Reader(data, 0, 5, None), place) if data else EMPTY


class StoreFile:
    """The file of one broker.

    Parameters
    ----------
    path : str
        The file; made if there is none.
    synchronous : {"full", "normal"}
        ``"full"`` waits at each transaction until the disk has it, so that a power cut loses nothing; ``"normal"``
        leaves it to the operating system, which is enough if only the process may die.
    """

    def __init__(self, path: str, synchronous: Literal["full", "normal"] = "full") -> None:
        self.path = path
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<StoreFile {self.path!r}, {'open' if self._connection is not None else 'closed'}>"

    # --- opening and closing ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, or make it: readable by its owner only.

        Raises
        ------
        StoreError
            It cannot be opened, another broker has it, or it is no store of a broker that this version can read.
        """
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StoreError(
                f"store={self.path!r} cannot be opened: {error.strerror}. Give a file in a folder that exists and "
                f"that you may write to"
            ) from error
        try:
            # Used by one thread at a time, but opened and closed on different ones when something goes wrong.
            self._connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            self._prepare(self._connection)
        except sqlite3.Error as error:
            self.close()
            raise self._explained(error) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise StoreError(f"store={self.path!r} is an SQLite file of another program: give another file")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store={self.path!r} was written by a later version of mqttquic_lab (tables of version {version}, "
                f"this one knows {SCHEMA_VERSION}): update, or give another file"
            )
        if tables and version < SCHEMA_VERSION:
            raise StoreError(f"store={self.path!r} has tables of unknown version {version}: give another file")
        mode = stat.S_IMODE(Path(self.path).stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            Path(self.path).chmod(mode & 0o700)
        (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal_mode != "wal":
            raise StoreError(
                f"store={self.path!r}: this file system does not allow a write-ahead log; use a local disk"
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE}")
        connection.execute("PRAGMA foreign_keys = OFF")
        # Takes the lock for good, whether there is anything to write or not.
        connection.execute("BEGIN IMMEDIATE")
        if not tables:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _explained(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", None) or 0
        primary = code & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"store={self.path!r} is in use by another broker: close that one, or give another file")
        if primary == sqlite3.SQLITE_NOTADB:
            return StoreError(f"store={self.path!r} is not the store of a broker: give another file")
        if primary == sqlite3.SQLITE_CORRUPT:
            return self.damaged(str(error))
        return StoreError(f"store={self.path!r} cannot be used: {error}")

    def damaged(self, detail: str) -> StoreError:
        """Return the error for a file with contents that cannot be right."""
        return StoreError(f"store={self.path!r} is damaged ({detail}): take a copy from before, or give another file")

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it. Safe to repeat."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection while the file is open."""
        assert self._connection is not None, "the store is closed"
        return self._connection

    # --- reading ------------------------------------------------------------------------------------------------

    def begin_reading(self, query: str) -> sqlite3.Cursor:
        """Begin to read the rows of a query, in portions."""
        try:
            return self.connection.execute(query)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def read(self, cursor: sqlite3.Cursor) -> list[Any]:
        """Return the next rows, none at the end.

        Raises
        ------
        StoreError
            The file is damaged.
        """
        try:
            return cursor.fetchmany(ROWS)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from error

    # --- writing ------------------------------------------------------------------------------------------------

    def commit(self, delta: Delta) -> None:
        """Write a delta in one transaction: all of it is on disk afterwards, or nothing.

        Raises
        ------
        sqlite3.Error
            It could not be written; the file is as before.
        """
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._write(delta)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _write(self, delta: Delta) -> None:
        # Sessions that ended first: another one may have their client identifier by now.
        self._delete("session", "key", delta.ended)
        self._insert("session", 4, list(delta.sessions.values()))
        self._insert("message", 7, [
            (number, m.topic, m.payload, m.qos, m.retain, pack_properties(m.properties, "PUBLISH"), expires_at)
            for number, (m, expires_at) in delta.messages.items()
        ])  # fmt: skip
        self._insert("delivery", 8, [
            (*row[:5], ",".join(map(str, row.identifiers)), row.packet_id, row.released)
            for row in delta.deliveries.values()
        ])  # fmt: skip
        self._delete("delivery", "number", delta.gone_deliveries)
        self._delete("message", "number", delta.gone_messages)
        waits: list[int] = []
        is_over: list[int] = []
        for (session, packet_id), present in delta.received.items():
            (waits if present else is_over).append(place_of(session, packet_id))
        self._insert("received", 1, [(place,) for place in waits])
        self._delete("received", "place", is_over)
        self._insert("subscription", 6, [row for row in delta.subscriptions.values() if row is not None])
        self.connection.executemany(
            "DELETE FROM subscription WHERE session = ? AND filter = ?",
            [key for key, row in delta.subscriptions.items() if row is None],
        )
        self._insert("retained", 2, [(topic, n) for topic, n in delta.retained.items() if n is not None])
        self._delete("retained", "topic", [topic for topic, n in delta.retained.items() if n is None])
        self._insert("will", 7, [
            (
                row.client_id, row.will.topic, row.will.payload, row.will.qos, row.will.retain,
                pack_properties(row.will.properties, "WILL"), row.due_at,
            )
            for row in delta.wills.values() if row is not None
        ])  # fmt: skip
        self._delete("will", "client_id", [client_id for client_id, row in delta.wills.items() if row is None])
        for key in delta.ended:
            self.connection.execute("DELETE FROM subscription WHERE session = ?", (key,))
            self.connection.execute(
                "DELETE FROM received WHERE place BETWEEN ? AND ?", (place_of(key, 0), place_of(key, 65_535))
            )

    def _insert(self, table: str, columns: int, rows: Sequence[Sequence[object]]) -> None:
        for start, size in _chunks(len(rows)):
            values = tuple(chain.from_iterable(rows[start : start + size]))
            self.connection.execute(_insert_sql(table, columns, size), values)

    def _delete(self, table: str, column: str, values: Iterable[object]) -> None:
        values = list(values)
        for start, size in _chunks(len(values)):
            self.connection.execute(_delete_sql(table, column, size), values[start : start + size])


def place_of(session: int, packet_id: int) -> int:
    """Return where a received packet identifier stands in the file."""
    return session << 16 | packet_id
