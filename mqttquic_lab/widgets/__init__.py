"""Live views for notebooks: what carries :mod:`mqttquic_lab.views` to a person's eyes and hands."""

from __future__ import annotations

from mqttquic_lab.widgets.dashboard import Dashboard
from mqttquic_lab.widgets.freeze import FrozenView
from mqttquic_lab.widgets.live import LiveView

__all__ = ["Dashboard", "FrozenView", "LiveView"]
