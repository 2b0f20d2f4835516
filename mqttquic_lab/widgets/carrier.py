"""The widget that carries a view's data to live.js; importing this needs anywidget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets


class LiveWidget(anywidget.AnyWidget):
    """State that a page finds again when it is loaded anew; all else goes by messages (``send``).

    Attributes
    ----------
    rows : int
        Rows that the browser keeps.
    meta : dict
        Header: title, state, chips, banner, errors. Changes at most once a second.
    snapshot : dict
        A small update (``content``, ``buffers``) to draw until the kernel answers. Changes at most once a second.
    card : str
        The handshake card, HTML written by ``views/card.py``.
    """

    _esm = Path(__file__).with_name("live.js")
    _css = Path(__file__).with_name("live.css")

    rows = traitlets.Int(500).tag(sync=True)
    meta: Any = traitlets.Dict().tag(sync=True)
    snapshot: Any = traitlets.Dict().tag(sync=True)
    card = traitlets.Unicode("").tag(sync=True)
