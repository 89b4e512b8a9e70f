"""How far each slot's recurrent states have come, and which earlier ones are kept.

Keys and values of a chat's first tokens stay what they were, whatever followed. A recurrent state has taken in all its
tokens and gives none of them back, so a prompt that shares only a part with the last one goes on from a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable


class StateHistory:
    """Bookkeeping for the rows of `num_slots` slots, one padding row and `num_snapshots` snapshots, in that order.

    copy_row(source, target) and clear_row(row) act on the rows of all recurrent layers.
    """

    def __init__(
        self,
        num_slots: int,
        num_snapshots: int,
        copy_row: Callable[[int, int], None],
        clear_row: Callable[[int], None],
    ) -> None:
        self._copy_row, self._clear_row = copy_row, clear_row
        # How many tokens each slot's states have taken in; by slot, the row of the snapshot after so many tokens.
        self._positions = [0] * num_slots
        self._snapshots: list[dict[int, int]] = [{} for _ in range(num_slots)]
        self._free = [num_slots + 1 + index for index in reversed(range(num_snapshots))]

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        """The most of the slot's first `num_tokens` tokens that a state is there for."""
        known = (0, self._positions[slot], *self._snapshots[slot])
        return max(position for position in known if position <= num_tokens)

    def begin(self, slot: int, position: int) -> None:
        """Bring the slot's states to `position`, which `reusable_tokens` named, and keep a snapshot of them.

        What is kept of later tokens is dropped. From a `position` that is not kept, states start empty.
        """
        kept = self._snapshots[slot]
        if position in kept and position != self._positions[slot]:
            self._copy_row(kept[position], slot)
        elif position == 0 or position != self._positions[slot]:
            self._clear_row(slot)
        self._positions[slot] = position
        for later in [one for one in kept if one > position]:
            self._free.append(kept.pop(later))
        if position and position not in kept and (row := self._take_row(position)) is not None:
            self._copy_row(slot, row)
            kept[position] = row

    def keep(self, slot: int, position: int) -> int | None:
        """A row for the states of the slot after `position` tokens, which come before what it takes in next: whoever
        asks leads the states on and leaves them there on the way. None where there is no row."""
        row = self._take_row(position)
        if row is not None:
            self._snapshots[slot][position] = row
        return row

    def advance(self, slot: int, num_tokens: int) -> None:
        """The slot's states take in `num_tokens` more."""
        self._positions[slot] += num_tokens

    def _take_row(self, end: int) -> int | None:
        """A row for a snapshot: a free one, or that of the least useful snapshot of the slot that has most of them."""
        if self._free:
            return self._free.pop()
        kept = max(self._snapshots, key=len)
        if not kept:
            return None
        return kept.pop(least_useful(sorted(kept), max(end, *kept)))


def least_useful(positions: list[int], end: int) -> int:
    """Which of some snapshots of a text of `end` tokens, in ascending order, to give up.

    A snapshot saves the tokens since the one before. A prompt comes back to a place after it and before the next the
    more often, the nearer that is to the end: regenerated answers and edited questions are most often the last.
    """
    befores, nexts = [0, *positions[:-1]], [*positions[1:], end]
    return min(
        zip(befores, positions, nexts, strict=True),
        key=lambda three: (three[1] - three[0]) * (three[2] - three[1]) / max(1, end - three[1]),
    )[1]
