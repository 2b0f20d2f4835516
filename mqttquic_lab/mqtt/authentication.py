"""Enhanced authentication (MQTT 5.0 section 4.12): what a method is, to both ends, and what its steps come to.

A method is any object with a :attr:`~ServerMethod.name` and a ``start()`` that begins an exchange; an exchange has a
``step()`` that takes what the other end sent and says what comes next. Nothing here knows about packets: broker and
session put the data into AUTH, CONNECT and CONNACK.

The broker's side of a method that asks for one word::

    class Word:
        name = "WORD"

        def start(self, client):
            return self

        def step(self, data):
            if data is None:
                return Challenge(b"the word?")
            return Success(username="friend") if data == b"mellon" else Failure()

``step`` may be a coroutine function on the broker's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable


@dataclass(frozen=True, slots=True)
class Challenge:
    """The exchange goes on: AUTH with 0x18, Continue authentication."""

    data: bytes | None = field(default=None, repr=False)
    """Authentication Data for the client."""


@dataclass(frozen=True, slots=True)
class Success:
    """The client is who it says: CONNACK, or AUTH with 0x00 where it authenticated again."""

    data: bytes | None = field(default=None, repr=False)
    """Authentication Data for the client, by which it may know the server."""
    username: str | None = None
    """Who it is, for access control; None leaves CONNECT's user name."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The client is refused: CONNACK, or DISCONNECT where it authenticated again, and the connection ends."""

    reason_code: int = 0x87
    """A failure code of CONNACK; Not authorized by default."""
    reason: str = ""
    """Sent as Reason String. It should not tell which part was wrong."""


Step = Challenge | Success | Failure


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who wants to be authenticated, as far as CONNECT and the connection tell."""

    client_id: str
    username: str | None
    password: bytes | None = field(repr=False)
    transport: str
    """``"quic"``, ``"tls"`` or ``"tcp"``."""
    address: tuple[str, int]
    is_again: bool = False
    """Whether it is authenticated already and does it again (section 4.12.1)."""


class ServerExchange(Protocol):
    """One authentication, the broker's side."""

    def step(self, data: bytes | None) -> Step | Awaitable[Step]:
        """Take Authentication Data (None: there was none) and say what comes next; first that of CONNECT."""
        ...


@runtime_checkable
class ServerMethod(Protocol):
    """A method, the broker's side."""

    @property
    def name(self) -> str:
        """Authentication Method, as it stands in CONNECT."""
        ...

    def start(self, applicant: Applicant) -> ServerExchange:
        """Begin an exchange."""
        ...


class ClientExchange(Protocol):
    """One authentication, the client's side. ``step`` runs in a thread once a challenge has come, so it may compute.

    Both methods may raise :class:`~mqttquic_lab.errors.AuthenticationError`, which ends the connection.
    """

    def step(self, data: bytes | None) -> bytes | None:
        """Return the next Authentication Data: first for CONNECT (`data` is None), then for each challenge."""
        ...

    def finish(self, data: bytes | None) -> None:
        """Take the server's last data, which came with success: where a method lets one know the server."""
        ...


@runtime_checkable
class ClientMethod(Protocol):
    """A method, the client's side."""

    @property
    def name(self) -> str:
        """Authentication Method, as it goes into CONNECT."""
        ...

    def start(self) -> ClientExchange:
        """Begin an exchange."""
        ...
