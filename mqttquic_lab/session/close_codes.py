"""What the application codes of CONNECTION_CLOSE mean between MQTT clients and brokers (RFC 9000 section 20.2).

There is no standard for ALPN ``mqtt``: 0 is an orderly end everywhere, 1 and 2 are EMQX's, and a profile may know more.
For ``MQTT-next`` the draft names its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import DisconnectedError
from mqttquic_lab.mqtt.flow_codes import connection_code_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.quic.reasons import CloseInfo

MQTT: Final = {0: "normal end", 1: "control stream down, by EMQX's numbers", 2: "overloaded, by EMQX's numbers"}
"""Application code -> meaning, for ALPN ``mqtt``."""


def with_name(info: CloseInfo | None, alpn: str | None, known: Mapping[int, str]) -> CloseInfo | None:
    """Return `info` with the name of its code, if it is one of the application's; `known` are those of the profile."""
    if info is None or not info.application:
        return info
    if alpn == "MQTT-next":
        return replace(info, name=connection_code_text(info.error_code))
    return replace(info, name=known.get(info.error_code) or MQTT.get(info.error_code, ""))


def explained(error: LabError, connection: Connection) -> LabError:
    """Return `error`, with the draft's name for the code if a peer that speaks ``MQTT-next`` closed with one."""
    info: CloseInfo | None = getattr(connection, "close_info", None)
    if info is None or not info.application or not info.error_code:
        return error
    known = f"{error} - {connection_code_text(info.error_code)}, MQoQ draft section 12.1"
    better = DisconnectedError(known, reason_code=getattr(error, "reason_code", None))
    better.__cause__ = error
    return better
