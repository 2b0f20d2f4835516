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
    from mqttquic_lab.broker.store.journal import Journal
    from mqttquic_lab.mqtt import Will


class Wills:
    """Delayed wills, one per session at most.

    Parameters
    ----------
    clock : Clock
        Runs the delays.
    publish : callable(Message, str)
        Publishes a will that is due, of the client of this identifier.
    """

    def __init__(self, clock: Clock, publish: Callable[[Message, str], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._waiting: dict[Session, tuple[Will, TimerHandle]] = {}
        self.journal: Journal | None = None
        """The store's, where the broker has one."""

    def __len__(self) -> int:
        return len(self._waiting)

    def connected(self, session: Session, will: Will | None) -> None:
        """Note the will of a client that has just connected."""
        if self.journal is not None:
            if will is None:
                self.journal.drop_will(session.client_id)
            else:
                self.journal.keep_will(session.client_id, will)

    def withdrawn(self, session: Session) -> None:
        """Note that a connection ended without a will to be published [MQTT-3.1.2-10]."""
        if self.journal is not None:
            self.journal.drop_will(session.client_id)

    def connection_lost(self, session: Session, will: Will) -> None:
        """Publish a will, or let it wait for its delay."""
        delay = will.properties.get("will_delay_interval", 0)
        if delay:  # a session that ends with its connection ends the delay as well, right after this
            self._wait(session, will, delay)
            if self.journal is not None:
                self.journal.keep_will(session.client_id, will, self._clock.time() + delay)
        else:
            self._send(session.client_id, will)

    def _wait(self, session: Session, will: Will, delay: float) -> None:
        self._waiting[session] = (will, self._clock.call_later(delay, self.session_ended, session))

    def restore(self, client_id: str, session: Session | None, will: Will, due_at: float | None) -> None:
        """Take over a will that a store has kept.

        Parameters
        ----------
        client_id : str
            Whose it is.
        session : Session or None
            The client's session, unless that is over.
        will : Will
            The will.
        due_at : float or None
            When it is due, on the broker's clock; None if the connection was there when the broker ended.
        """
        delay = will.properties.get("will_delay_interval", 0) if due_at is None else due_at - self._clock.time()
        if session is None or delay <= 0:
            self._send(client_id, will)
        elif due_at is None:
            self.connection_lost(session, will)
        else:
            self._wait(session, will, delay)

    def session_resumed(self, session: Session) -> None:
        """Give up the will of a client that came back in time [MQTT-3.1.3-9]."""
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            waiting[1].cancel()
            self.withdrawn(session)

    def session_ended(self, session: Session) -> None:
        """Publish the will that still waits, if any: its delay, or its session, is over."""
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            waiting[1].cancel()
            self._send(session.client_id, waiting[0])

    def forget_all(self) -> None:
        """Give up every will; the broker closes."""
        for _, handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()

    def _send(self, client_id: str, will: Will) -> None:
        if self.journal is not None:
            self.journal.drop_will(client_id)
        properties = {name: value for name, value in will.properties.items() if name != "will_delay_interval"}
        message = Message(will.topic, will.payload, will.qos, will.retain, properties, self._clock.time())
        self._publish(message, client_id)
