"""The handshake report as a person meets it: a card in a notebook, text in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttquic_lab.records.handshake import HandshakeReport

if TYPE_CHECKING:
    import pandas as pd


class Handshake:
    """What was agreed, who proved what, how long it took: a report frozen at the moment one looked.

    Every field of :class:`mqttquic_lab.records.handshake.HandshakeReport` is an attribute of this object, too:
    ``handshake.cipher_suite``, ``handshake.round_trips``.
    """

    def __init__(self, report: HandshakeReport) -> None:
        self._report = report

    @property
    def report(self) -> HandshakeReport:
        """The plain report."""
        return self._report

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in HandshakeReport.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._report, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *HandshakeReport.__dataclass_fields__})

    def text(self) -> str:
        """Return the card as text of several lines."""
        from mqttquic_lab.views.text import handshake_text

        return handshake_text(self._report)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON-able data."""
        return self._report.to_dict()

    def frame(self) -> pd.DataFrame:
        """Return everything as a DataFrame with a row per fact, nested ones named like ``rtt.smoothed``.

        Two handshakes compare with ``one.frame().compare(other.frame())`` where they have the same facts, or with a
        merge on ``fact``.
        """
        from mqttquic_lab.views.frame import handshake_frame

        return handshake_frame(self._report)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.card import handshake_html

        return handshake_html(self._report)
