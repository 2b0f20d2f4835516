"""Turns :class:`~mqttquic_lab.quic.knobs.Knobs` into what aioquic's configuration and our engine take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.tls import CipherSuite, Group
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey

from mqttquic_lab.errors import UsageError
from mqttquic_lab.quic.congestion import engine_name
from mqttquic_lab.quic.knobs import VERSIONS

if TYPE_CHECKING:
    from mqttquic_lab.quic.knobs import Knobs
    from mqttquic_lab.quic.tuning import Tuning


def configuration(knobs: Knobs, tuning: Tuning) -> dict[str, Any]:
    """Return the keywords of ``QuicConfiguration`` that the knobs decide."""
    upgrade = knobs.first_version != knobs.versions[0]
    controller = engine_name(knobs.congestion) if knobs.congestion else tuning.congestion_control
    return {
        "supported_versions": versions(knobs),
        "original_version": VERSIONS[knobs.first_version] if upgrade else None,
        "cipher_suites": [CipherSuite[name] for name in knobs.cipher_suites] or None,
        "congestion_control_algorithm": controller,
        "max_datagram_frame_size": knobs.max_datagram_frame_size or None,
    }


def versions(knobs: Knobs) -> list[int]:
    """Return the version numbers, most wanted first."""
    return [VERSIONS[name] for name in knobs.versions]


def groups(knobs: Knobs) -> tuple[Group, ...]:
    """Return the key-exchange groups, empty for the usual ones.

    Raises
    ------
    UsageError
        This machine's OpenSSL has no X448.
    """
    if "X448" in knobs.groups:
        try:
            X448PrivateKey.generate()
        except UnsupportedAlgorithm:
            raise UsageError("groups: X448 is not in this machine's OpenSSL, leave it out") from None
    return tuple(Group[name] for name in knobs.groups)


def congestion_name(knobs: Knobs, tuning: Tuning) -> str:
    """Return the name that a person knows the congestion controller by."""
    return knobs.congestion or ("newreno" if tuning.congestion_control == "reno" else tuning.name)
