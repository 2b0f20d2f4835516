"""A payload in a few characters: text as it is, JSON without line breaks, anything else in hexadecimal."""

from __future__ import annotations

from mqttquic_lab.views.html import visible
from mqttquic_lab.views.quantities import byte_size


def preview(payload: bytes, limit: int = 80, *, size: int | None = None) -> str:
    """Return at most about `limit` characters that stand for a payload.

    Parameters
    ----------
    payload : bytes
        The payload or its beginning.
    limit : int
        Characters.
    size : int, optional
        Length of the whole payload, when `payload` may be only its beginning.
    """
    whole = len(payload) if size is None else size
    if not whole:
        return "(empty)"
    head = payload[: 4 * limit]
    # A cut may go through a character: only a fault before the last three bytes means that this is no text.
    text = head.decode("utf-8", "replace")
    cut = len(head) < whole
    if cut and "\ufffd" in text[-3:]:
        text = text[:-3] + text[-3:].replace("\ufffd", "")
    if "\ufffd" in text or sum(not c.isprintable() and c not in "\t\r\n" for c in text) > len(text) // 10:
        shown = head[: max(4, (limit - 12) // 3)]
        return f"{shown.hex(' ')}{' …' if len(shown) < whole else ''} ({byte_size(whole)})"
    flat = visible(" ".join(text.split()))
    if len(flat) > limit or cut:
        return f"{flat[: max(1, limit - 12)]}… ({byte_size(whole)})"
    return flat
