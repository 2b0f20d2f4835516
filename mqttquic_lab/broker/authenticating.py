"""Enhanced authentication at the broker: a method's steps in AUTH, CONNECT and CONNACK (MQTT 5.0 section 4.12)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import ProtocolError, UsageError
from mqttquic_lab.mqtt import Auth, ReasonCode
from mqttquic_lab.mqtt.authentication import Applicant, Challenge, Failure, ServerMethod, Step, Success
from mqttquic_lab.mqtt.reason_codes import ALLOWED
from mqttquic_lab.mqtt.scram import NAME as SCRAM
from mqttquic_lab.mqtt.scram import ScramServer

if TYPE_CHECKING:
    import asyncio

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.config import BrokerConfig
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.mqtt import Connect
    from mqttquic_lab.mqtt.authentication import ServerExchange

log = logging.getLogger(__name__)

BROKEN = Failure(ReasonCode.UNSPECIFIED_ERROR, "the broker's authentication method failed")


def methods_of(config: BrokerConfig) -> dict[str, ServerMethod]:
    """Return the methods of the setting ``auth_methods`` by their names.

    Raises
    ------
    UsageError
        One that is no method.
    """
    given: Any = config.auth_methods
    if isinstance(given, (str, bytes)) or not isinstance(given, (Mapping, Iterable)):
        raise UsageError('auth_methods takes a list, such as ["SCRAM-SHA-256"], or a mapping of name to method')
    if not isinstance(given, Mapping):
        given = {each if isinstance(each, str) else getattr(each, "name", None): each for each in given}
    methods: dict[str, ServerMethod] = {}
    for name, each in given.items():
        method = each
        if name == SCRAM and (isinstance(each, (str, Mapping)) or each is None):
            users = each if isinstance(each, Mapping) else config.users
            if users is None:
                raise UsageError(f'{SCRAM} needs to know the users: give users= as well, or {{"{SCRAM}": users}}')
            method = ScramServer(users)
        if not isinstance(name, str) or not isinstance(method, ServerMethod):
            raise UsageError(
                f"auth_methods: {each!r} is no method: it needs a name and start(applicant); "
                f"{SCRAM!r} is there by its name"
            )
        methods[name] = method
    return methods


class Authentication:
    """The enhanced authentication of one client, from CONNECT on.

    Parameters
    ----------
    client : Client
        Whose packets these are.
    method : ServerMethod
        The one that CONNECT named, as `name`; it stays the same (section 4.12.1).
    """

    def __init__(self, client: Client, server: BrokerServer, name: str, method: ServerMethod) -> None:
        self._client = client
        self._server = server
        self._name = name
        self._method = method
        self._connect: Connect
        self._applicant: Applicant
        self._exchange: ServerExchange
        self._pending = object()
        self._task: asyncio.Task[None] | None = None
        self._timer: TimerHandle | None = None

    def begin(self, packet: Connect) -> None:
        """Take the CONNECT that named the method."""
        connection = self._client.connection
        self._connect = packet
        self._applicant = Applicant(
            packet.client_id, packet.username, packet.password, connection.transport, connection.peer_address
        )
        self._start(packet.properties.get("authentication_data"))

    def received(self, packet: Auth) -> None:
        """Take an AUTH that the state table allowed.

        Raises
        ------
        ProtocolError
            It names another method.
        """
        if packet.properties.get("authentication_method") != self._name:
            is_again = packet.reason_code == ReasonCode.RE_AUTHENTICATE
            raise ProtocolError(
                f"AUTH with another Authentication Method than CONNECT's {self._name!r}",
                reason_code=ReasonCode.BAD_AUTHENTICATION_METHOD,
                rule="MQTT-4.12.1-1" if is_again else "MQTT-4.12.0-5",
                section="MQTT 5.0 section 4.12",
                packet=packet,
            )
        data = packet.properties.get("authentication_data")
        if packet.reason_code == ReasonCode.RE_AUTHENTICATE:
            config, clock = self._server.config, self._server.clock
            self._timer = clock.call_later(config.connect_timeout, self._timed_out)
            client = self._client
            assert client.session is not None
            self._applicant = replace(
                self._applicant,
                client_id=client.session.client_id,
                address=client.connection.peer_address,
                is_again=True,
            )
            self._start(data)
        else:
            self._step(data)

    def close(self) -> None:
        """Forget it; the client is gone."""
        if self._task is not None:
            self._task.cancel()
        self._stop_timer()

    def _start(self, data: bytes | None) -> None:
        try:
            self._exchange = self._method.start(self._applicant)
        except Exception:  # whatever the user's method raises, nobody gets in by it
            log.exception("the authentication method %r failed", self._name)
            self._apply(BROKEN)
        else:
            self._step(data)

    def _step(self, data: bytes | None) -> None:
        try:
            step: Any = self._exchange.step(data)
        except Exception:  # as above
            log.exception("the authentication method %r failed", self._name)
            step = BROKEN
        if isinstance(step, Awaitable):
            self._client.block(self._pending)
            self._task = self._server.spawn(self._await(step))
        else:
            self._apply(step)

    async def _await(self, awaitable: Awaitable[Step]) -> None:
        try:
            step = await awaitable
        except Exception:  # as above
            log.exception("the authentication method %r failed", self._name)
            step = BROKEN
        self._task = None
        self._apply(step)
        self._client.unblock(self._pending)
        self._server.changed()

    def _apply(self, step: Any) -> None:
        client = self._client
        if isinstance(step, Challenge):
            self._tell(ReasonCode.CONTINUE_AUTHENTICATION, step.data)
        elif isinstance(step, Success):
            self._succeeded(step)
        else:
            if not isinstance(step, Failure):
                log.error("the authentication method %r returned %r, which is no step", self._name, type(step))
                step = BROKEN
            code = step.reason_code if step.reason_code in ALLOWED["CONNACK"] and step.reason_code else 0x87
            self._server.counters.authentications_refused += 1
            if client.session is None:
                client.refuse(code, step.reason)
            else:
                client.disconnect(code if code in ALLOWED["DISCONNECT"] else ReasonCode.NOT_AUTHORIZED, step.reason)

    def _succeeded(self, step: Success) -> None:
        self._stop_timer()
        client = self._client
        self._server.counters.authentications += 1
        if client.session is None:
            client.admit(self._connect, 0, step.username, self._properties(step.data))
        else:
            self._tell(ReasonCode.SUCCESS, step.data)
            if step.username is not None:
                client.renamed(step.username)

    def _tell(self, code: ReasonCode, data: bytes | None) -> None:
        """Send AUTH; what the client cannot take ends it, since it cannot go on without."""
        if not self._client.send_checked(Auth(code, self._properties(data))):
            self._client.disconnect(ReasonCode.PACKET_TOO_LARGE, "the client takes no packet of this AUTH's size")

    def _properties(self, data: bytes | None) -> dict[str, Any]:
        properties: dict[str, Any] = {"authentication_method": self._name}
        if data is not None:
            properties["authentication_data"] = data
        return properties

    def _timed_out(self) -> None:
        self._timer = None
        self._server.counters.authentications_refused += 1
        self._client.disconnect(ReasonCode.NOT_AUTHORIZED, "the authentication took too long")
        self._server.changed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
