"""Patterns of strangers: one that unrolls to gigabytes is nowhere, and nobody waits for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from core.common.sandbox import Sandbox, SandboxLimits
from core.personas import patterns as searched
from core.personas.decorators import split_decorators
from core.personas.patterns import MAX_BAD, MAX_PATTERN_CHARS, Pattern, Patterns, read_pattern
from tests.support.lorebooks import lore, texts

SAID = "The tower in the storm, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
TOWER = Pattern("TO[VW]ER", "i")
ENDLESS = Pattern("(a+)+b")
UNROLLED = [
    "b{9000000}",
    "(a{9999}){9999}",
    "(?:ab|cd){90000000}",
    "[ab]{8000000}",
    "(?:(?:(?:a{99}){99}){99}){99}",
    r"\X{99999999}",
    "(?<=a{9999999})b",
    "(?:a{e<=3}){9999999}",
    "(?=x{5000000})",
    "(?i)(?:ß{3000}){3000}",
    r"(?:\p{L}{4000}){4000}",
    "(?P<n>a){7000000}",
    "(?>a{3000}){3000}",
    "(?r)a{9000000}",
    "(?|(a{3000})|(b{3000})){3000}",
]


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """With limits of the CPU that are reached soon, whatever else the machine does, and nothing remembered."""
    sandbox = Sandbox("core.personas.pattern_child", SandboxLimits(cpu_s=0.4, memory_mib=64, wait_s=30.0), 2)
    monkeypatch.setattr(searched, "_sandbox", sandbox)
    monkeypatch.setattr(searched, "_unusable", searched._Unusable())
    monkeypatch.setattr(searched, "ALONE_S", 60.0)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("text", UNROLLED)
def test_a_pattern_that_unrolls_is_nowhere_and_those_beside_it_are_found(text: str) -> None:
    tracemalloc.start()
    try:
        patterns = Patterns([Pattern(text), TOWER])
        assert not patterns.finds(Pattern(text), SAID)
        assert patterns.finds(TOWER, SAID)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    ["(", "[[", "(?<n", "a{9999999999999999999999}", r"\p{Nothing}", "(" * 5000 + ")" * 5000, "(?:x+x+)+y", "\ud800{2}",
     "(a|)*\\d", "(?:a?){40}a{40}b", "a" * (MAX_PATTERN_CHARS + 1), "((?:a+)+)+$x", "(?&n)(?P<n>(?&n))"],
)  # fmt: skip
def test_a_pattern_that_is_wrong_or_endless_is_nowhere(text: str) -> None:
    patterns = Patterns([Pattern(text), TOWER])
    assert not patterns.finds(Pattern(text), SAID)
    assert patterns.finds(TOWER, SAID)


def test_what_cannot_be_used_is_not_compiled_again(own_process: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Patterns([ENDLESS]).finds(ENDLESS, SAID)
    monkeypatch.setattr(own_process, "ask", lambda *_: pytest.fail("it was tried again"))
    assert not Patterns([ENDLESS]).finds(ENDLESS, "another text")


def test_a_book_full_of_them_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = searched._ask

    def count(text: str, patterns: list[Pattern]) -> str:
        asked.append(len(patterns))
        return ask(text, patterns)

    monkeypatch.setattr(searched, "_ask", count)
    # On a busy machine three patterns can take longer than all together may.
    monkeypatch.setattr(searched, "ALONE_S", 600.0)
    bad = [Pattern(f"(a+)+{number}") for number in range(300)]
    for said in (SAID, "again"):
        assert not Patterns(bad).finds(bad[-1], said)
    assert asked == [300, *[1] * MAX_BAD, 0]


def test_a_book_whose_patterns_each_take_long_is_not_tried_to_its_end(
    own_process: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred lists of a thousand words reach a limit together and none alone: each text waited for all of them."""
    asked: list[int] = []
    ask = searched._ask

    def count(text: str, patterns: list[Pattern]) -> str:
        asked.append(len(patterns))
        return ask(text, patterns)

    monkeypatch.setattr(searched, "_ask", count)
    monkeypatch.setattr(searched, "ALONE_S", -1.0)
    patterns = Patterns([TOWER, ENDLESS])
    assert not patterns.finds(TOWER, SAID) and not patterns.finds(TOWER, "again")
    assert asked == [2, 0]


def test_texts_that_were_looked_at_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searched, "_ask", lambda text, patterns: "+" * len(patterns))
    patterns = Patterns([TOWER])
    tracemalloc.start()
    try:
        assert all(patterns.finds(TOWER, f"{number}" * 100_000) for number in range(10, 200))
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


def test_flags_are_those_of_the_key() -> None:
    entry = {"content": "x", "use_regex": True}
    for key, said, is_found in (
        ("/a.b/s", "a\nb", True),
        ("/a.b/", "a\nb", False),
        ("/A/i", "a", True),
        ("/A/", "a", False),
        ("/a/x", "/a/x", True),
        ("A", "a", True),
    ):
        assert bool(lore([entry | {"keys": [key]}], [said])) == is_found, key
    assert not lore([entry | {"keys": ["A"], "case_sensitive": True}], ["a"])


def test_all_patterns_of_a_book_are_looked_for_at_once(own_process: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, a book of 500 would wait for 500 answers of another process."""
    asked: list[object] = []
    ask = own_process.ask
    monkeypatch.setattr(own_process, "ask", lambda *given: asked.append(given) or ask(*given))
    entries = [{"keys": [f"word{number}\\b"], "content": f"{number}", "use_regex": True} for number in range(500)]
    assert texts(lore(entries, ["word3 word499"])) == ["3", "499"]
    assert len(asked) == 1


def test_a_head_of_a_million_decorators_is_read_at_once() -> None:
    """Each line was taken off a list's front: a card may hold millions."""
    found, text = split_decorators("@@depth 1\n" * 1_000_000 + "x")
    assert (found, text) == ({"depth": "1"}, "x")


@pytest.mark.parametrize(
    ("key", "said", "is_found"),
    [
        ("/^tower/", "hi\ntower", False),
        ("/^tower/m", "hi\ntower", True),
        (r"/\u{1F525}/u", "a 🔥", True),
        (r"/\uD83D\uDD25/", "a 🔥", True),
        (r"/^\u{2}$/", "uu", True),
        ("/x{e}/", "x{e}", True),
        ("/x{e}/", "x", False),
        ("/x{,2}/", "xx", False),
        (r"/\d/", "٣", False),
        (r"/\w/", "é", False),
        ("/É/i", "é", True),
        (r"/(?<y>\d{4})-\k<y>/", "1999-1999", True),
        ("/(?<!un)happy/", "unhappy", False),
        ("/(?<=the )bee/", "the bee", True),
        (r"/[\p{L}--[a-z]]/v", "abc", False),
        (r"/[\p{L}--[a-z]]/v", "aBc", True),
        ("/bee/d", "bees", True),
        ("/bee/y", "a bee", False),
        ("/bee/gy", "bee", True),
        ("/[^]/", "\n", True),
        ("/a$/", "a\n", False),
        ("/(?P<n>a)/", "a", False),
        ("/(?i)a/", "a", False),
        (r"/\Aa/", "Aa", True),
        ("/a++/", "aa", False),
        ("/[/", "[", False),
        ("/a/uv", "a", False),
        ("/a/ii", "a", False),
    ],
)
def test_patterns_mean_what_they_mean_to_javascript(key: str, said: str, is_found: bool) -> None:
    """Node.js says the same of each, except that it refuses the wrong ones instead of finding nothing."""
    pattern = read_pattern(key)
    assert (pattern is not None and Patterns([pattern]).finds(pattern, said)) == is_found


def test_wrong_patterns_are_told_apart() -> None:
    patterns = [TOWER, Pattern("("), Pattern("x{e}"), Pattern("x{e}", "u"), Pattern("a" * (MAX_PATTERN_CHARS + 1))]
    assert Patterns(patterns).wrong() == {patterns[1], patterns[3]}


def test_half_a_character_in_a_text_hides_no_pattern() -> None:
    assert Patterns([TOWER]).finds(TOWER, "\ud83d tower")
