"""Escaping, and the few HTML parts that all views share.

Whatever a peer can choose (topics, payloads, certificate names, reason strings, client ids) passes through
:func:`escape` or :func:`clip` on its way to HTML or SVG, and through :func:`visible` on its way to a terminal. Markup
characters are the smaller half of that: control characters drive terminals, and bidirectional overrides make a text
read as something else.
"""

from __future__ import annotations

import functools
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["", "ok", "warn", "bad", "muted"]
"""What a chip or sentence means; each has a colour, and words that say the same."""

CLIP = 200
"""Characters of one text shown at most; up to :data:`TITLE` stand in its tooltip."""

TITLE = 1000

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: terminals obey them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, embeddings, overrides, isolates
    "\u00ad\u180e\u200b\u2028\u2029\u2060-\u2065\ufeff\ufff9-\ufffb"  # nothing to see, or a line break
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # surrogates and noncharacters: not XML, not UTF-8
    "\U000e0000-\U000e0fff"  # tags and other invisible plane-14 characters
    "]"
)


class Chip(NamedTuple):
    """A short word in a rounded frame."""

    text: str
    kind: Kind = ""
    title: str = ""
    """One sentence more, as tooltip."""


class Notice(NamedTuple):
    """A sentence across the whole card that must not be missed."""

    text: str
    kind: Kind


def visible(text: object) -> str:
    r"""Return text in which every control, bidirectional or invisible character is written as an escape.

    >>> visible("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return _HIDDEN.sub(_escape_sequence, str(text))


def _escape_sequence(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def shorten(text: object, limit: int = CLIP) -> str:
    """Return :func:`visible` text of at most `limit` characters, an ellipsis marking what was cut."""
    whole = str(text)
    shown = visible(whole[: limit + 1])
    return shown if len(whole) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def escape(text: object, limit: int = CLIP) -> str:
    """Return text safe between tags and within quoted attributes, of HTML and of SVG."""
    return html.escape(shorten(text, limit), quote=True)


def clip(text: object, limit: int = CLIP, tag: str = "span", css: str = "") -> str:
    """Return an element holding `text` cut to `limit`, with more of it in the tooltip when it was cut."""
    whole = str(text)
    classes = f"mql-net {css}".strip()
    title = f' title="{escape(whole, TITLE)}"' if len(whole) > limit else ""
    return f'<{tag} class="{classes}"{title}>{escape(whole, limit)}</{tag}>'


def chip(item: Chip) -> str:
    """Return one chip."""
    css = f"mql-chip mql-{item.kind}" if item.kind else "mql-chip"
    title = f' title="{escape(item.title, TITLE)}"' if item.title else ""
    return f'<span class="{css}"{title}>{escape(item.text, 60)}</span>'


def notice(item: Notice) -> str:
    """Return one sentence in a coloured band."""
    mark = {"bad": "✕", "warn": "!", "ok": "✓"}.get(item.kind, "·")
    return (
        f'<div class="mql-notice mql-{item.kind or "muted"}" role="note">'
        f'<span class="mql-mark" aria-hidden="true">{mark}</span>{clip(item.text, 400)}</div>'
    )


def details(title: str, summary: str, body: str) -> str:
    """Return a native disclosure; `title` and `summary` are text, `body` is HTML."""
    rest = f" · {escape(summary)}" if summary else ""
    return f"<details><summary><b>{escape(title)}</b>{rest}</summary><div class='mql-detail'>{body}</div></details>"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], css: str = "") -> str:
    """Return a table; headings are text, cells are HTML."""
    classes = f"mql-table {css}".strip()
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="mql-scroll"><table class="{classes}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def definition_list(rows: list[tuple[str, str]]) -> str:
    """Return a definition list; terms are text, definitions are HTML."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{value}</dd>" for term, value in rows) + "</dl>"


@functools.cache
def stylesheet() -> str:
    """Return the CSS of all views, every rule of it below ``.mql``.

    JupyterLab styles what outputs contain (``svg { height: auto }``, ``td { text-align: right }``) with selectors of
    up to three classes. Ours stand below ``:is(.mql, #mql)``, which counts like an id, so that they win.
    """
    css = Path(__file__).with_name("views.css").read_text(encoding="utf-8")
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    css = re.sub(r"\s+", " ", css).strip()
    return re.sub(r"[^{}]+(?=\{)", lambda match: ",".join(map(_strengthen, match[0].split(","))), css)


def _strengthen(selector: str) -> str:
    return re.sub(r"^\.mql(?: |(?=-))(?P<below>.+)", _below, selector.strip())


def _below(match: re.Match[str]) -> str:
    below = match["below"]
    return f":is(.mql,#mql) {f'.mql{below}' if below.startswith('-') else below}"


def fragment(body: str, label: str, css: str = "") -> str:
    """Wrap a view for a notebook's output: its style sheet, and a labelled region.

    The style sheet comes with each view, because an output cell may be shown, saved or copied without its neighbours.
    """
    classes = f"mql {css}".strip()
    return (
        f'<div class="{classes}" role="region" aria-label="{escape(label)}"><style>{stylesheet()}</style>{body}</div>'
    )


def page(body: str, title: str) -> str:
    """Return a whole HTML document around fragments, for files that a browser opens by itself."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>html{{color-scheme:light dark}}body{{margin:16px}}"
        "@media (prefers-color-scheme:dark){body{background:#16191d}}</style></head>"
        f"<body>{body}</body></html>"
    )
