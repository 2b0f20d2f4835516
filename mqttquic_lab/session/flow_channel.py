"""The bytes of one flow: the header that comes first, and ends that mean what the draft says.

What the events of a stream do to its flow is decided by :class:`~mqttquic_lab.mqtt.flows.FlowTable`; here they are only
passed on, to :class:`FlowEnds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt import FlowHeaderDecoder
from mqttquic_lab.session.data_stream import DataChannel

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.errors import LabError, StreamClosedError
    from mqttquic_lab.mqtt import FlowHeader
    from mqttquic_lab.net.stream import ByteStream


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


class HeaderReader:
    """Reads the flow header of a stream that the broker opened, then hands the stream on.

    Parameters
    ----------
    stream : ByteStream
        The stream; its callbacks are taken.
    required : bool
        Whether every stream begins with one.
    done : callable(FlowHeader or None, bytes)
        Called with the header and what followed it in the same chunk; takes the callbacks over.
    failed : callable(ProtocolError)
        Called when it is no header, or the stream ends inside it.
    gone : callable()
        Called when the stream is reset before that.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        required: bool,
        done: Callable[[FlowHeader | None, bytes], None],
        failed: Callable[[ProtocolError], None],
        gone: Callable[[], None],
    ) -> None:
        self._decoder = FlowHeaderDecoder(required=required)
        self._done = done
        self._failed = failed
        stream.on_reset = lambda _: gone()
        stream.on_end = self._on_end
        stream.on_data = self._on_data

    def _on_data(self, data: bytes) -> None:
        is_over = self._decoder.done
        if is_over:
            return  # nobody took the stream over: the connection is at its end
        try:
            header = self._decoder.feed(data)
        except ProtocolError as error:
            self._failed(error)
            return
        if self._decoder.done:
            self._done(header, self._decoder.rest)

    def _on_end(self) -> None:
        try:
            self._decoder.finish()
        except ProtocolError as error:
            self._failed(error)
