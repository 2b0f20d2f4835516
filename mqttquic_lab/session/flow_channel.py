"""The bytes of one flow, whose ends mean what the draft says.

What the events of a stream do to its flow is decided by :class:`~mqttquic_lab.mqtt.flows.FlowTable`; here they are only
passed on, to :class:`FlowEnds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mqttquic_lab.session.data_stream import DataChannel

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError, StreamClosedError


class FlowEnds(Protocol):
    """Who decides what the end of a stream means to its flow."""

    @property
    def is_lenient(self) -> bool:
        """Whether STOP_SENDING on a flow of the broker's leaves its other direction alone (mqttv5)."""

    def fin_sent(self, stream_id: int) -> None:
        """Take that FIN was sent."""

    def fin_received(self, stream_id: int, buffered: int) -> None:
        """Take FIN, `buffered` bytes into a packet."""

    def reset_received(self, stream_id: int, code: int) -> None:
        """Take RESET_STREAM or STOP_SENDING."""

    def failed(self, stream_id: int, where: str, error: LabError) -> None:
        """Take an error on the stream."""


class FlowChannel(DataChannel):
    """The client's end of a stream that a flow is on. Parameters as for :class:`DataChannel`, and `ends`."""

    def __init__(self, *args: Any, ends: FlowEnds, flow_id: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header = None  # it was read before, or is ours
        self._ends = ends
        self._flow_id = flow_id

    @property
    def number(self) -> int:
        """QUIC stream id."""
        return self.stream.id or 0

    def end_sending(self) -> None:
        """Send FIN after what was written."""
        had_sent = self.sent_end or self.over
        super().end_sending()
        if not had_sent:
            self._ends.fin_sent(self.number)

    def fail(self, where: str, error: LabError) -> None:
        """Give the stream up because of `error`, or more than the stream: the error's level says how much."""
        if not self.over:
            self._ends.failed(self.number, where, error)

    def closed_by(self, why: str) -> StreamClosedError:
        """Return what is to be said when this stream ended because of `why`."""
        return super().closed_by(f"flow {self._flow_id} on stream {self.stream.id}: {why}")

    def _on_stream_end(self) -> None:
        if not self.over:
            self._ends.fin_received(self.number, self._decoder.buffered)

    def _on_stream_reset(self, code: int) -> None:
        if self._ends.is_lenient and not self._is_ours:
            super()._on_stream_reset(code)
        elif not self.over:
            self._ends.reset_received(self.number, code)
