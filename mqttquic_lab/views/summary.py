"""Small cards for handles: what a session, a feed or a broker is, when a cell ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttquic_lab.net.address import host_port
from mqttquic_lab.views import facts
from mqttquic_lab.views import html as h
from mqttquic_lab.views import quantities as q
from mqttquic_lab.views.card import dot, header
from mqttquic_lab.views.payload import preview

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mqttquic_lab.records.handshake import HandshakeReport

_SHOWN = 20


def session_html(
    report: HandshakeReport,
    *,
    state: str = "",
    feeds: Sequence[tuple[str, int, int]] = (),
    counters: Mapping[str, int] | None = None,
    errors: Sequence[tuple[float, str, str]] = (),
) -> str:
    """Return a session in a few lines.

    Parameters
    ----------
    report : HandshakeReport
        How it came about.
    state : str
        Its state now, when that is another than the report's.
    feeds : sequence of (filters, received, dropped)
    counters : mapping of str to int
        Words -> number, for the status line; zeros are left out.
    errors : sequence of (seconds since the epoch, where, what)
        The newest is shown.
    """
    head = header(report) if not state or state == report.state else _head(report.url, state, facts.chips(report)[:3])
    rows = [(h.clip(name, 80), q.count(received), q.count(dropped)) for name, received, dropped in feeds[:_SHOWN]]
    table = h.table(("feed", "messages", "dropped"), rows, "mql-plain") if rows else ""
    client = f"client id {report.client_id}" if report.client_id else ""
    return _card(
        head + "".join(h.notice(item) for item in facts.notices(report)) + table,
        [client, *_counted(counters), *_errors(errors), *_more(len(feeds), "feed")],
        f"Session with {report.url}",
    )


def feed_html(
    filters: Iterable[str],
    *,
    received: int,
    held: int,
    dropped: int = 0,
    decode_errors: int = 0,
    topics: Mapping[str, int] | None = None,
    newest: Sequence[tuple[int, str, bytes]] = (),
    state: str = "connected",
) -> str:
    """Return a feed in a few lines.

    Parameters
    ----------
    filters : iterable of str
        Its topic filters.
    received, held, dropped, decode_errors : int
        Messages.
    topics : mapping of str to int
        Topic -> messages held; only their number is shown.
    newest : sequence of (nanoseconds since the epoch, topic, payload)
        Newest first; five are shown.
    state : str
        Of its session.
    """
    rows = [
        (q.time_of_day(time_ns), h.clip(topic, 80), h.clip(preview(payload, 100), 100, css="mql-code"))
        for time_ns, topic, payload in newest[:5]
    ]
    body = h.table(("time UTC", "topic", "payload"), rows, "mql-plain") if rows else ""
    if not received:
        body = '<div class="mql-empty">Waiting for the first message.</div>'
    status = [f"{q.count(received)} received", f"{q.count(held)} held", f"{q.count(dropped)} dropped"]
    if topics:
        status.append(q.plural(len(topics), "topic"))
    if decode_errors:
        status.append(q.plural(decode_errors, "decode error"))
    name = ", ".join(filters)
    return _card(_head(name, state, []) + body, status, f"Feed {name}")


def broker_html(
    urls: Mapping[str, str],
    *,
    state: str = "running",
    clients: Sequence[Any] = (),
    counters: Mapping[str, int] | None = None,
    ca_file: str = "",
) -> str:
    """Return the embedded broker in a few lines.

    Parameters
    ----------
    urls : mapping of str to str
        Scheme -> URL.
    state : str
        ``"running"`` or ``"closed"``.
    clients : sequence
        Who is connected: anything with ``client_id``, ``transport``, ``version``, ``messages_in``, ``messages_out``.
    counters : mapping of str to int
        Words -> number; zeros are left out.
    ca_file : str
        Path of its certificate authority, for other programs.
    """
    rows = [(scheme, h.clip(url, 100, css="mql-code")) for scheme, url in urls.items()]
    if ca_file:
        rows.append(("CA file", h.clip(ca_file, 200, css="mql-code")))
    cells = [
        (
            h.clip(one.client_id or "(empty)", 60),
            h.escape(one.transport),
            h.escape(one.version),
            q.count(one.messages_in),
            q.count(one.messages_out),
        )
        for one in clients[:_SHOWN]
    ]
    heads = ("client", "over", "MQTT", "messages in", "messages out")
    table = h.table(heads, cells, "mql-plain") if cells else ""
    body = f'<div class="mql-pad">{h.definition_list(rows)}</div>' if rows else ""
    status = [q.plural(len(clients), "client"), *_counted(counters), *_more(len(clients), "client")] if urls else []
    return _card(_head("MQTT broker", state, []) + body + table, status, "Embedded broker")


def gateway_html(
    urls: Mapping[str, str],
    upstream: str,
    *,
    state: str = "running",
    clients: Sequence[Any] = (),
    errors: Sequence[tuple[float, str, str]] = (),
    ca_file: str = "",
) -> str:
    """Return a gateway in a few lines.

    Parameters
    ----------
    urls : mapping of str to str
        Scheme -> URL.
    upstream : str
        URL of the broker behind it.
    state : str
        ``"running"`` or ``"closed"``.
    clients : sequence
        Who is connected: anything with ``address``, ``transport`` and ``streams``; each of these with ``stream_id``,
        ``state``, ``bytes_to_broker`` and ``bytes_from_broker``.
    errors : sequence of (seconds since the epoch, where, what)
        The newest is shown.
    ca_file : str
        Path of its certificate authority, for other programs.
    """
    rows = [(scheme, h.clip(url, 100, css="mql-code")) for scheme, url in urls.items()]
    rows.append(("broker", h.clip(upstream, 100, css="mql-code")))
    if ca_file:
        rows.append(("CA file", h.clip(ca_file, 200, css="mql-code")))
    cells = [
        (
            h.clip(host_port(*one.address), 60),
            h.escape(one.transport),
            h.escape("" if stream.stream_id is None else str(stream.stream_id)),
            h.escape(stream.state),
            q.count(stream.bytes_to_broker),
            q.count(stream.bytes_from_broker),
        )
        for one in clients
        for stream in one.streams
    ][:_SHOWN]
    heads = ("client", "over", "stream", "state", "bytes to broker", "bytes from broker")
    table = h.table(heads, cells, "mql-plain") if cells else ""
    body = f'<div class="mql-pad">{h.definition_list(rows)}</div>'
    status = [q.plural(len(clients), "client"), *_errors(errors), *_more(len(clients), "client")]
    return _card(_head("MQTT gateway", state, []) + body + table, status, "Gateway")


_STATES: dict[str, tuple[str, h.Kind]] = {
    **facts.STATES,
    "running": ("running", "ok"),
    "active": ("active", "ok"),
    "ended": ("ended", "muted"),
}


def _head(title: str, state: str, chips: Iterable[h.Chip]) -> str:
    word, kind = _STATES.get(state, (state, "muted"))
    shown = "".join(map(h.chip, [h.Chip(word, kind), *chips]))
    name = h.clip(title, 120, css="mql-url")
    return f'<div class="mql-head">{dot(word, kind)}{name}<span class="mql-chips">{shown}</span></div>'


def _card(body: str, status: Iterable[str], label: str) -> str:
    parts = "".join(f"<span>{h.escape(part)}</span>" for part in status if part)
    foot = f'<div class="mql-status">{parts}</div>' if parts else ""
    return h.fragment(f'<div class="mql-card">{body}{foot}</div>', label, "mql-summary")


def _counted(counters: Mapping[str, int] | None) -> list[str]:
    return [q.counted(number, words) for words, number in (counters or {}).items() if number]


def _errors(errors: Sequence[tuple[float, str, str]]) -> list[str]:
    if not errors:
        return ["no errors"]
    when, where, what = errors[-1]
    return [f"{q.plural(len(errors), 'error')}, the newest at {q.time_of_day(int(when * 1e9))} in {where}: {what}"]


def _more(number: int, what: str) -> list[str]:
    return [f"{q.plural(number - _SHOWN, what)} more not shown"] if number > _SHOWN else []
