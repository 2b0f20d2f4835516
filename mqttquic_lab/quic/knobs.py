"""What may be chosen about a QUIC connection beside its tuning: version, cipher suites, groups, congestion control.

Names only, so that options can be checked without importing aioquic; :mod:`mqttquic_lab.quic.applied` turns them into
what the engine takes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mqttquic_lab.errors import UsageError

VERSIONS: Final = {"v1": 0x0000_0001, "v2": 0x6B33_43CF}
"""Name -> QUIC version (RFC 9000 section 15, RFC 9369 section 3.1)."""

UPGRADE: Final = "v1-to-v2"
"""Begin with v1, which every server reads, and ask to go on with v2 (RFC 9368 section 2.3)."""

CIPHER_SUITES: Final = ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
"""TLS 1.3 cipher suites (RFC 8446 appendix B.4), without their ``TLS_``."""

GROUPS: Final = ("X25519", "SECP256R1", "SECP384R1", "SECP521R1", "X448")
"""Key-exchange groups (RFC 8446 section 4.2.7)."""

_GROUP_ALIASES: Final = {"P256": "SECP256R1", "P384": "SECP384R1", "P521": "SECP521R1", "PRIME256V1": "SECP256R1"}

CONGESTION: Final = ("newreno", "cubic")
"""Congestion controllers that are there from the start (RFC 9002 section 7, RFC 9438)."""

registered: dict[str, Any] = {}
"""Name -> factory of the controllers added by :func:`mqttquic_lab.quic.congestion.register_congestion_control`."""

ANNOUNCED_SIZE: Final = 65_535
"""max_datagram_frame_size of who takes datagrams: any that fits into a packet (RFC 9221 section 3)."""

QuicVersion = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Knobs:
    """Choices for one connection, or for all of a listener. Made by :meth:`of`, which checks them.

    Attributes
    ----------
    versions : tuple of str
        Versions spoken, most wanted first: keys of :data:`VERSIONS`.
    first_version : str
        Version of a client's first packet. Another one than ``versions[0]`` asks for compatible version negotiation.
    cipher_suites : tuple of str
        Most wanted first; empty for all.
    groups : tuple of str
        The same for key exchange.
    congestion : str or None
        Congestion controller; None for that of the tuning.
    max_datagram_frame_size : int
        Largest DATAGRAM frame that we take, bytes (RFC 9221 section 3); 0: none at all.
    """

    versions: tuple[str, ...] = ("v1", "v2")
    first_version: str = "v1"
    cipher_suites: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    congestion: str | None = None
    max_datagram_frame_size: int = 0

    @classmethod
    def of(
        cls,
        *,
        quic_version: QuicVersion | None = None,
        cipher_suites: str | Sequence[str] | None = None,
        groups: str | Sequence[str] | None = None,
        congestion: str | None = None,
        datagrams: bool = False,
        server: bool = False,
    ) -> Knobs:
        """Check and collect.

        Parameters
        ----------
        quic_version : str or sequence of str, optional
            ``"v1"`` or ``"v2"`` alone; ``("v2", "v1")`` begins with v2 and takes v1 where a server answers with
            Version Negotiation; ``"v1-to-v2"`` begins with v1 and asks for v2 without a further round trip. Default:
            v1, and v2 where a server speaks nothing else. A server speaks all that it is given.
        cipher_suites, groups : str or sequence of str, optional
            Names, most wanted first; upper or lower case, with or without ``TLS_``.
        congestion : str, optional
            ``"newreno"``, ``"cubic"``, or a registered name.
        datagrams : bool
            Whether DATAGRAM frames are taken (RFC 9221), of any size that fits into a packet.
        server : bool
            Whether it is for a listener.

        Raises
        ------
        UsageError
            For a name that is not known; lists those that are.
        """
        versions, first = _versions(quic_version, server)
        return cls(
            versions,
            first,
            _names("cipher_suites", cipher_suites, CIPHER_SUITES),
            _names("groups", groups, GROUPS),
            None if congestion is None else congestion_named(congestion),
            ANNOUNCED_SIZE if datagrams else 0,
        )

    @property
    def ticket_version(self) -> str | None:
        """Version whose tickets may be used, None for none.

        A ticket is of one version (RFC 9369 section 5), and one that is used while asking for another version would
        have its early data protected by the keys of the wrong one.
        """
        return self.first_version if self.first_version == self.versions[0] else None


def congestion_named(name: str) -> str:
    """Return `name` if a congestion controller has it, else raise UsageError."""
    known = (*CONGESTION, *registered)
    if name not in known:
        raise UsageError(
            f"congestion={name!r}: {_near(name, known)}known are {', '.join(known)}; "
            "mq.register_congestion_control(name, factory) adds one"
        )
    return name


def _versions(wanted: QuicVersion | None, server: bool) -> tuple[tuple[str, ...], str]:
    if wanted is None:
        return ("v1", "v2"), "v1"
    if wanted == UPGRADE and not server:
        return ("v2", "v1"), "v1"
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    choices = (*VERSIONS, *(() if server else (UPGRADE,)))
    for name in names:
        if name not in VERSIONS:
            raise UsageError(f"quic_version={wanted!r}: {_near(name, choices)}known are {', '.join(choices)}")
    if not names:
        raise UsageError(f"quic_version is empty: known are {', '.join(choices)}")
    names = tuple(dict.fromkeys(names))
    return names, names[0]


def _names(option: str, wanted: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    if wanted is None:
        return ()
    found: dict[str, None] = {}
    for name in (wanted,) if isinstance(wanted, str) else tuple(wanted):
        if not isinstance(name, str):
            raise UsageError(f"{option} takes names, not {name!r}; known are {', '.join(known)}")
        plain = name.upper().removeprefix("TLS_")
        plain = _GROUP_ALIASES.get(plain.replace("-", ""), plain) if option == "groups" else plain
        if plain not in known:
            raise UsageError(f"{option}: there is no {name!r}: {_near(plain, known)}known are {', '.join(known)}")
        found[plain] = None
    if not found:
        raise UsageError(f"{option} is empty, nothing could be agreed on; known are {', '.join(known)}")
    return tuple(found)


def _near(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""
