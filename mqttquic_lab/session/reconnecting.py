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

QUIC streams end with their connection. A data stream that was opened explicitly goes on on a fresh one and is
subscribed anew there, whatever the broker has kept: subscriptions of data streams end with them. Over TCP and TLS its
feeds go to the control stream. Messages that were not acknowledged on data streams are not sent again: who waited was
told. Flows (``streams="flows"``) are kept at both ends and recovered with all that was under way on them.

The broker publishes the will of a session that leaves one connection for another, as of one that was lost, unless the
will has a Will Delay Interval (section 3.1.3.2.2). In MQTT 3.1.1 there is no Session Expiry Interval: once reconnected,
the broker keeps the session until somebody connects with ``clean_start=True`` (3.1.1 section 3.1.2.4).

A session whose connection was lost does this by itself, with the pauses of
:class:`~mqttquic_lab.session.backoff.Backoff`, until it is connected, closed, or told something that waiting does not
change (``reconnect=False`` leaves it closed instead). Messages published meanwhile wait in the
:class:`~mqttquic_lab.session.offline.OfflineQueue`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import DisconnectedError, LabError, OperationTimeoutError, UsageError
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.session.backoff import Backoff, may_pass
from mqttquic_lab.session.connecting import checked_connect, deadline_of, open_transport
from mqttquic_lab.session.fallback import first_that_works
from mqttquic_lab.session.target import resolve_target, transport_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.session.lifecycle import SessionLifecycle
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.target import Target


logger = logging.getLogger("mqttquic_lab.session")


class Reconnector:
    """Opens further connections for one session, asked or by itself. On its loop only.

    Attributes
    ----------
    target : Target or None
        Where the session goes when nothing else is said; None if it was started on a connection that was given.
    backoff : Backoff or None
        Pauses between attempts that nobody asked for; None makes none.
    attempt : int
        Number of the attempt that is under way or waited for, since the connection was lost; 0 if none is.
    """

    def __init__(self, session: SessionLifecycle) -> None:
        self.target: Target | None = None
        wanted = session.options.reconnect
        self.backoff: Backoff | None = wanted if isinstance(wanted, Backoff) else Backoff() if wanted else None
        self.attempt = 0
        self._session = session
        self._is_busy = False
        self._given_up = 0
        self._task: asyncio.Task[None] | None = None
        self._pauses: Iterator[float] = iter(())

    # By itself

    @property
    def is_retrying(self) -> bool:
        """Whether the session has lost its connection and is about to get another."""
        return self._task is not None

    def take_over(self, reason: LabError | None, connected_for: float | None) -> bool:
        """Take in that a connection ended, or did not come about; returns whether another is on its way.

        Parameters
        ----------
        reason : LabError or None
            Why it ended; None if that was asked for.
        connected_for : float or None
            Seconds for which the broker had accepted it; None if it had not.
        """
        if reason is None:
            return False
        if self._task is not None or self._is_busy:
            return True  # it was an attempt of ours, and we decide what comes next
        if connected_for is None or not self._may_try(reason):
            return False
        assert self.backoff is not None
        # One that did not last was no connection to speak of: the pauses go on growing.
        self._begin(reason, afresh=connected_for >= self.backoff.maximum or not self.attempt)
        return True

    def _may_try(self, reason: LabError) -> bool:
        return self.backoff is not None and self.target is not None and may_pass(reason)

    def _begin(self, reason: LabError, *, afresh: bool = True) -> None:
        if afresh and self.backoff is not None:
            self.attempt = 0
            self._pauses = self.backoff.pauses()
        self._task = asyncio.get_running_loop().create_task(self._keep_trying(reason), name="mqttquic-reconnect")

    async def _keep_trying(self, reason: LabError) -> None:
        session, told = self._session, ""
        try:
            for pause in self._pauses:
                self.attempt += 1
                if str(reason) != told:
                    told = str(reason)
                    session.note_retry(self.attempt, told)
                await asyncio.sleep(pause)
                try:
                    target, options = self._plan(None, session.options.timeout)
                    await self._go(target, options)
                except OperationTimeoutError as error:
                    session.record_error("reconnect", str(error))
                except LabError as error:
                    reason = error
                if session.state == "connected":
                    self._task = None
                    return
                if not may_pass(reason):
                    break
        except Exception as error:
            # A fault of ours. The session must not be left waiting for somebody who is gone.
            logger.exception("reconnecting failed")
            reason = DisconnectedError(f"reconnecting failed: {type(error).__name__}: {error}")
        self._task = None
        session.conclude(reason)

    def give_up(self) -> None:
        """Let an attempt under way end without effect: the session is closed."""
        self._given_up += 1
        self._stop()

    def _stop(self) -> bool:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task is not None

    # When asked

    async def reconnect(self, url: Any, timeout: float | str | None) -> None:
        """See :meth:`AsyncSession.reconnect`."""
        session = self._session
        if self._is_busy:
            raise UsageError("the session is reconnecting already: wait for that")
        target, options = self._plan(url, timeout)
        goes_on = self._stop() or session.state == "connected"
        self._is_busy = True
        try:
            await self._go(target, options)
        except LabError as error:
            if session.state not in ("connected", "closed"):
                if goes_on and self._may_try(error):
                    self._begin(error)
                else:
                    session.conclude(error)
            raise
        except BaseException:
            if session.state != "connected":
                session.conclude(DisconnectedError("reconnecting was cancelled"))
            raise
        finally:
            self._is_busy = False

    async def _go(self, target: Target, options: SessionOptions) -> None:
        """Connect to `target` or its fallbacks."""
        session = self._session
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
