"""Hooks of this tier: the matrix is written at the end of a run."""

from __future__ import annotations

from tests.scenarios.matrix import pytest_sessionfinish

__all__ = ["pytest_sessionfinish"]
