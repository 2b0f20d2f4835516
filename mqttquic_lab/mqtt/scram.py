"""SCRAM-SHA-256 (RFC 5802, RFC 7677) as a method of enhanced authentication: the password itself never travels.

Both ends show that they know it, or what was derived from it: the client by its proof, the server by its signature.
Without channel binding, which neither MQTT nor QUIC says how to do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqttquic_lab.errors import AuthenticationError, UsageError
from mqttquic_lab.mqtt.authentication import Applicant, Challenge, Failure, Step, Success

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "SCRAM-SHA-256"
"""The Authentication Method."""

ITERATIONS = 4096
"""Rounds of PBKDF2 at least (RFC 7677 section 4), and what we use unless told otherwise."""
MAX_ITERATIONS = 1_000_000
"""Rounds that a client lets a server ask for: a second of work, no more."""
SALT_BYTES = 16
NONCE_BYTES = 18
_ESCAPED = re.compile("(?:[^=]|=2C|=3D)*", re.DOTALL)
MAX_MESSAGE = 4096
"""Bytes of a message at most; a real one has a few hundred."""


@dataclass(frozen=True, slots=True)
class ScramCredentials:
    """What a server keeps of a password (RFC 5802 section 3): enough to check it, not to log in with it.

    Made by :meth:`of`; kept instead of passwords where those should be in nobody's hands.
    """

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def of(cls, password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> ScramCredentials:
        """Derive them from a password.

        Parameters
        ----------
        password : str
            Prepared by SASLprep (RFC 4013).
        salt : bytes, optional
            Random by default.
        iterations : int
            Rounds of PBKDF2, at least 4096.

        Raises
        ------
        UsageError
            Fewer rounds, no salt, or a password that SASLprep forbids.
        """
        if not ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise UsageError(
                f"iterations={iterations!r}: must be {ITERATIONS} (RFC 7677 section 4) to {MAX_ITERATIONS}"
            )
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        if not salt:
            raise UsageError("the salt must not be empty")
        salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(salt, iterations, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))


class ScramServer:
    """SCRAM-SHA-256 for a broker.

    Parameters
    ----------
    users : mapping of str to (str or ScramCredentials)
        User name -> password, or what was derived from it. Looked at for each exchange, so that it may change.
    iterations : int
        Rounds of PBKDF2 for passwords given as text.

    Raises
    ------
    UsageError
        A password or number of rounds that cannot be used.
    """

    name = NAME

    def __init__(self, users: Mapping[str, str | ScramCredentials], *, iterations: int = ITERATIONS) -> None:
        self._users = users
        self._iterations = iterations
        self._secret = secrets.token_bytes(32)
        self._derived: dict[tuple[str, str], ScramCredentials] = {}
        for name in users:  # now, so that the time of an answer does not tell whether somebody logs in first
            self.credentials(name)

    def __repr__(self) -> str:
        return f"<ScramServer {len(self._users)} users>"

    def start(self, applicant: Applicant) -> _ServerExchange:
        """Begin an exchange."""
        return _ServerExchange(self)

    def credentials(self, username: str) -> ScramCredentials | None:
        """Return what a user's password comes to; None if there is no such user."""
        known = self._users.get(username)
        if known is None or isinstance(known, ScramCredentials):
            return known
        key = (username, known)
        derived = self._derived.get(key)
        if derived is None:
            for old in [each for each in self._derived if each[0] == username]:
                del self._derived[old]  # the password was changed
            derived = ScramCredentials.of(known, salt=self._salt(username), iterations=self._iterations)
            self._derived[key] = derived
        return derived

    def decoy(self, username: str) -> ScramCredentials:
        """Return what a user who does not exist is asked with: the same each time, as for one who does."""
        return ScramCredentials(self._salt(username), self._iterations, b"", b"")

    def _salt(self, username: str) -> bytes:
        return _hmac(self._secret, username.encode())[:SALT_BYTES]


class _ServerExchange:
    """client-first, server-first, client-final, server-final (RFC 5802 section 5)."""

    def __init__(self, method: ScramServer) -> None:
        self._method = method
        self._username = ""
        self._known: ScramCredentials | None = None
        self._header = ""
        self._first = ""
        self._nonce = ""
        self._is_over = False

    def step(self, data: bytes | None) -> Step:
        """Take a message of the client's."""
        try:
            if self._is_over:
                return Failure(0x82, "the exchange is over")
            if not self._nonce:
                return self._client_first(_text(data))
            self._is_over = True
            return self._client_final(_text(data))
        except AuthenticationError as error:
            return Failure(0x87, str(error))

    def _client_first(self, message: str) -> Step:
        flag, _, rest = message.partition(",")
        identity, _, bare = rest.partition(",")
        if flag.startswith("p="):
            raise AuthenticationError("SCRAM: channel binding is not supported: use the flag n (RFC 5802 section 6)")
        if flag not in ("n", "y"):
            raise AuthenticationError("SCRAM: the first message must begin with n,, (RFC 5802 section 7)")
        if bare.startswith("m="):
            raise AuthenticationError("SCRAM: a mandatory extension that is not known (RFC 5802 section 5.1)")
        fields = _attributes(bare)
        self._username = _username_of(fields.get("n", ""))
        if identity and _username_of(identity.removeprefix("a=")) != self._username:
            raise AuthenticationError("SCRAM: nobody may act for somebody else here")
        client_nonce = _nonce(fields.get("r", ""))
        self._header = f"{flag},{identity},"
        self._nonce = client_nonce + _new_nonce()
        self._known = self._method.credentials(self._username)
        asked = self._known or self._method.decoy(self._username)
        answer = f"r={self._nonce},s={_encode(asked.salt)},i={asked.iterations}"
        self._first = f"{bare},{answer}"
        return Challenge(answer.encode())

    def _client_final(self, message: str) -> Step:
        without_proof, separator, proof = message.rpartition(",p=")
        fields = _attributes(without_proof)
        if not separator or _decode(fields.get("c", "")) != self._header.encode():
            raise AuthenticationError("SCRAM: the channel binding is not that of the first message")
        if not hmac.compare_digest(fields.get("r", "").encode(), self._nonce.encode()):
            raise AuthenticationError("SCRAM: the nonce is not the one of this exchange")
        signed = f"{self._first},{without_proof}".encode()
        known = self._known
        stored_key = known.stored_key if known is not None else bytes(32)
        given = _decode(proof)
        signature = _hmac(stored_key, signed)
        if len(given) != len(signature):
            raise AuthenticationError("SCRAM: the proof has the wrong size")
        client_key = _xor(given, signature)
        same = hmac.compare_digest(hashlib.sha256(client_key).digest(), stored_key)
        if not same or known is None:
            return Failure(0x87, "SCRAM: user name and password do not fit")
        return Success(f"v={_encode(_hmac(known.server_key, signed))}".encode(), self._username)


class ScramClient:
    """SCRAM-SHA-256 for a client.

    Parameters
    ----------
    username, password : str
        Prepared by SASLprep (RFC 4013).

    Raises
    ------
    UsageError
        One that SASLprep forbids.
    """

    name = NAME

    def __init__(self, username: str, password: str) -> None:
        self._username = saslprep(username)
        self._password = saslprep(password)
        if not self._username:
            raise UsageError("SCRAM needs a user name")

    def __repr__(self) -> str:
        return f"<ScramClient {self._username!r}>"

    def start(self) -> _ClientExchange:
        """Begin an exchange."""
        return _ClientExchange(self._username, self._password)


class _ClientExchange:
    """The client's half of it."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password
        self._nonce = ""
        self._bare = ""
        self._signature = b""

    def step(self, data: bytes | None) -> bytes:
        """Return client-first, then client-final."""
        if not self._nonce:
            self._nonce = _new_nonce()
            name = self._username.replace("=", "=3D").replace(",", "=2C")
            self._bare = f"n={name},r={self._nonce}"
            return f"n,,{self._bare}".encode()
        if self._signature:
            raise AuthenticationError("SCRAM: the server asks for more after the client's last message")
        return self._client_final(_text(data))

    def _client_final(self, message: str) -> bytes:
        fields = _attributes(message)
        nonce = fields.get("r", "")
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise AuthenticationError("SCRAM: the server's nonce does not begin with ours (RFC 5802 section 5.1)")
        salt, rounds = _decode(fields.get("s", "")), fields.get("i", "")
        if not salt:
            raise AuthenticationError("SCRAM: the server sent no salt")
        if not (rounds.isascii() and rounds.isdigit() and len(rounds) < 10):
            raise AuthenticationError("SCRAM: the server sent no number of iterations")
        if not ITERATIONS <= int(rounds) <= MAX_ITERATIONS:
            raise AuthenticationError(
                f"SCRAM: the server wants {rounds} iterations; {ITERATIONS} (RFC 7677 section 4) to {MAX_ITERATIONS} "
                "are taken"
            )
        keys = hashlib.pbkdf2_hmac("sha256", self._password.encode(), salt, int(rounds))
        client_key = _hmac(keys, b"Client Key")
        final = f"c={_encode(b'n,,')},r={nonce}"
        signed = f"{self._bare},{message},{final}".encode()
        proof = _xor(client_key, _hmac(hashlib.sha256(client_key).digest(), signed))
        self._signature = _hmac(_hmac(keys, b"Server Key"), signed)
        return f"{final},p={_encode(proof)}".encode()

    def finish(self, data: bytes | None) -> None:
        """Check the server's signature: one that does not know the password cannot make it."""
        if not self._signature:
            raise AuthenticationError("SCRAM: the server let us in without asking for a proof, which is not SCRAM")
        signature = _attributes(_text(data)).get("v", "")
        if not hmac.compare_digest(_decode(signature), self._signature):
            raise AuthenticationError(
                "SCRAM: the server's signature is wrong: it does not know the password, so it is not the server meant"
            )


def saslprep(text: str) -> str:
    """Prepare a user name or password for comparison (RFC 4013); raises UsageError for what it forbids."""
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c)
    )  # fmt: skip
    prepared = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
        stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
        stringprep.in_table_c9,
    )  # fmt: skip
    if any(test(c) for c in prepared for test in forbidden):
        raise UsageError("a user name or password for SCRAM has a character that SASLprep forbids (RFC 4013)")
    if any(map(stringprep.in_table_d1, prepared)):  # right to left
        ends = prepared[0], prepared[-1]
        if any(map(stringprep.in_table_d2, prepared)) or not all(map(stringprep.in_table_d1, ends)):
            raise UsageError("a user name or password for SCRAM mixes directions of writing (RFC 4013 section 2.4)")
    return prepared


def _text(data: bytes | None) -> str:
    if not data:
        raise AuthenticationError("SCRAM: a message is missing")
    if len(data) > MAX_MESSAGE:
        raise AuthenticationError(f"SCRAM: a message of more than {MAX_MESSAGE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise AuthenticationError("SCRAM: a message that is not UTF-8") from None


def _attributes(message: str) -> dict[str, str]:
    """Return ``a=value`` pairs; the first of a name counts."""
    fields: dict[str, str] = {}
    for part in message.split(","):
        name, separator, value = part.partition("=")
        if len(name) != 1 or not separator:
            raise AuthenticationError("SCRAM: a message that is no list of attributes (RFC 5802 section 7)")
        fields.setdefault(name, value)
    return fields


def _username_of(escaped: str) -> str:
    """Return a user name without its escapes, prepared."""
    if not escaped or not _ESCAPED.fullmatch(escaped):
        raise AuthenticationError("SCRAM: no user name, or one with an escape that does not exist")
    try:
        return saslprep(escaped.replace("=2C", ",").replace("=3D", "="))
    except UsageError as error:
        raise AuthenticationError(f"SCRAM: {error}") from None


def _nonce(text: str) -> str:
    if not text or not all("!" <= c <= "~" for c in text):
        raise AuthenticationError("SCRAM: no nonce, or one with characters that it must not have")
    return text


def _new_nonce() -> str:
    return _encode(secrets.token_bytes(NONCE_BYTES))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AuthenticationError("SCRAM: a value that is not base64") from None


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
