"""Reason codes of both versions."""

from __future__ import annotations

import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import ReasonCode, reason_text
from mqttquic_lab.mqtt.reason_codes import ALLOWED, CODES


def test_a_code_is_an_int_with_a_name_and_words() -> None:
    code = 0x87
    assert code == ReasonCode.NOT_AUTHORIZED
    assert ReasonCode(code).text == "Not authorized"
    assert ReasonCode.BAD_USER_NAME_OR_PASSWORD.text == "Bad User Name or Password"


@pytest.mark.parametrize(("code", "failed"), [(0x00, False), (0x10, False), (0x11, False), (0x80, True), (0xA2, True)])
def test_failures_start_at_0x80(code: int, failed: bool) -> None:
    assert ReasonCode(code).is_failure is failed


def test_return_codes_of_3_1_1() -> None:
    assert [ReasonCode.from_v311(code) for code in range(6)] == [0x00, 0x84, 0x85, 0x88, 0x86, 0x87]
    assert [ReasonCode.from_v311(code).to_v311() for code in range(6)] == list(range(6))
    for value in (6, -1, 255):
        with pytest.raises(UsageError, match="0 to 5"):
            ReasonCode.from_v311(value)


def test_every_connack_code_has_a_return_code() -> None:
    for code in ALLOWED["CONNACK"]:
        assert code.to_v311() in range(6)
    with pytest.raises(UsageError, match="CONNACK"):
        ReasonCode.NO_MATCHING_SUBSCRIBERS.to_v311()


def test_reason_text_never_raises() -> None:
    texts = [reason_text(code) for code in range(-1, 300)]
    assert all(texts)
    assert reason_text(0xEE) == "Unknown reason code 0xee"
    assert reason_text(None) == "No reason code"


def test_codes_by_byte() -> None:
    assert len(CODES) == 256
    assert [code for code in CODES if code is not None] == sorted(set(ReasonCode))
