"""Columnar storage of what was received, and plain records of how it came about."""
