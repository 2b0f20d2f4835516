"""Reading the flow header that a stream begins with, at either end (MQoQ 9.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt.flow_header import FlowHeaderDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt.flow_header import FlowHeader


class HeaderStream(Protocol):
    """What is needed of a stream: the functions that it calls."""

    on_data: Callable[[bytes], None]
    on_end: Callable[[], None]
    on_reset: Callable[[int], None]


class HeaderReader:
    """Reads the flow header of one stream, then hands the stream on.

    Parameters
    ----------
    stream : HeaderStream
        The stream; its callbacks are taken.
    required : bool
        Whether every stream begins with a header; else `done` is called with None where there is none.
    done : callable(FlowHeader or None, bytes)
        Called with the header and what followed it in the same chunk; takes the callbacks over.
    failed : callable(ProtocolError)
        Called when it is no header, or the stream ends inside it.
    gone : callable()
        Called when the stream is reset before that.
    """

    def __init__(
        self,
        stream: HeaderStream,
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
        stream.on_data = self._on_data  # last: what has arrived already may come at once

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
