"""``publish_many`` across threads and loops: the messages are taken where the caller is, and handed over in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.handles.calling import Caller
    from mqttquic_lab.session import PublishSummary

CHUNK = 1000
CHUNK_BYTES = 1024 * 1024
"""Messages, and bytes of them, that ``publish_many`` takes on the caller's side before it hands them over."""


def publish_chunks(
    caller: Caller, verb: Any, messages: Any, qos: int, retain: bool, properties: Any, timestamp: bool, timeout: Any
) -> PublishSummary:
    """Call a ``publish_many`` from the caller's thread: an iterable runs there, chunk by chunk."""
    options: dict[str, Any] = {"timestamp": timestamp, "timeout": timeout}
    summary: PublishSummary | None = None
    if hasattr(messages, "__aiter__"):
        whole: PublishSummary = caller.call(None, verb, messages, qos, retain, properties, **options)
        return whole
    for chunk in _chunks(messages):
        part: PublishSummary = caller.call(None, verb, chunk, qos, retain, properties, **options)
        summary = part if summary is None else summary.add(part)
    if summary is not None:
        return summary
    nothing: PublishSummary = caller.call(None, verb, (), qos, retain, properties, **options)
    return nothing


async def hop_chunks(
    caller: Caller, verb: Any, messages: Any, qos: int, retain: bool, properties: Any, timestamp: bool, timeout: Any
) -> PublishSummary:
    """Await a ``publish_many`` from any loop: either kind of iterable runs there, chunk by chunk."""
    options: dict[str, Any] = {"timestamp": timestamp, "timeout": timeout}
    summary: PublishSummary | None = None
    async for chunk in _async_chunks(messages):
        part: PublishSummary = await caller.hop(verb, chunk, qos, retain, properties, **options)
        summary = part if summary is None else summary.add(part)
    if summary is not None:
        return summary
    nothing: PublishSummary = await caller.hop(verb, (), qos, retain, properties, **options)
    return nothing


class _Chunk(list[tuple[str, Any]]):
    """Messages that go to the session's loop together."""

    size = 0

    def take(self, message: tuple[str, Any]) -> bool:
        """Add a message; returns whether that is enough."""
        self.append(message)
        payload = message[1]
        self.size += len(payload) if isinstance(payload, (str, bytes, bytearray)) else 64
        return len(self) >= CHUNK or self.size >= CHUNK_BYTES


def _chunks(messages: Any) -> Iterator[_Chunk]:
    chunk = _Chunk()
    for message in messages:
        if chunk.take(message):
            yield chunk
            chunk = _Chunk()
    if chunk:
        yield chunk


async def _async_chunks(messages: Any) -> Any:
    if not hasattr(messages, "__aiter__"):
        for chunk in _chunks(messages):
            yield chunk
        return
    chunk = _Chunk()
    async for message in messages:
        if chunk.take(message):
            yield chunk
            chunk = _Chunk()
    if chunk:
        yield chunk
