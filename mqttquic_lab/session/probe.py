"""What a server's handshake really looks like, whether or not it succeeds."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from mqttquic_lab.errors import CertificateError, ConnectError, LabError, UnknownOptionError, UsageError
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.session.client import AsyncSession
from mqttquic_lab.session.options import SessionOptions
from mqttquic_lab.session.target import Target, resolve_target


async def probe(target: Any, timeout: float | str | None = 5.0, **options: Any) -> HandshakeReport:
    """Connect, ask for an MQTT session, disconnect, and report what was seen.

    A failure is what a probe is for: it is reported, at once, instead of raised. If the certificate is refused, a
    second connection is made without verification, so that the rest can be shown; nothing but a CONNECT without user
    name and password travels on that one, and the report keeps ``verification="failed"`` with the reason and the chain.

    Parameters
    ----------
    target : str or broker
        ``host[:port]`` (QUIC), a URL, or a broker of ours.
    timeout : float, str or None
        Seconds until CONNACK must have arrived; the second connection has as many again.
    **options
        See :class:`SessionOptions`.

    Returns
    -------
    HandshakeReport
        ``state`` is ``"closed"`` after a success and ``"failed"`` otherwise, with a sentence in ``error``. After a
        CONNACK that refuses, ``reason_code`` has its code.

    Raises
    ------
    UsageError, UnknownOptionError
        An option cannot be used; nothing was sent.
    """
    known = {f.name for f in fields(SessionOptions)}
    for name in options:
        if name not in known:
            raise UnknownOptionError("probe", name, known)
    settings = SessionOptions(timeout=timeout, **options)
    return await look_at(resolve_target(target, settings), settings)


async def look_at(where: Target, settings: SessionOptions) -> HandshakeReport:
    """Do what :func:`probe` does, with arguments already checked."""
    if where.fallbacks:
        raise UsageError("a probe looks at one address: leave fallback= out, and probe the mqtts:// URL as well")
    report = HandshakeReport(url=where.address.url)
    try:
        await _look(where, settings, report)
    except CertificateError as refused:
        second = HandshakeReport(url=where.address.url)
        anonymous = replace(settings, username=None, password=None, will=None, ssl_context=None, verify=False)
        open_eyed = replace(
            where, trust=replace(where.trust, verify=False), ssl_context=None, username=None, password=None
        )
        try:
            await _look(open_eyed, anonymous, second)
        except LabError:
            second = report  # then the first attempt tells more
        second.verification, second.verification_detail = "failed", str(refused)
        if not second.certificates:
            second.certificates = tuple(refused.chain)
        second.verified_chain = ()
        second.state, second.error = "failed", str(refused)
        return second
    except ConnectError as error:
        report.state, report.error = "failed", str(error)
    return report


async def _look(where: Target, settings: SessionOptions, report: HandshakeReport) -> None:
    session = await AsyncSession.open_with(where, settings, report=report)
    await session.close(timeout=1.0)
    session.handshake  # noqa: B018 - brings the report up to date
