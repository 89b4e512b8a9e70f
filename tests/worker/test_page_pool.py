"""The pool's bookkeeping under any order of texts that come, grow and go: every page holds what its readers think."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.worker.page_pool import MIN_COPIED_TOKENS, Holding, PagePool

SIZE = 4 * MIN_COPIED_TOKENS
TEXT = list(range(3 * SIZE))


@dataclass(eq=False)
class Text:
    """A text at work: the tokens that it is to have, and how many of them its pages hold."""

    tokens: list[int]
    holding: Holding
    num_held: int
    mark: str


class Pool:
    """A pool with what its pages really hold, which a reader is compared with."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.pool = PagePool(num_pages, page_tokens)
        self.memory: list[list[object]] = [[None] * page_tokens for _ in range(num_pages)]

    def begin(self, tokens: list[int], mark: str = "") -> Text:
        taken = self.pool.take(mark, tokens)
        if taken.copied is not None:
            source, target = taken.copied
            self.memory[target] = self.memory[source][:]
        return Text(tokens, taken.holding, taken.num_tokens, mark)

    def write(self, text: Text, num_tokens: int) -> bool:
        """Write further tokens, as far as there are pages. Whether there were enough."""
        has_room = self.pool.grow(text.holding, text.num_held + num_tokens)
        pages, size = text.holding.pages, self.pool.page_tokens
        for place in range(text.num_held, min(text.num_held + num_tokens, len(pages) * size)):
            page = pages[place // size]
            assert page in text.holding.own, "a shared page would be written"
            self.memory[page][place % size] = (text.mark, text.tokens[place])
            text.num_held += 1
        self.pool.settle(text.holding, text.tokens[: text.num_held])
        return has_room

    def read(self, text: Text) -> list[object]:
        columns = [column for page in text.holding.pages for column in self.memory[page]]
        return columns[: text.num_held]

    def end(self, text: Text) -> None:
        self.pool.release(text.holding, text.tokens[: text.num_held])

    def ask(self, tokens: list[int], mark: str = "") -> int:
        """Write a whole text and let it go; how many of its tokens were there."""
        text = self.begin(tokens, mark)
        num_reused = text.num_held
        assert self.write(text, len(tokens) - num_reused)
        assert self.read(text) == [(mark, token) for token in tokens]
        self.end(text)
        return num_reused


def test_a_text_finds_all_of_itself_and_what_another_begins_with() -> None:
    pool = Pool(16, SIZE)
    assert pool.ask(TEXT[:-5]) == 0
    assert pool.ask(TEXT[:-5]) == len(TEXT) - 5
    assert pool.ask([*TEXT[: SIZE + MIN_COPIED_TOKENS], 7, 8, 9]) == SIZE + MIN_COPIED_TOKENS
    # Too few to be worth a copy.
    assert pool.ask([*TEXT[: SIZE + MIN_COPIED_TOKENS - 1], 7]) == SIZE
    assert pool.ask([9, *TEXT]) == 0


def test_adapters_share_nothing() -> None:
    pool = Pool(16, SIZE)
    assert [pool.ask(TEXT, mark) for mark in ("one", "two", "one")] == [0, 0, len(TEXT)]


def test_what_was_left_longest_ago_gives_way_first_and_its_end_before_its_beginning() -> None:
    pool, texts = Pool(6, SIZE), [[number, *TEXT[: 2 * SIZE - 1]] for number in range(3)]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        pool.ask(text)
    pool.ask(list(range(900, 900 + SIZE)))
    # The first was read again after the second, which has lost its last page and no more.
    looked_up = [len(list(pool.pool.shared_blocks("", text))) for text in texts]
    assert looked_up == [2, 1, 2]


def test_texts_at_work_share_a_beginning_once_it_is_written() -> None:
    pool = Pool(8, SIZE)
    first, second = pool.begin(TEXT), pool.begin([*TEXT[:-1], 5])
    assert pool.pool.grow(second.holding, len(TEXT))
    pool.write(first, 2 * SIZE)
    second.num_held += pool.pool.catch_up(second.holding, second.tokens, second.num_held)
    assert second.num_held == 2 * SIZE
    assert second.holding.pages[:2] == first.holding.pages[:2]
    pool.write(second, SIZE)
    pool.write(first, SIZE)
    assert pool.read(first) == [("", token) for token in first.tokens]
    assert pool.read(second) == [("", token) for token in second.tokens]
    # Two pages that both read, and the last of each.
    assert pool.pool.num_available == 8 - 4


def test_texts_that_write_the_same_at_once_end_with_one_copy() -> None:
    pool = Pool(8, SIZE)
    both = [pool.begin(TEXT), pool.begin(TEXT)]
    for text in both:
        pool.write(text, len(TEXT))
    assert both[0].holding.pages == both[1].holding.pages
    assert pool.pool.num_available == 8 - 3
    for text in both:
        pool.end(text)
    assert pool.pool.num_available == 8


def test_what_holds_no_numbers_is_found_by_nobody_and_stays_with_those_who_read_it() -> None:
    pool = Pool(8, SIZE)
    first = pool.begin(TEXT)
    pool.write(first, len(TEXT))
    second = pool.begin(TEXT)
    pool.pool.forget(first.holding)
    assert pool.read(second) == [("", token) for token in TEXT]
    assert pool.begin(TEXT).num_held == 0
    assert pool.pool.num_available == 8 - 3
    pool.end(second)
    assert pool.pool.num_available == 8


@given(st.lists(st.integers(0, 2), max_size=20), st.lists(st.integers(0, 2), max_size=20), st.integers(0, 20))
def test_what_is_lacking_is_told_exactly(first: list[int], second: list[int], more: int) -> None:
    """A text that was told that it has room gets every page, and one that was told that it has none does not."""
    pool = Pool(6, 4)
    one = pool.begin(first)
    pool.write(one, len(first) - one.num_held)
    if more % 2:
        pool.end(one)
    wanted = len(second) + more
    lacking = pool.pool.lacks("", second, wanted)
    holding = pool.pool.take("", second).holding
    assert pool.pool.grow(holding, wanted) == (lacking == 0)


class TextsComeAndGo(RuleBasedStateMachine):
    """Texts over an alphabet of two, so that many begin alike."""

    @initialize(num_pages=st.integers(1, 12), page_tokens=st.sampled_from([1, 2, 20]))
    def make(self, num_pages: int, page_tokens: int) -> None:
        self.store = Pool(num_pages, page_tokens)
        self.texts: list[Text] = []

    @rule(
        head=st.sampled_from([[], [1] * 8, [1] * 17, [1] * 45, [0, 1] * 20]),
        tail=st.lists(st.integers(0, 1), max_size=6),
        mark=st.sampled_from(["", "a"]),
    )
    def come(self, head: list[int], tail: list[int], mark: str) -> None:
        self.texts.append(self.store.begin([*head, *tail], mark))

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99), num_tokens=st.integers(1, 30))
    def grow(self, which: int, num_tokens: int) -> None:
        text = self.texts[which % len(self.texts)]
        if len(text.tokens) > text.num_held:
            self.store.write(text, min(num_tokens, len(text.tokens) - text.num_held))

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99))
    def catch_up(self, which: int) -> None:
        text = self.texts[which % len(self.texts)]
        self.store.pool.grow(text.holding, len(text.tokens))
        text.num_held += self.store.pool.catch_up(text.holding, text.tokens, text.num_held)

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99), is_sound=st.booleans())
    def go(self, which: int, is_sound: bool) -> None:
        text = self.texts.pop(which % len(self.texts))
        if is_sound:
            self.store.end(text)
        else:
            self.store.pool.forget(text.holding)

    @invariant()
    def every_text_reads_its_own_words(self) -> None:
        for text in getattr(self, "texts", []):
            wanted = [(text.mark, token) for token in text.tokens[: text.num_held]]
            assert self.store.read(text) == wanted

    @invariant()
    def every_page_is_free_or_idle_or_somebodys(self) -> None:
        if not hasattr(self, "store"):
            return
        pool = self.store.pool
        own = [page for text in self.texts for page in text.holding.own]
        read = {block.page for text in self.texts for block in text.holding.blocks}
        idle = [block.page for block in pool._idle]
        everywhere = [*own, *read, *idle, *pool._free]
        assert sorted(everywhere) == list(range(pool.num_pages))
        for text in self.texts:
            for block in text.holding.blocks:
                assert block.num_owners == sum(block in other.holding.blocks for other in self.texts)
        # Who stands before whom: a page gives way before the one that it follows.
        places = {block: place for place, block in enumerate(pool._idle)}
        assert all(places[one] < places.get(one.parent, len(places)) for one in places if one.parent is not None)

    def teardown(self) -> None:
        for text in getattr(self, "texts", []):
            self.store.end(text)
        if hasattr(self, "store"):
            assert self.store.pool.num_available == self.store.pool.num_pages


TestTextsComeAndGo = TextsComeAndGo.TestCase
TestTextsComeAndGo.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
