"""What a broker's settings say about its QUIC listener, and what that has counted."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.quic.admission import early_data_policy
from mqttquic_lab.quic.knobs import CONGESTION, Knobs
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.broker.config import BrokerConfig
    from mqttquic_lab.mqtt.profiles import BrokerProfile
    from mqttquic_lab.net.stream import Listener
    from mqttquic_lab.quic.server import QuicListener

ONLY_QUIC: dict[str, Any] = {
    "retry": None,
    "early_data": None,
    "early_data_window": 10.0,
    "quic_version": None,
    "cipher_suites": None,
    "groups": None,
    "congestion": None,
    "idle_timeout": None,
    "preferred_address": None,
    "disable_active_migration": False,
    "datagrams": None,
    "datagram_deliveries": False,
}
"""Setting -> its default."""


def settle_quic_options(config: BrokerConfig) -> None:
    """Check the settings of the QUIC listener, and give them their final form.

    Raises
    ------
    UsageError
        One cannot be used, or there is no QUIC listener that it could be for.
    """
    if not config.quic:
        given = [name for name, default in ONLY_QUIC.items() if getattr(config, name) != default]
        if given:
            raise UsageError(f"{', '.join(given)}: for the QUIC listener, and quic=False leaves it out")
        return
    knobs_of(config)
    if config.retry not in (None, True, False):
        raise UsageError(f"retry={config.retry!r}: must be True, False, or None to ask only when handshakes pile up")
    if config.early_data is not None:
        early_data_policy(config.early_data, config.host)
    for name in ("idle_timeout", "early_data_window"):
        value = getattr(config, name)
        if value is not None:
            setattr(config, name, parse_seconds(value, name=name))
    if config.preferred_address is not None:
        host, port = _host_and_port(config.preferred_address)
        config.preferred_address = host, port
    _check_datagrams(config, profile_named(config.profile))
    if config.idle_timeout == 0:
        raise UsageError("idle_timeout must be more than 0 seconds (RFC 9000 section 10.1)")


def _check_datagrams(config: BrokerConfig, profile: BrokerProfile) -> None:
    if config.datagrams not in (None, True, False):
        raise UsageError(f"datagrams={config.datagrams!r}: must be True, False, or None for what the profile does")
    if config.datagrams and not profile.datagrams:
        raise UsageError(f"datagrams=True: {profile.refusal('datagram')}; leave it out, or take another profile")
    if config.datagram_deliveries and (profile.name != "generic" or config.datagrams is False):
        raise UsageError(
            "datagram_deliveries=True: "
            + (
                "with datagrams=False there are none"
                if config.datagrams is False
                else f"{profile.title} sends no DATAGRAM frames; leave it out, or take profile='generic'"
            )
        )


def takes_datagrams(config: BrokerConfig, profile: BrokerProfile) -> bool:
    """Whether clients may publish in DATAGRAM frames."""
    return profile.datagrams if config.datagrams is None else config.datagrams


def _host_and_port(address: Any) -> tuple[str, int]:
    """Check a (host, port)."""
    try:
        host, port = address
        number = operator.index(port)
    except (TypeError, ValueError):
        host, number = None, -1
    if not isinstance(host, str) or not 0 <= number <= 65535:
        raise UsageError(f"preferred_address={address!r}: must be an address and a port: ('192.0.2.7', 14568)")
    return host, number


def knobs_of(config: BrokerConfig) -> Knobs:
    """Return version, cipher suites, groups, congestion controller, and whether datagrams are taken."""
    return Knobs.of(
        quic_version=config.quic_version,
        cipher_suites=config.cipher_suites,
        groups=config.groups,
        congestion=config.congestion,
        datagrams=takes_datagrams(config, profile_named(config.profile)),
        server=True,
    )


def refuse_own_congestion(config: BrokerConfig) -> None:
    """Raise UsageError if the settings name a congestion controller that another process does not have."""
    if config.congestion is not None and config.congestion not in CONGESTION:
        raise UsageError(
            f"congestion={config.congestion!r} was registered in this process, another one does not have it: "
            f"use {' or '.join(map(repr, CONGESTION))}, or run the broker in this process"
        )


def listener_options(config: BrokerConfig, profile: BrokerProfile) -> dict[str, Any]:
    """Return what the QUIC listener is told: the settings, and where they are silent the profile."""
    options: dict[str, Any] = {
        "retry": profile.retry if config.retry is None else config.retry,
        "early_data": profile.early_data if config.early_data is None else config.early_data,
        "early_data_window": config.early_data_window,
        "knobs": knobs_of(config),
        "preferred_address": config.preferred_address,
        "disable_active_migration": config.disable_active_migration,
    }
    idle_timeout = profile.idle_timeout if config.idle_timeout is None else config.idle_timeout
    if idle_timeout is not None:
        options["idle_timeout"] = idle_timeout
    return options


def counted(listeners: Iterable[Listener]) -> dict[str, Any]:
    """Return the counters of the QUIC listeners by their names in :class:`BrokerStats`."""
    sums = dict.fromkeys(
        ("retries", "version_negotiations", "amplification_limited", "tickets_issued", "resumptions",
         "early_data_accepted", "early_data_rejected", "replays_refused", "stale_refused"), 0
    )  # fmt: skip
    for listener in listeners:
        if listener.transport == "quic":
            one = cast("QuicListener", listener)
            tickets = one.admission.counters
            sums["retries"] += one.retries
            sums["version_negotiations"] += one.version_negotiations
            sums["amplification_limited"] += one.amplification_limited
            sums["tickets_issued"] += tickets.issued
            sums["resumptions"] += tickets.resumed
            sums["early_data_accepted"] += tickets.early_data_accepted
            sums["early_data_rejected"] += tickets.early_data_rejected
            sums["replays_refused"] += tickets.replays_refused
            sums["stale_refused"] += tickets.stale_refused
    return sums
