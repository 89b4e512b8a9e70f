"""The tree that a chat's messages form, and the path through it that is shown.

The children of one parent are versions of each other; at most one is shown. A message that was removed alone is
passed through, so that what follows it stays; one that was cut takes what follows it along.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Literal, NamedTuple


class Node(NamedTuple):
    """One message's place. Of a long chat there are many: a plain tuple is made in a tenth of a dataclass's time."""

    id: int
    parent: int | None
    is_shown: bool
    removed: Literal["alone", "cut"] | None = None


class Tree:
    """The nodes of one chat."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        ordered = sorted(nodes, key=itemgetter(0))
        self._nodes = {node.id: node for node in ordered}
        self._children: dict[int | None, list[Node]] = {}
        shown: dict[int | None, Node] = {}
        for node in ordered:
            self._children.setdefault(node.parent, []).append(node)
            if node.is_shown:
                shown.setdefault(node.parent, node)
        self._walked = _walk(shown)

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def path(self) -> list[Node]:
        """The nodes that a person sees, oldest first."""
        return [node for node in self._walked if node.removed is None]

    def tail(self) -> int | None:
        """Below which the next message goes."""
        return self._walked[-1].id if self._walked else None

    def siblings(self, number: int) -> list[Node]:
        """A node and its versions, oldest first, without those that were removed."""
        return [node for node in self._children[self._nodes[number].parent] if node.removed is None]

    def children(self, number: int | None) -> list[Node]:
        return self._children.get(number, [])

    def ancestors(self, number: int) -> list[Node]:
        """A node and those above it, the node first."""
        found: dict[int, Node] = {}
        last = self._nodes.get(number)
        while last is not None and last.id not in found:
            found[last.id] = last
            last = self._nodes.get(last.parent) if last.parent is not None else None
        return list(found.values())


def _walk(shown: dict[int | None, Node]) -> list[Node]:
    """The shown nodes from the first on, those that were removed alone among them."""
    found: dict[int, Node] = {}
    last: int | None = None
    while (node := shown.get(last)) is not None:
        # A damaged file may lead in a circle.
        if node.id in found:
            break
        found[node.id] = node
        last = node.id
    return list(found.values())
