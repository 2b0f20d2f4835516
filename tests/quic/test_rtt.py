"""Round-trip time estimates against the formulas of RFC 9002 section 5, worked by hand."""

from __future__ import annotations

import pytest

from mqttquic_lab.quic.rtt import RttEstimator
from mqttquic_lab.records.handshake import RttInfo


def test_nothing_is_known_before_the_first_sample() -> None:
    assert RttEstimator().info is None


def test_first_sample() -> None:
    estimator = RttEstimator()
    estimator.ack_delay = 0.01  # does not count yet
    estimator.sample(0.0002)
    assert estimator.info == RttInfo(latest=0.0002, minimum=0.0002, smoothed=0.0002, variance=0.0001)


def test_later_samples() -> None:
    estimator = RttEstimator()
    estimator.sample(0.100)
    estimator.ack_delay = 0.02
    estimator.sample(0.140)  # adjusted: 0.120
    info = estimator.info
    assert info is not None
    assert info.latest == 0.140
    assert info.minimum == 0.100
    assert info.variance == pytest.approx(0.75 * 0.050 + 0.25 * 0.020)
    assert info.smoothed == pytest.approx(7 / 8 * 0.100 + 1 / 8 * 0.120)


def test_an_acknowledgement_delay_cannot_push_below_the_minimum() -> None:
    estimator = RttEstimator()
    estimator.sample(0.100)
    estimator.ack_delay = 0.05
    estimator.sample(0.110)
    info = estimator.info
    assert info is not None
    assert info.smoothed == pytest.approx(7 / 8 * 0.100 + 1 / 8 * 0.110)
