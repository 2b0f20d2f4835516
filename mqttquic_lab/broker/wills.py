"""Will messages that wait for their delay (MQTT 5.0 sections 3.1.2.5 and 3.1.3.2.2).

A will is published when its connection ends without a DISCONNECT that says otherwise. With a Will Delay Interval it
waits that long, but no longer than the session lives; the client coming back in time cancels it [MQTT-3.1.3-9].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.broker.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.broker.clock import Clock, TimerHandle
    from mqttquic_lab.broker.sessions import Session
    from mqttquic_lab.mqtt import Will


class Wills:
    """Delayed wills, one per session at most.

    Parameters
    ----------
    clock : Clock
        Runs the delays.
    publish : callable(Message)
        Publishes a will that is due.
    """

    def __init__(self, clock: Clock, publish: Callable[[Message], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._waiting: dict[Session, tuple[Will, TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def connection_lost(self, session: Session, will: Will) -> None:
        """Publish a will, or let it wait for its delay."""
        delay = will.properties.get("will_delay_interval", 0)
        if delay:  # a session that ends with its connection ends the delay as well, right after this
            handle = self._clock.call_later(delay, self.session_ended, session)
            self._waiting[session] = (will, handle)
        else:
            self._send(will)

    def session_resumed(self, session: Session) -> None:
        """Give up the will of a client that came back in time [MQTT-3.1.3-9]."""
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            waiting[1].cancel()

    def session_ended(self, session: Session) -> None:
        """Publish the will that still waits, if any: its delay, or its session, is over."""
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            waiting[1].cancel()
            self._send(waiting[0])

    def forget_all(self) -> None:
        """Give up every will; the broker closes."""
        for _, handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()

    def _send(self, will: Will) -> None:
        properties = {name: value for name, value in will.properties.items() if name != "will_delay_interval"}
        self._publish(Message(will.topic, will.payload, will.qos, will.retain, properties, self._clock.time()))
