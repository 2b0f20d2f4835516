"""The one-line cards of handles in a notebook."""

from __future__ import annotations

from mqttquic_lab.views.html import Chip, Kind, chip, clip, escape, fragment, table

_KINDS: dict[str, Kind] = {"connected": "ok", "active": "ok", "listening": "ok", "connecting": ""}


def line(kind: str, name: str, state: str, detail: str, body: str = "") -> str:
    """Return a small card: what it is, its name, its state as a chip, one sentence, and `body`, which is HTML."""
    return fragment(
        f"<div><b>{escape(kind)}</b> {clip(name)} {chip(Chip(state, _KINDS.get(state, 'muted')))} "
        f"<span>{escape(detail, 400)}</span></div>{body}",
        kind,
    )


def rows(head: tuple[str, ...], cells: list[tuple[object, ...]]) -> str:
    """Return a table of text cells, escaped."""
    return table(head, [tuple(escape(cell) for cell in row) for row in cells])
