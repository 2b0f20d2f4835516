"""Enhanced authentication at the client: a method's steps in CONNECT, AUTH and CONNACK (MQTT 5.0 section 4.12)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import (
    AuthenticationError,
    DisconnectedError,
    LabError,
    OperationTimeoutError,
    ProtocolError,
    UsageError,
)
from mqttquic_lab.mqtt import Auth, ConnectionState, ReasonCode

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Properties
    from mqttquic_lab.mqtt.authentication import ClientMethod
    from mqttquic_lab.session.channel import PacketChannel


class Authenticator:
    """The exchanges of one connection, first that of CONNECT. On the session's loop only.

    Parameters
    ----------
    method : ClientMethod
        How; its name holds for the whole connection (section 4.12.1).
    """

    def __init__(self, method: ClientMethod) -> None:
        self._method = method
        self._name = method.name
        self._exchange = method.start()
        self._again: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Authenticator {self._name}>"

    def first(self) -> dict[str, Any]:
        """Return the properties with which an exchange begins."""
        return self._properties(self._step(None))

    def received(self, packet: Auth, channel: PacketChannel) -> None:
        """Take an AUTH that the state table allowed; what does not go on ends the connection."""
        is_connecting = channel.state == ConnectionState.AUTHENTICATING
        if is_connecting:
            channel.connection.mark("auth_received", "AUTH", sender="server")
        try:
            data = self._data(packet.properties, "AUTH")
            if self._task is not None and not self._task.done():
                raise AuthenticationError("the broker sent AUTH again before it had an answer")
            if packet.reason_code == ReasonCode.SUCCESS:
                self._finish(data)
                if self._again is not None and not self._again.done():
                    self._again.set_result(None)
            else:
                self._task = asyncio.create_task(self._answer(data, channel, is_connecting))
        except LabError as error:
            self._fail(error)
            channel.fail("authentication", error)

    async def _answer(self, data: bytes | None, channel: PacketChannel, is_connecting: bool) -> None:
        """Go on; in a thread, since a method may compute for a while (SCRAM: as long as the server wants)."""
        try:
            answer = await asyncio.to_thread(self._step, data)
            if not channel.ended:
                channel.send(Auth(ReasonCode.CONTINUE_AUTHENTICATION, self._properties(answer)))
                if is_connecting:
                    channel.connection.mark("auth_sent", "AUTH")
        except LabError as error:
            self._fail(error)
            channel.fail("authentication", error)

    def accepted(self, properties: Properties) -> None:
        """Take the accepting CONNACK.

        Raises
        ------
        AuthenticationError
            The server did not show that it is the one meant, or named another method.
        """
        self._finish(self._data(properties, "CONNACK"))

    async def again(self, channel: PacketChannel, method: ClientMethod | None, timeout: float | None) -> None:
        """Authenticate again on the live connection; see :meth:`AsyncSession.reauthenticate`."""
        if channel.state != ConnectionState.CONNECTED:
            raise UsageError("an authentication is under way already: wait for that")
        if method is not None and method.name != self._name:
            raise UsageError(
                f"the method must stay {self._name!r} on one connection [MQTT-4.12.1-1], not {method.name!r}: "
                "reconnect with the other one"
            )
        self._method = method or self._method
        self._exchange = self._method.start()
        self._again = asyncio.get_running_loop().create_future()
        channel.send(Auth(ReasonCode.RE_AUTHENTICATE, self.first()))
        try:
            async with asyncio.timeout(timeout):
                await self._again
        except TimeoutError:
            raise OperationTimeoutError(f"the broker did not end the authentication within {timeout:g} s") from None

    def ended(self, reason: LabError | None) -> None:
        """Take the end of the connection."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._fail(reason or DisconnectedError("the session was closed while it authenticated again"))

    def _fail(self, error: LabError) -> None:
        if self._again is not None and not self._again.done():
            self._again.set_exception(error)
            self._again.exception()  # marked as seen: whoever waited may have been cancelled meanwhile

    def _data(self, properties: Properties, name: str) -> bytes | None:
        method = properties.get("authentication_method")
        if method != self._name and not (method is None and name == "AUTH" and not properties):
            raise ProtocolError(
                f"{name} names the authentication method {method!r}, and CONNECT named {self._name!r}",
                reason_code=ReasonCode.PROTOCOL_ERROR,
                rule="MQTT-4.12.0-5",
                section="MQTT 5.0 section 4.12",
            )
        data: bytes | None = properties.get("authentication_data")
        return data

    def _step(self, data: bytes | None) -> bytes | None:
        try:
            return self._exchange.step(data)
        except LabError:
            raise
        except Exception as error:
            raise self._broken(error) from error

    def _finish(self, data: bytes | None) -> None:
        try:
            self._exchange.finish(data)
        except LabError:
            raise
        except Exception as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> AuthenticationError:
        return AuthenticationError(f"the authentication method {self._name!r} failed: {type(error).__name__}: {error}")

    def _properties(self, data: bytes | None) -> dict[str, Any]:
        properties: dict[str, Any] = {"authentication_method": self._name}
        if data is not None:
            properties["authentication_data"] = data
        return properties
