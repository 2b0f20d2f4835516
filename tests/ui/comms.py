"""A comm that only writes down what would go to the browser."""

from __future__ import annotations

from typing import Any

import comm.base_comm


class FakeComm(comm.base_comm.BaseComm):
    """Records every message; ``hear`` plays the browser."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.messages: list[tuple[str, dict[str, Any], list[bytes]]] = []
        super().__init__(*args, **kwargs)

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        del metadata, keys
        self.messages.append((msg_type, data or {}, [bytes(b) for b in buffers or []]))

    def hear(self, content: dict[str, Any]) -> None:
        self.handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})

    def sent(self, kind: str) -> list[tuple[dict[str, Any], list[bytes]]]:
        """Return the custom messages of one kind."""
        return [
            (data["content"], buffers)
            for _, data, buffers in self.messages
            if data.get("method") == "custom" and data["content"].get("kind") == kind
        ]

    def updates(self, trait: str) -> list[Any]:
        """Return the values that a trait was set to."""
        return [
            data["state"][trait]
            for _, data, _ in self.messages
            if data.get("method") == "update" and trait in data["state"]
        ]
