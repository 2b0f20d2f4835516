"""A run of messages as columns: what a live view sends to the browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """Messages with consecutive sequence numbers; every array is a copy.

    Attributes
    ----------
    first : int
        Sequence number of the first message in it.
    count : int
        Messages in it. The next call asks for ``first + count``.
    skipped : int
        Messages between the sequence number asked for and `first`: over the limit, or dropped from the log.
    time_ns : ndarray of int64
        Nanoseconds since the Unix epoch, UTC.
    topic : ndarray of uint32
        Codes into :attr:`mqttquic_lab.records.log.MessageLog.topics`, valid for `topic_epoch` only.
    qos_flags : ndarray of uint8
        Bits 0-1 QoS, bit 2 retain, bit 3 dup, bit 4 early data.
    size : ndarray of uint32
        Payload bytes.
    stream_id : ndarray of int64
        -1 where there is none.
    latency : ndarray of float64
        Seconds; NaN where unknown.
    payloads : list of bytes
    topic_epoch : int
        Changes when the topic dictionary was rebuilt: read all of the log's ``topics`` again.
    topic_count : int
        Length of the dictionary at that moment.
    """

    first: int
    count: int
    skipped: int
    time_ns: NDArray[np.int64]
    topic: NDArray[np.uint32]
    qos_flags: NDArray[np.uint8]
    size: NDArray[np.uint32]
    stream_id: NDArray[np.int64]
    latency: NDArray[np.float64]
    payloads: list[bytes]
    topic_epoch: int
    topic_count: int
