"""The handshake card: how a session came about, at one glance, with everything else one click away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.views import facts
from mqttquic_lab.views import html as h
from mqttquic_lab.views import quantities as q
from mqttquic_lab.views.svg import ladder

if TYPE_CHECKING:
    import datetime as dt

    from mqttquic_lab.records.handshake import CertificateInfo, HandshakeReport

_CERTIFICATES_SHOWN = 10
_ROWS_SHOWN = 200
_FIELD_CLIP = 300


def handshake_html(report: HandshakeReport, *, now: dt.datetime | None = None) -> str:
    """Return the handshake card as an HTML fragment that stands alone.

    Parameters
    ----------
    report : HandshakeReport
        At any stage: connecting, connected, failed or closed, over QUIC, TLS or TCP.
    now : datetime, optional
        The present, for "expires in 128 days"; aware, default the clock's.

    Returns
    -------
    str
        HTML without scripts; every text of it that came from the network is escaped.
    """
    now = now or facts.utc_now()
    return h.fragment(card(report, now), f"Handshake with {report.url}", "mql-handshake")


def card(report: HandshakeReport, now: dt.datetime) -> str:
    """Return the card without style sheet, to stand within another view."""
    rows = [(name, h.clip(text, 300)) for name, text in facts.rows(report, now)]
    facts_column = f'<div class="mql-facts">{h.definition_list(rows)}</div>' if rows else ""
    return (
        '<div class="mql-card">'
        + header(report)
        + "".join(h.notice(item) for item in facts.notices(report))
        + f'<div class="mql-body{"" if rows else " mql-single"}">'
        + f'<div class="mql-picture">{_picture(report)}</div>{facts_column}</div>'
        + _certificates(report, now)
        + _parameters(report)
        + _session(report)
        + _timings(report)
        + _mqtt(report)
        + "</div>"
    )


def header(report: HandshakeReport) -> str:
    """Return the card's first line: state, address, chips, and the number that answers "how long"."""
    word, kind = facts.state(report)
    return (
        '<div class="mql-head">'
        + dot(word, kind)
        + h.clip(report.url or "(no address)", 80, css="mql-url")
        + f'<span class="mql-chips">{"".join(h.chip(item) for item in facts.chips(report))}</span>'
        + f'<span class="mql-big">{h.escape(facts.headline(report))}</span></div>'
    )


def dot(word: str, kind: h.Kind) -> str:
    """Return a state as a coloured dot whose shape differs too, with its word for those who do not see it."""
    return (
        f'<span class="mql-dot mql-{kind}" title="{h.escape(word)}" role="img" aria-label="state: {h.escape(word)}">'
        "</span>"
    )


def _picture(report: HandshakeReport) -> str:
    if not report.flights:
        words = "waiting for the first packet" if report.state == "connecting" else "no packets were recorded"
        return f'<p class="mql-empty">{words}</p>'
    unanswered = ""
    if report.flights[-1].sender == "client" and report.state in ("failed", "connecting"):
        unanswered = "no answer" if report.state == "failed" else "no answer yet"
    flights = facts.ladder_flights(report)
    return "".join(ladder(flights, width, unanswered=unanswered) for width in (520, 290))


def _certificates(report: HandshakeReport, now: dt.datetime) -> str:
    chain = report.certificates
    presented = {info.fingerprint_sha256 for info in chain}
    anchors = [info for info in report.verified_chain[-1:] if info.fingerprint_sha256 not in presented]
    if not chain and not anchors:
        return ""
    roles = ["server", *(f"intermediate {n}" for n in range(1, len(chain)))][: len(chain)]
    shown = [(role, info) for role, info in zip(roles, chain, strict=True)][:_CERTIFICATES_SHOWN]
    body = "".join(_certificate(role, info, now) for role, info in [*shown, *(("trust anchor", a) for a in anchors)])
    if len(chain) > len(shown):
        body += f"<p>{len(chain) - len(shown)} more were presented and are not shown.</p>"
    summary = f"{len(chain)} in chain"
    if report.verified_chain:
        summary += ", 1 anchor"
    return h.details("Certificates", summary, body)


def _certificate(role: str, info: CertificateInfo, now: dt.datetime) -> str:
    rows = [(name, h.clip(text, 400)) for name, text in facts.certificate_facts(info, now)]
    pem = f"<details><summary>PEM</summary><pre>{_lines(info.pem, 16_000)}</pre></details>" if info.pem else ""
    return (
        f'<section class="mql-cert"><h4>{h.escape(role)} · {h.escape(facts.common_name(info.subject), 80)}</h4>'
        f"{h.definition_list(rows)}{pem}</section>"
    )


def _lines(text: str, limit: int) -> str:
    return "\n".join(h.escape(line, 200) for line in text[:limit].splitlines())


def _parameters(report: HandshakeReport) -> str:
    rows = facts.parameters(report)
    if not rows:
        return ""
    ours, theirs = len(report.local_transport_parameters), len(report.remote_transport_parameters)
    summary = f"both sides, {ours} each" if ours == theirs else f"client {ours}, broker {theirs}"
    cells = [
        (h.clip(name, 60, css="mql-code"), h.clip(mine or "not sent", 120), h.clip(their or "not sent", 120))
        for name, mine, their in rows[:_ROWS_SHOWN]
    ]
    return h.details(
        "Transport parameters", summary, h.table(("parameter", "client", "broker"), cells, "mql-parameters")
    )


def _session(report: HandshakeReport) -> str:
    if report.transport == "tcp" or report.tls_version is None:
        return ""
    begun = facts.beginning(report)
    rows = [("this time", h.escape(f"{begun.text}: {begun.title}"))] if begun else []
    if report.transport == "quic":
        rows.append(("early data", h.escape(report.early_data)))
    if report.server_name:
        rows.append(("name asked for", h.clip(f"{report.server_name} (SNI)", 120)))
    if report.offered_alpn:
        rows.append(("ALPN offered", h.clip(", ".join(report.offered_alpn), 120)))
    next_time = facts.early_data_next_time(report)
    if next_time:
        rows.append(("0-RTT next time", h.escape(next_time)))
    cells = [
        (str(number), f"{ticket.lifetime:,} s ({q.duration(ticket.lifetime)})", f"{ticket.max_early_data:,} B")
        for number, ticket in enumerate(report.tickets[:_ROWS_SHOWN], 1)
    ]
    tickets = h.table(("ticket", "lifetime", "early data allowed"), cells) if cells else ""
    return h.details("Session", facts.session(report), h.definition_list(rows) + tickets)


def _timings(report: HandshakeReport) -> str:
    rows = facts.milestones(report)
    if not rows:
        return ""
    cells = [(h.escape(what), h.escape(q.milliseconds(seconds))) for what, seconds in rows[:_ROWS_SHOWN]]
    return h.details("Timings", q.plural(len(rows), "milestone"), h.table(("what", "after the first packet"), cells))


def _mqtt(report: HandshakeReport) -> str:
    packets = [("CONNECT", report.connect_fields), ("CONNACK", report.connack_fields)]
    body = "".join(_xray(name, fields) for name, fields in packets if fields)
    if not body:
        return ""
    names = " and ".join(name for name, fields in packets if fields)
    return h.details("MQTT", f"{names}, byte by byte", body)


def _xray(name: str, fields: tuple[tuple[str, int, int, object], ...]) -> str:
    cells = []
    for field, start, end, value in fields[:_ROWS_SHOWN]:
        cells.append(
            (
                facts.field_span(start, end),
                h.clip(str(field).replace("_", " "), 60),
                h.clip(facts.field_value(value), _FIELD_CLIP, css="mql-code"),
            )
        )
    more = f"<p>{len(fields) - len(cells)} more fields are not shown.</p>" if len(fields) > len(cells) else ""
    total = max(end for _, _, end, _ in fields)
    title = f"{name} · {q.plural(total, 'byte')}"
    return f"<h4>{h.escape(title)}</h4>{h.table(('bytes', 'field', 'value'), cells, 'mql-xray')}{more}"
