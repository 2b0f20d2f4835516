"""Going on with a session over another connection, whatever carries that one.

What lives longer than a connection (MQTT 5.0 section 4.1): feeds and their subscriptions, messages at QoS 1 and 2 that
are not acknowledged, and which QoS 2 messages were received already. The new connection's CONNECT names the same client
and asks for the session (Clean Start 0); the answer says whether the broker still has it (Session Present):

- It has. Its subscriptions hold. PUBREL and PUBLISH packets without an answer are sent again (with DUP), in their first
  order [MQTT-4.4.0-1, MQTT-4.6.0-1]. Nothing acknowledged is lost, nothing at QoS 2 is delivered twice.
- It has not: it was not asked to keep the session (``session_expiry_interval``), or has restarted. Filters are
  subscribed anew, and messages that were never acknowledged are sent anew. The broker may have passed such a message on
  before it forgot, so that even at QoS 2 it may be there twice: nobody can tell any more. A QoS 2 message that the
  broker has accepted (PUBREC) is not sent again: it is the broker's since then [MQTT-4.3.3-8].

Data streams end with their connection: what was subscribed and not acknowledged on them is not carried over.

The broker publishes the will of a session that leaves one connection for another, as of one that was lost, unless the
will has a Will Delay Interval (section 3.1.3.2.2). In MQTT 3.1.1 there is no Session Expiry Interval: once reconnected,
the broker keeps the session until somebody connects with ``clean_start=True`` (3.1.1 section 3.1.2.4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError, UsageError
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.session.connecting import checked_connect, deadline_of, open_transport
from mqttquic_lab.session.fallback import first_that_works
from mqttquic_lab.session.target import resolve_target, transport_of

if TYPE_CHECKING:
    from mqttquic_lab.session.lifecycle import SessionLifecycle
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.target import Target


class Reconnector:
    """Opens further connections for one session. On its loop only.

    Attributes
    ----------
    target : Target or None
        Where the session goes when nothing else is said; None if it was started on a connection that was given.
    """

    def __init__(self, session: SessionLifecycle) -> None:
        self.target: Target | None = None
        self._session = session
        self._is_busy = False
        self._given_up = 0

    def give_up(self) -> None:
        """Let an attempt under way end without effect: the session is closed."""
        self._given_up += 1

    async def reconnect(self, url: Any, timeout: float | str | None) -> None:
        """See :meth:`AsyncSession.reconnect`."""
        session = self._session
        if self._is_busy:
            raise UsageError("the session is reconnecting already: wait for that")
        target, options = self._plan(url, timeout)
        self._is_busy = True
        given_up = self._given_up

        async def attempt(way: Target, settings: SessionOptions, reason: str | None) -> None:
            first = checked_connect(settings, way)
            deadline = deadline_of(settings)
            report = HandshakeReport(url=way.address.url, fallback_reason=reason)
            # The old connection, if there still is one, goes on serving until the new one is there.
            # So CONNECT may go early only if there is none: the broker would end it as soon as that arrives.
            early = first if session.state != "connected" else None
            connection = await open_transport(way, settings, report, session.trace, first=early)
            if given_up != self._given_up:
                connection.abort("the session was closed meanwhile")
                raise DisconnectedError("the session was closed while it reconnected")
            await session.carry_on(connection, settings, first, way.address.url, deadline)

        try:
            await first_that_works(target, options, attempt)
        except OperationTimeoutError:
            self.target = target  # connected there, only not all answers have come
            raise
        finally:
            self._is_busy = False
        self.target = target

    def _plan(self, url: Any, timeout: float | str | None) -> tuple[Target, SessionOptions]:
        session = self._session
        # 3.1.1 has no session without a name: there is nothing to ask for then.
        named = bool(session.client_id) or session.options.level == 5
        options = replace(
            session.options,
            client_id=session.client_id,
            clean_start=not named,
            timeout=timeout,
            publish_early=(),  # those were for the first connection
        )
        if url is not None:
            if transport_of(url) != "quic":
                options = replace(options, fallback=False)
            return resolve_target(url, options, self.target), options
        if self.target is None:
            raise UsageError("this session was started on a given connection: say where to, reconnect('quic://...')")
        return self.target, options
