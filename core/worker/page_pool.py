"""Which pages of the KV cache hold what: pages that grow with a text, and beginnings that several texts share.

A page takes the keys and values of `page_tokens` tokens. Once they are all known, it is a block that is never written
again: any text that begins alike reads it too, and nobody needs to compute it anew. A block that no text reads any more
stays until its page is needed, the one that was left longest ago first. Pure bookkeeping; it copies and writes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

# Fewer tokens than these are read again rather than copied out of a block: most texts share their first token or two.
MIN_COPIED_TOKENS = 16


@dataclass(slots=True, eq=False)
class Block:
    """The tokens of one page, which follow those of `parent`: as many as a page takes, or fewer where a text ended.

    `num_owners` texts read it now. It is `known` as long as further texts may find it. A root has no page and no
    tokens; it stands for the adapter.
    """

    page: int
    tokens: tuple[int, ...]
    parent: Block | None
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)
    num_owners: int = 0
    is_known: bool = True


@dataclass(slots=True, eq=False)
class Holding:
    """The pages of one text, in order: blocks, each the parent of the next, then pages that are its own to write.

    `has_changed`: there are other pages than when that was last set to False.
    """

    root: Block
    blocks: list[Block] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    has_changed: bool = True

    @property
    def pages(self) -> list[int]:
        return [*(block.page for block in self.blocks), *self.own]

    @property
    def last(self) -> Block:
        return self.blocks[-1] if self.blocks else self.root


@dataclass(frozen=True, slots=True)
class MissingPage:
    """The first full page of a text that no block holds: its tokens, and the block before it, None for the first."""

    mark: Hashable
    parent: Block | None
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """A holding whose pages hold the first `num_tokens` tokens of a text, once `copied` (source page, own page) is done
    where there is one."""

    holding: Holding
    num_tokens: int
    copied: tuple[int, int] | None = None


class PagePool:
    """Gives `num_pages` pages of `page_tokens` tokens to texts. Texts of different marks share nothing: a mark stands
    for the adapter that their keys and values were computed with."""

    def __init__(self, num_pages: int, page_tokens: int, min_copied_tokens: int = MIN_COPIED_TOKENS) -> None:
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self._min_copied_tokens = min_copied_tokens
        # How often pages were given back.
        self.num_releases = 0
        self._free = list(reversed(range(num_pages)))
        # Blocks without an owner, that which was left first at the beginning. A text leaves its last block first, and
        # who reads a block reads its parent: so a block always stands before its parent.
        self._idle: OrderedDict[Block, None] = OrderedDict()
        self._roots: dict[Hashable, Block] = {}

    @property
    def num_available(self) -> int:
        """The pages that nobody reads or writes."""
        return len(self._free) + len(self._idle)

    def pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def shared_blocks(self, mark: Hashable, tokens: Sequence[int]) -> Iterator[Block]:
        """The full blocks that a text of `tokens` begins with."""
        block, size = self._roots.get(mark), self.page_tokens
        for begin in range(0, len(tokens) - size + 1, size):
            block = block and block.children.get(tuple(tokens[begin : begin + size]))
            if block is None:
                return
            yield block

    def first_missing(self, mark: Hashable, tokens: Sequence[int]) -> MissingPage | None:
        """The first full page of `tokens` that is not there; None where all are."""
        blocks = list(self.shared_blocks(mark, tokens))
        following = self._next_of(tokens, len(blocks) * self.page_tokens)
        return (
            MissingPage(mark, blocks[-1] if blocks else None, following) if len(following) == self.page_tokens else None
        )

    def has_come(self, missing: MissingPage) -> bool:
        """Whether the page is there by now, or what stood before it is not."""
        parent = missing.parent or self._roots.get(missing.mark)
        return parent is not None and (not parent.is_known or missing.tokens in parent.children)

    def lacks(self, mark: Hashable, tokens: Sequence[int], num_tokens: int) -> int:
        """How many pages are too few for a text of `num_tokens`, whose first are `tokens`: 0 where it has room."""
        shared = sum(block.num_owners > 0 for block in self.shared_blocks(mark, tokens))
        return max(0, self.pages_of(num_tokens) - shared - self.num_available)

    def num_found(self, mark: Hashable, tokens: Sequence[int]) -> int:
        """How many of the first of `tokens` a holding would have."""
        blocks = list(self.shared_blocks(mark, tokens))
        last = blocks[-1] if blocks else self._roots.get(mark)
        num_tokens = len(blocks) * self.page_tokens
        return num_tokens + (self._find_part(last, self._next_of(tokens, num_tokens))[1] if last else 0)

    def take(self, mark: Hashable, tokens: Sequence[int]) -> Taken:
        """A holding with what is there of `tokens`, from the first on. It takes a page at most that is not there."""
        if mark not in self._roots:
            # Adapters come and go.
            self._roots = {one: root for one, root in self._roots.items() if root.num_owners or root.children}
            self._roots[mark] = Block(-1, (), None)
        holding = Holding(self._roots[mark])
        holding.root.num_owners += 1
        for block in self.shared_blocks(mark, tokens):
            self._own(block)
            holding.blocks.append(block)
        num_tokens = len(holding.blocks) * self.page_tokens
        more, copied = self._take_part(holding, self._next_of(tokens, num_tokens))
        return Taken(holding, num_tokens + more, copied)

    def _next_of(self, tokens: Sequence[int], begin: int) -> tuple[int, ...]:
        return tuple(tokens[begin : begin + self.page_tokens])

    def _find_part(self, parent: Block, rest: tuple[int, ...]) -> tuple[Block | None, int]:
        """The block after `parent` that begins most like `rest`, and with how many tokens: None where too few are."""
        found, shared = None, 0
        for block in parent.children.values():
            # There may be as many as pages: only what is more alike than the best so far is looked at closely.
            if block.tokens[: shared + 1] == rest[: shared + 1]:
                num_alike = common_prefix(block.tokens, rest)
                if num_alike > shared:
                    found, shared = block, num_alike
        if found is None or (shared < self._min_copied_tokens and not self._goes_on(found, shared)):
            return None, 0
        return found, shared

    def _goes_on(self, block: Block, num_alike: int) -> bool:
        """Whether it is the end of a text that nobody reads, and that seems to go on now."""
        return not block.num_owners and len(block.tokens) < self.page_tokens and 2 * num_alike >= len(block.tokens)

    def _take_part(self, holding: Holding, rest: tuple[int, ...]) -> tuple[int, tuple[int, int] | None]:
        """Of a further block those tokens that `rest` begins with: how many they are, and what to copy for them."""
        found, shared = self._find_part(holding.last, rest)
        if found is None:
            return 0, None
        if self._goes_on(found, shared):
            self._reclaim(holding, found)
            return shared, None
        self._own(found)
        page = self._new_page()
        self._leave(found)
        if page is not None:
            holding.own.append(page)
            return shared, (found.page, page)
        if found.num_owners or found.children:
            return 0, None
        self._reclaim(holding, found)
        return shared, None

    def _reclaim(self, holding: Holding, block: Block) -> None:
        """Make the page of a block that nobody reads, and that has no children, the holding's own."""
        self._forget(block)
        holding.own.append(self._free.pop())

    def grow(self, holding: Holding, num_tokens: int) -> bool:
        """Let the holding have pages for `num_tokens`. False where there are too few; it has those that there were."""
        while (len(holding.blocks) + len(holding.own)) * self.page_tokens < num_tokens:
            page = self._new_page()
            if page is None:
                return False
            holding.own.append(page)
            holding.has_changed = True
        return True

    def settle(self, holding: Holding, tokens: Sequence[int]) -> None:
        """Let others share the holding's full pages: `tokens` are all that its pages hold. A page whose tokens are in a
        block already gives way to that."""
        size = self.page_tokens
        while (end := (len(holding.blocks) + 1) * size) <= len(tokens) and holding.last.is_known:
            key, page = tuple(tokens[end - size : end]), holding.own.pop(0)
            block = holding.last.children.get(key)
            if block is None:
                block = holding.last.children[key] = Block(page, key, holding.last)
                block.num_owners = 1
            else:
                self._own(block)
                self._free.append(page)
                self.num_releases += 1
                holding.has_changed = True
            holding.blocks.append(block)

    def catch_up(self, holding: Holding, tokens: Sequence[int], num_tokens: int) -> int:
        """Take the blocks of `tokens` that others have filled since, where the holding's own pages hold nothing yet:
        it has `num_tokens`. How many tokens it then has more."""
        size, before = self.page_tokens, num_tokens
        while num_tokens == len(holding.blocks) * size and holding.own:
            block = holding.last.children.get(tuple(tokens[num_tokens : num_tokens + size]))
            if block is None or len(block.tokens) < size or not holding.last.is_known:
                break
            self._own(block)
            self._free.append(holding.own.pop(0))
            self.num_releases += 1
            holding.blocks.append(block)
            holding.has_changed = True
            num_tokens += size
        return num_tokens - before

    def release(self, holding: Holding, tokens: Sequence[int]) -> None:
        """Give back the pages. `tokens` are all that they hold, and stay until their pages are needed."""
        self.settle(holding, tokens)
        rest = tuple(tokens[len(holding.blocks) * self.page_tokens :])
        siblings = holding.last.children
        if rest and holding.own and holding.last.is_known and not any(key[: len(rest)] == rest for key in siblings):
            block = siblings[rest] = Block(holding.own.pop(0), rest, holding.last)
            self._idle[block] = None
        self._give_back(holding)

    def forget(self, holding: Holding) -> None:
        """Give back the pages; nobody may find again what they hold, nor what follows it."""
        if holding.blocks and holding.blocks[0].is_known:
            self._forget(holding.blocks[0])
        self._give_back(holding)

    def _give_back(self, holding: Holding) -> None:
        self.num_releases += 1
        self._free += holding.own
        for block in reversed(holding.blocks):
            self._leave(block)
        holding.root.num_owners -= 1
        holding.blocks, holding.own = [], []

    def _own(self, block: Block) -> None:
        self._idle.pop(block, None)
        block.num_owners += 1

    def _leave(self, block: Block) -> None:
        block.num_owners -= 1
        if block.num_owners:
            return
        if block.is_known:
            self._idle[block] = None
        else:
            self._free.append(block.page)

    def _new_page(self) -> int | None:
        if not self._free:
            if not self._idle:
                return None
            self._forget(next(iter(self._idle)))
        return self._free.pop()

    def _forget(self, block: Block) -> None:
        """Nobody may find the block again, nor those that follow it. Their pages are free once nobody reads them."""
        parent = block.parent
        assert parent is not None
        del parent.children[block.tokens]
        unknown = [block]
        for one in unknown:
            one.is_known = False
            unknown += one.children.values()
            if not one.num_owners:
                del self._idle[one]
                self._free.append(one.page)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    low, high = 0, min(len(one), len(other))
    # Slices are compared much faster than tokens one by one.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
