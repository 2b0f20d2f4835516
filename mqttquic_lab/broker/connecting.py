"""Who may connect, and what CONNACK tells them (MQTT 5.0 sections 3.1.4 and 3.2.2.3)."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker.acl import fill_in
from mqttquic_lab.mqtt import ReasonCode
from mqttquic_lab.mqtt.reason_codes import ALLOWED

if TYPE_CHECKING:
    from mqttquic_lab.broker.config import BrokerConfig
    from mqttquic_lab.mqtt import Connect

RECEIVE_MAXIMUM = 65_535
"""Receive Maximum of a client that names none (MQTT 5.0 section 3.1.2.11.3)."""


def new_client_id() -> str:
    """Return a client identifier for a client that brought none [MQTT-3.1.3-6]."""
    return f"auto-{secrets.token_hex(8)}"


def authenticate(config: BrokerConfig, connect: Connect) -> int | Awaitable[int]:
    """Return the reason code for a CONNECT without enhanced authentication: 0x00 lets it in.

    Awaitable if the ``authenticate`` setting is async.
    """
    if config.authenticate is not None:
        verdict = config.authenticate(connect.client_id, connect.username, connect.password)
        return _as_code_later(verdict) if isinstance(verdict, Awaitable) else _as_code(verdict)
    if config.users is None:
        # Who asks for enhanced authentication does not mean to let those in who leave it out.
        return ReasonCode.NOT_AUTHORIZED if config.auth_methods else ReasonCode.SUCCESS
    expected = config.users.get(connect.username) if connect.username is not None else None
    given = connect.password or b""
    # Compared even when there is no such user, so that the time does not tell which users exist.
    same = hmac.compare_digest((expected or "").encode(), given)
    return ReasonCode.SUCCESS if same and expected is not None else ReasonCode.BAD_USER_NAME_OR_PASSWORD


async def _as_code_later(verdict: Awaitable[bool | int]) -> int:
    return _as_code(await verdict)


def _as_code(verdict: bool | int) -> int:
    if isinstance(verdict, bool):
        return ReasonCode.SUCCESS if verdict else ReasonCode.NOT_AUTHORIZED
    return verdict if verdict in ALLOWED["CONNACK"] else ReasonCode.NOT_AUTHORIZED


def granted_expiry(config: BrokerConfig, connect: Connect) -> int:
    """Return for how many seconds the session is kept (section 3.1.2.11.2; Clean Session in 3.1.1)."""
    if connect.version == 5:
        wanted: int = connect.properties.get("session_expiry_interval", 0)
        return min(wanted, config.max_session_expiry)
    return 0 if connect.clean_start else config.max_session_expiry


def granted_keepalive(config: BrokerConfig, connect: Connect) -> int:
    """Return the keep-alive that holds, seconds; only 5.0 clients can be told another than they asked for."""
    longest = config.max_keepalive
    if connect.version == 5 and longest and not 0 < connect.keepalive <= longest:
        return longest
    return connect.keepalive


def connack_properties(
    config: BrokerConfig, connect: Connect, assigned_id: str | None, username: str | None = None
) -> dict[str, Any]:
    """Return what a 5.0 client is told about this broker.

    Maximum QoS, Retain Available and the like are left out where their absence says the same (all of QoS 2, retained
    messages, wildcards); Shared Subscription Available is said aloud because clients show it.
    """
    if connect.version != 5:
        return {}
    properties: dict[str, Any] = {
        "receive_maximum": config.max_inflight,
        "maximum_packet_size": config.max_packet_size,
        "shared_subscription_available": 1,
    }
    if config.topic_alias_maximum:
        properties["topic_alias_maximum"] = config.topic_alias_maximum
    if assigned_id is not None:
        properties["assigned_client_identifier"] = assigned_id
    expiry = granted_expiry(config, connect)
    if expiry != connect.properties.get("session_expiry_interval", 0):
        properties["session_expiry_interval"] = expiry
    if config.response_information and connect.properties.get("request_response_information"):  # [MQTT-3.1.2-28]
        prefix = fill_in(config.response_information, assigned_id or connect.client_id, username)
        if prefix is not None:
            properties["response_information"] = prefix
    keepalive = granted_keepalive(config, connect)
    if keepalive != connect.keepalive:
        properties["server_keep_alive"] = keepalive
    return properties
