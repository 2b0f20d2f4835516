"""Which statements there are: for each section of the standards, the numbers that appendix B lists.

MQTT 5.0 (OASIS Standard, 7 March 2019) has 251, MQTT 3.1.1 (OASIS Standard, 29 October 2014, with Errata 01) 141. Each
list was held against two others that do not depend on each other: for 5.0 the conformance suite of mqtt-lib (a list)
and OpenQTT's report on its conformance (figures by chapter), for 3.1.1 two transcriptions of the appendix and the
conformance report of a third broker, which adds up to 141.

Where appendix and text spell a number differently, the text is followed: ``MQTT-4.2-1`` (appendix: 4.2.0-1); misprints
of 3.1.1 (``MQTT-1.4.0-1``, ``MQTT-3.1.2.7``, ``MQTT-3-8.3-4``, ``MQTT-4.3.2.1``) are written as they are meant.
"""

from __future__ import annotations

from typing import Final

SECTIONS_V5: Final = {
    "1.5.4": (1, 3), "1.5.5": (1, 1), "1.5.7": (1, 1),
    "2.1.3": (1, 1), "2.2.1": (2, 6), "2.2.2": (1, 1),
    "3.1.0": (1, 2), "3.1.2": (1, 30), "3.1.3": (1, 12), "3.1.4": (1, 6),
    "3.2.0": (1, 2), "3.2.2": (1, 22),
    "3.3.1": (1, 13), "3.3.2": (1, 20), "3.3.4": (1, 10),
    "3.4.2": (1, 3), "3.5.2": (1, 3), "3.6.1": (1, 1), "3.6.2": (1, 3), "3.7.2": (1, 3),
    "3.8.1": (1, 1), "3.8.3": (1, 5), "3.8.4": (1, 8), "3.9.2": (1, 2), "3.9.3": (1, 2),
    "3.10.1": (1, 1), "3.10.3": (1, 2), "3.10.4": (1, 6), "3.11.2": (1, 2), "3.11.3": (1, 2),
    "3.12.4": (1, 1),
    "3.14.0": (1, 1), "3.14.1": (1, 1), "3.14.2": (1, 4), "3.14.4": (1, 3),
    "3.15.1": (1, 1), "3.15.2": (1, 3),
    "4.1.0": (1, 2), "4.2": (1, 1), "4.3.1": (1, 1), "4.3.2": (1, 5), "4.3.3": (1, 13), "4.4.0": (1, 2),
    "4.5.0": (1, 2), "4.6.0": (1, 6), "4.7.0": (1, 1), "4.7.1": (1, 2), "4.7.2": (1, 1), "4.7.3": (1, 4),
    "4.8.2": (1, 6), "4.9.0": (1, 3), "4.12.0": (1, 7), "4.12.1": (1, 2), "4.13.1": (1, 1), "4.13.2": (1, 1),
    "6.0.0": (1, 4),
}  # fmt: skip
"""Section of MQTT 5.0 -> first and last number in it; 2.2.1 begins with 2."""

SECTIONS_V311: Final = {
    "1.5.3": (1, 3), "2.2.2": (1, 2), "2.3.1": (1, 7),
    "3.1.0": (1, 2), "3.1.2": (1, 24), "3.1.3": (1, 11), "3.1.4": (1, 5),
    "3.2.0": (1, 1), "3.2.2": (1, 6),
    "3.3.1": (1, 12), "3.3.2": (1, 3), "3.3.4": (1, 1), "3.3.5": (1, 2), "3.6.1": (1, 1),
    "3.8.1": (1, 1), "3.8.3": (1, 4), "3.8.4": (1, 6), "3.9.3": (1, 2),
    "3.10.1": (1, 1), "3.10.3": (1, 2), "3.10.4": (1, 6), "3.12.4": (1, 1), "3.14.1": (1, 1), "3.14.4": (1, 3),
    "4.1.0": (1, 2), "4.3.1": (1, 1), "4.3.2": (1, 2), "4.3.3": (1, 2), "4.4.0": (1, 1), "4.5.0": (1, 2),
    "4.6.0": (1, 6), "4.7.1": (1, 3), "4.7.2": (1, 1), "4.7.3": (1, 4), "4.8.0": (1, 2),
    "6.0.0": (1, 4), "7.0.0": (1, 2), "7.1.1": (1, 1), "7.1.2": (1, 1),
}  # fmt: skip
"""The same of MQTT 3.1.1."""


def numbers(sections: dict[str, tuple[int, int]]) -> list[str]:
    """Return the statements' names, such as ``"MQTT-3.1.0-1"``, in the standard's order."""
    return [f"MQTT-{section}-{n}" for section, (first, last) in sections.items() for n in range(first, last + 1)]


NUMBERS_V5: Final = numbers(SECTIONS_V5)
NUMBERS_V311: Final = numbers(SECTIONS_V311)
