"""Two indexes over topics: filters found by topic (subscriptions), and topics found by filter (retained messages).

Both are trees of topic levels, so a lookup costs what matches it, not what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

V = TypeVar("V")

_CACHED_TOPICS = 1024
_CACHED_VALUES = 64
"""Matches with more values than this are not remembered: the memory would not be bounded by the number of topics."""


class _FilterNode(Generic[V]):
    """A level of the filter tree; empty tables are None, since most nodes have one kind only."""

    __slots__ = ("below", "children", "here", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _FilterNode[V]] | None = None
        self.plus: _FilterNode[V] | None = None
        self.here: dict[Hashable, V] | None = None
        self.below: dict[Hashable, V] | None = None  # of filters that end in '#' under this level

    def is_empty(self) -> bool:
        return not (self.children or self.plus or self.here or self.below)


class TopicTrie(Generic[V]):
    """Subscriptions by topic filter; finds those that a topic name matches (sections 4.7.1 and 4.7.2).

    Each filter holds values by key, typically one per client. Filters are taken as they are: pass the inner filter of
    a shared subscription (see :func:`~mqttquic_lab.mqtt.topics.split_shared`), and check what came from outside first.
    Matches of recent topics are remembered until the next change.
    """

    def __init__(self) -> None:
        self._root: _FilterNode[V] = _FilterNode()
        self._count = 0
        self._recent: dict[str, tuple[V, ...]] = {}

    def add(self, topic_filter: str, key: Hashable, value: V) -> bool:
        """Store `value` for a filter and key.

        Returns
        -------
        bool
            True when it is new, False when it replaced an earlier value.
        """
        node = self._root
        levels = topic_filter.split("/")
        ends_below = levels[-1] == "#"
        if ends_below:
            del levels[-1]
        for level in levels:
            if level == "+":
                if node.plus is None:
                    node.plus = _FilterNode()
                node = node.plus
            else:
                if node.children is None:
                    node.children = {}
                child = node.children.get(level)
                if child is None:
                    child = node.children[level] = _FilterNode()
                node = child
        table = node.below if ends_below else node.here
        if table is None:
            table = {}
            if ends_below:
                node.below = table
            else:
                node.here = table
        new = key not in table
        table[key] = value
        self._count += new
        self._recent.clear()
        return new

    def remove(self, topic_filter: str, key: Hashable) -> V | None:
        """Remove and return the value of a filter and key, or return None when there is none."""
        path: list[tuple[_FilterNode[V], str]] = []
        node: _FilterNode[V] | None = self._root
        levels = topic_filter.split("/")
        ends_below = levels[-1] == "#"
        if ends_below:
            del levels[-1]
        for level in levels:
            assert node is not None
            path.append((node, level))
            node = node.plus if level == "+" else node.children.get(level) if node.children else None
            if node is None:
                return None
        assert node is not None
        table = node.below if ends_below else node.here
        if table is None or key not in table:
            return None
        value = table.pop(key)
        self._count -= 1
        self._recent.clear()
        if not table:
            if ends_below:
                node.below = None
            else:
                node.here = None
        for parent, level in reversed(path):
            if not node.is_empty():
                break
            if level == "+":
                parent.plus = None
            elif parent.children is not None:
                del parent.children[level]
            node = parent
        return value

    def match(self, topic: str) -> list[V]:
        """Return the values of all filters that match a topic name, one per filter and key, in no promised order."""
        known = self._recent.get(topic)
        if known is not None:
            return list(known)
        found: list[V] = []
        levels = topic.split("/")
        root = self._root
        if topic[:1] == "$":  # wildcards in the first level do not match these (MQTT-4.7.2-1)
            first = root.children.get(levels[0]) if root.children else None
            nodes = [first] if first is not None else []
            del levels[0]
        else:
            nodes = [root]
        for level in levels:
            if not nodes:
                break
            following: list[_FilterNode[V]] = []
            for node in nodes:
                if node.below:
                    found += node.below.values()
                if node.plus is not None:
                    following.append(node.plus)
                if node.children:
                    child = node.children.get(level)
                    if child is not None:
                        following.append(child)
            nodes = following
        for node in nodes:
            if node.here:
                found += node.here.values()
            if node.below:  # 'sport/#' matches 'sport' itself
                found += node.below.values()
        if len(found) <= _CACHED_VALUES:
            if len(self._recent) >= _CACHED_TOPICS:
                self._recent.clear()
            self._recent[topic] = tuple(found)
        return found

    def __len__(self) -> int:
        """Return the number of (filter, key) pairs."""
        return self._count

    def __iter__(self) -> Iterator[tuple[str, Hashable, V]]:
        """Iterate over (filter, key, value) of a snapshot."""
        found: list[tuple[str, Hashable, V]] = []
        stack: list[tuple[tuple[str, ...], _FilterNode[V]]] = [((), self._root)]
        while stack:
            levels, node = stack.pop()
            found += [("/".join(levels), key, value) for key, value in (node.here or {}).items()]
            found += [("/".join((*levels, "#")), key, value) for key, value in (node.below or {}).items()]
            stack += [((*levels, level), child) for level, child in (node.children or {}).items()]
            if node.plus is not None:
                stack.append(((*levels, "+"), node.plus))
        return iter(found)


class _TopicNode(Generic[V]):
    __slots__ = ("children", "entry")

    def __init__(self) -> None:
        self.children: dict[str, _TopicNode[V]] = {}
        self.entry: tuple[str, V] | None = None


class TopicMap(Generic[V]):
    """Values by topic name that can be looked up by topic filter; what a store of retained messages needs."""

    def __init__(self) -> None:
        self._root: _TopicNode[V] = _TopicNode()
        self._entries: dict[str, V] = {}

    def set(self, topic: str, value: V) -> None:
        """Store `value` under a topic name, replacing an earlier one."""
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _TopicNode()
            node = child
        node.entry = (topic, value)
        self._entries[topic] = value

    def get(self, topic: str) -> V | None:
        """Return the value of a topic name, or None."""
        return self._entries.get(topic)

    def remove(self, topic: str) -> V | None:
        """Remove and return the value of a topic name, or return None when there is none."""
        if topic not in self._entries:
            return None
        value = self._entries.pop(topic)
        node = self._root
        path: list[tuple[_TopicNode[V], str]] = []
        for level in topic.split("/"):
            path.append((node, level))
            node = node.children[level]
        node.entry = None
        for parent, level in reversed(path):
            if node.children or node.entry is not None:
                break
            del parent.children[level]
            node = parent
        return value

    def matching(self, topic_filter: str) -> Iterator[tuple[str, V]]:
        """Iterate over (topic, value) of the topics that a filter selects; a snapshot, in no promised order."""
        if "+" not in topic_filter and "#" not in topic_filter:
            return iter([(topic_filter, self._entries[topic_filter])] if topic_filter in self._entries else [])
        levels = topic_filter.split("/")
        nodes = [self._root]
        for depth, level in enumerate(levels):
            if level == "#":
                nodes = self._with_all_below(nodes, at_root=depth == 0)
                break
            following: list[_TopicNode[V]] = []
            for node in nodes:
                if level == "+":
                    following += [c for name, c in node.children.items() if depth or name[:1] != "$"]
                elif level in node.children:
                    following.append(node.children[level])
            nodes = following
        return iter([node.entry for node in nodes if node.entry is not None])

    @staticmethod
    def _with_all_below(nodes: list[_TopicNode[V]], *, at_root: bool) -> list[_TopicNode[V]]:
        found: list[_TopicNode[V]] = []
        stack = list(nodes)
        if at_root:  # '#' alone leaves out the topics that start with '$' (MQTT-4.7.2-1)
            stack = [child for name, child in nodes[0].children.items() if name[:1] != "$"]
        while stack:
            node = stack.pop()
            found.append(node)
            stack += node.children.values()
        return found

    def __len__(self) -> int:
        """Return the number of topics."""
        return len(self._entries)

    def __contains__(self, topic: object) -> bool:
        return topic in self._entries

    def __iter__(self) -> Iterator[tuple[str, V]]:
        """Iterate over (topic, value) of a snapshot."""
        return iter(list(self._entries.items()))
