"""Escaping: nothing a peer sends becomes markup, drives a terminal, or reads as something else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.views import html as h
from mqttquic_lab.views.payload import preview
from tests.helpers.samples import HOSTILE
from tests.views.markup import check

ANY_TEXT = st.text(st.characters(categories=None), max_size=60)


@given(ANY_TEXT)
def test_any_text_survives_as_text(text: str) -> None:
    shown = check(f'<div title="{h.escape(text, 10_000)}">{h.escape(text, 10_000)}</div>')
    assert shown == " ".join(f"{h.visible(text)} {h.visible(text)}".split())


@given(ANY_TEXT)
def test_parts_are_wellformed_whatever_they_hold(text: str) -> None:
    parts = [
        h.clip(text, 10),
        h.chip(h.Chip(text, "bad", text)),
        h.notice(h.Notice(text, "warn")),
        h.details(text, text, h.escape(text)),
        h.table((text, "b"), [(h.escape(text), "x")]),
        h.definition_list([(text, h.escape(text))]),
        h.fragment("", text),
    ]
    for part in parts:
        check(part)


@given(ANY_TEXT)
def test_visible_leaves_nothing_hidden_and_is_stable(text: str) -> None:
    shown = h.visible(text)
    assert h.visible(shown) == shown
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("two\nlines\ttab\r", r"two\nlines\ttab\r"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("München 温度 🌡", "München 温度 🌡"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert h.visible(text) == shown


def test_long_text_is_cut_and_kept_in_the_tooltip() -> None:
    part = h.clip("x" * 5000, 20)
    assert f">{'x' * 19}…<" in part
    assert f'title="{"x" * 999}…"' in part
    assert "title" not in h.clip("short", 20)


def test_every_rule_of_the_style_sheet_stays_below_our_class() -> None:
    css = h.stylesheet()
    selectors = [
        one.strip() for part in re.findall(r"[^{}]+(?=\{)", css.replace(".mql,#mql", ".mql")) for one in part.split(",")
    ]
    rules = [one for one in selectors if not one.startswith("@")]
    assert len(rules) > 80
    assert all(".mql" in one for one in rules)
    # All but those that set colours and font of the whole view must outweigh JupyterLab's.
    assert [one for one in rules if not one.startswith(":is(.mql) ") and not one.endswith((".mql", ".mql-dark"))] == [
        "body:not([data-jp-theme-light]):not(.vscode-light):not(.vscode-dark) .mql:not(.mql-light)"
    ]
    assert "/*" not in css
    assert "url(" not in css
    assert "@import" not in css
    assert "<" not in css


def test_a_page_allows_no_script() -> None:
    page = h.page(h.fragment("x", "label"), HOSTILE)
    assert "default-src 'none'" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b"", "(empty)"),
        (b"21.5", "21.5"),
        (b'{\n  "c": 21.5\n}', '{ "c": 21.5 }'),
        (b"\x00\x01\xff", "00 01 ff (3 B)"),
        ("温度".encode(), "温度"),
        (b"\x1b[31mred" + b"x" * 40, r"\x1b[31mred" + "x" * 40),
    ],
)
def test_preview(payload: bytes, shown: str) -> None:
    assert preview(payload) == shown


@given(st.binary(max_size=3000), st.integers(16, 200))
def test_preview_is_short_and_visible(payload: bytes, limit: int) -> None:
    shown = preview(payload, limit)
    assert len(shown) <= limit + 14
    assert h.visible(shown) == shown


def test_a_payload_cut_within_a_character_is_still_text() -> None:
    whole = "é".encode() * 1000
    assert preview(whole[:999], 40, size=2000).startswith("é" * 20)
