"""Text as it comes: whole characters only, nothing lost, and stop strings however they fall on tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders, models

from core.engine.detokenize import BROKEN, StopFilter, TextStream, find_stop, held_back, special_in
from tests.support.checkpoints import make_tokenizer

VOCABULARY = 384
# The same examples in every run, and none kept on disk.
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)
# What a model may be asked to end at, short enough to come up by chance in the properties below.
LETTERS = "ab你"


def make_byte_level() -> Tokenizer:
    """Byte-level BPE, as in GPT-2, Llama-3 and Qwen: a character of three bytes may be three tokens."""
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder), VOCABULARY)
        return Tokenizer.from_file(f"{folder}/tokenizer.json")


def make_byte_fallback() -> Tokenizer:
    """As Llama-2 has it: words with a mark for their space, and a token a byte for what is no word."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁Hello", "▁the", "Hello", "the", "ing", *"abc", "你", "好", "▁▁", "."]
    tokenizer = Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTE_LEVEL = make_byte_level()
BYTE_FALLBACK = make_byte_fallback()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte fallback"])
# Some numbers beyond the vocabulary: a model's last layer is often wider than its tokenizer.
TOKENS = some.lists(some.integers(0, VOCABULARY + 5), max_size=12)


def pieces(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """What each token gave until a stop string came, and what was left at the end."""
    stream = TextStream(tokenizer, stop)
    given_out = []
    for token in tokens:
        given_out.append(stream.push(token))
        if stream.stopped:
            return given_out, ""
    return given_out, stream.flush()


def text_of(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> str:
    given_out, rest = pieces(tokenizer, tokens, stop)
    return "".join(given_out) + rest


def in_bytes(text: str) -> list[int]:
    """Byte-fallback tokens of `text`, one a byte."""
    return [BYTE_FALLBACK.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]


def words(*tokens: str) -> list[int]:
    return [BYTE_FALLBACK.token_to_id(token) for token in tokens]


# Whole characters ---------------------------------------------------------------------------------------------------


@TOKENIZERS
@PROPERTY
@given(tokens=TOKENS)
def test_what_comes_piece_by_piece_is_the_text_as_a_whole(tokenizer: Tokenizer, tokens: list[int]) -> None:
    whole = tokenizer.decode(tokens)
    text = text_of(tokenizer, tokens)
    if BROKEN not in whole:
        assert text == whole
    if tokenizer is BYTE_LEVEL:
        # Only a character that never became whole is missing at the end.
        assert text == whole.rstrip(BROKEN)


@TOKENIZERS
@PROPERTY
@given(tokens=TOKENS)
def test_no_piece_ends_in_half_a_character(tokenizer: Tokenizer, tokens: list[int]) -> None:
    given_out, rest = pieces(tokenizer, tokens)
    assert not any(piece.endswith(BROKEN) for piece in [*given_out, rest])


@PROPERTY
@given(text=some.text(some.characters(codec="utf-8", exclude_characters=BROKEN), max_size=12))
def test_any_text_comes_through_whole(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert text_of(BYTE_LEVEL, tokens) == BYTE_LEVEL.decode(tokens)
    assert text_of(BYTE_FALLBACK, in_bytes(text)) == text.removeprefix(" ")


@pytest.mark.parametrize("text", ["你好，世界。", "😀👍🏽", "👩‍👩‍👧‍👦", "naïve", "한국어", "a\n\tc", "日本語 text"])
def test_characters_of_many_bytes_are_shown_once_they_are_whole(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    given_out, rest = pieces(BYTE_LEVEL, tokens)
    assert "".join(given_out) == text
    assert rest == ""


def test_an_emoji_of_four_tokens_comes_with_its_last() -> None:
    given_out, rest = pieces(BYTE_FALLBACK, in_bytes("😀"))
    assert given_out == ["", "", "", "😀"]
    given_out, rest = pieces(BYTE_FALLBACK, in_bytes("😀")[:3])
    assert (given_out, rest) == (["", "", ""], "")


def test_broken_bytes_after_a_character_do_not_end_the_engine() -> None:
    """Llama-2's decoder reads a run of byte tokens as a whole: with a broken one among them the characters before it,
    which were shown already, become broken too. The library's stream raised at that, and the engine's process ended.
    """
    tokens = [*words("Hello"), *in_bytes("你"), in_bytes("好")[0], *words("b", "▁the")]
    given_out, rest = pieces(BYTE_FALLBACK, tokens)
    assert given_out == ["Hello", "", "", "你", "", f"{BROKEN}b", " the"]
    assert rest == ""


def test_a_long_run_of_broken_bytes_is_survived() -> None:
    tokens = [*words("a"), *in_bytes("好")[:1] * 200, *words("b")]
    text = text_of(BYTE_FALLBACK, tokens)
    assert (text[0], text[-1]) == ("a", "b")


def test_the_whole_characters_before_a_half_one_are_not_lost_at_the_end() -> None:
    """A byte-level token may hold the end of one character and the beginning of the next."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "½Ġä": 1, "ä": 2, "b": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    whole = tokenizer.decode([0, 2, 1])
    assert whole.endswith(BROKEN) and " " in whole
    assert text_of(tokenizer, [0, 2, 1]) == whole.rstrip(BROKEN)


# Runs that never become a character ---------------------------------------------------------------------------------


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.num_decoded = tokenizer, 0

    def decode(self, tokens: list[int]) -> str:
        self.num_decoded += len(tokens)
        return self._tokenizer.decode(tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def straddling() -> tuple[Tokenizer, list[int]]:
    """Tokens that each hold the end of a character and the beginning of the next: "你" a thousand and one times."""
    tokenizer = Tokenizer(models.BPE({"ä": 0, "½łä": 1, "½ł": 2}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, [0, *[1] * 1000, 2]


BROKEN_BYTE = next(token for token in range(VOCABULARY) if BYTE_LEVEL.decode([token]) == BROKEN)
LONG_RUNS = {
    "bytes of no character": (BYTE_LEVEL, [BROKEN_BYTE] * 1000),
    "byte tokens of no character": (BYTE_FALLBACK, [BYTE_FALLBACK.token_to_id("<0x80>")] * 1000),
    "beginnings of characters": (BYTE_FALLBACK, in_bytes("好")[:2] * 500),
    "whole characters after half a one": (BYTE_FALLBACK, in_bytes("好")[:1] + in_bytes("好") * 330),
    "special tokens": (BYTE_FALLBACK, words("</s>", "<s>") * 500),
    "tokens that nobody knows": (BYTE_LEVEL, [VOCABULARY + 5] * 1000),
    "spaces before anything": (BYTE_FALLBACK, words("▁") * 1000),
    "marks on one letter": (BYTE_FALLBACK, words("a") + in_bytes("\u0301") * 500),
    "an emoji that goes on": (BYTE_FALLBACK, in_bytes("👩\u200d") * 140),
    "characters across tokens": straddling(),
}


@pytest.mark.parametrize("name", LONG_RUNS)
def test_each_token_of_an_answer_costs_the_same_however_long_it_waits(name: str) -> None:
    """Each byte that never became a character was decoded with all before it, in the loop that all chats share."""
    tokenizer, tokens = LONG_RUNS[name]
    counting = Counting(tokenizer)
    stream = TextStream(cast(Tokenizer, counting), ())
    text = "".join(map(stream.push, tokens)) + stream.flush()
    assert counting.num_decoded < 30 * len(tokens)
    whole = tokenizer.decode(tokens)
    if BROKEN not in whole:
        assert text == whole
    if tokenizer is not BYTE_FALLBACK:
        assert text == whole.rstrip(BROKEN)


@PROPERTY
@given(tokens=some.lists(some.sampled_from([*in_bytes("aé你😀"), *words("a", "</s>"), 31999]), max_size=60))
def test_whatever_bytes_come_nothing_raises_and_the_letter_at_the_end_is_shown(tokens: list[int]) -> None:
    assert text_of(BYTE_FALLBACK, [*tokens, *words("b")]).endswith("b")


@PROPERTY
@given(tokens=some.lists(some.integers(0, VOCABULARY + 5), min_size=12, max_size=80))
def test_a_long_run_of_any_tokens_is_the_text_as_a_whole(tokens: list[int]) -> None:
    given_out, rest = pieces(BYTE_LEVEL, tokens)
    assert "".join(given_out) + rest == BYTE_LEVEL.decode(tokens).rstrip(BROKEN)
    assert not any(piece.endswith(BROKEN) for piece in [*given_out, rest])


@PROPERTY
@given(tokens=some.lists(some.sampled_from([*BYTE_LEVEL.encode("你😀é").ids, BROKEN_BYTE]), min_size=12, max_size=80))
def test_a_long_run_of_parts_of_characters_is_the_text_as_a_whole(tokens: list[int]) -> None:
    given_out, rest = pieces(BYTE_LEVEL, tokens)
    assert "".join(given_out) + rest == BYTE_LEVEL.decode(tokens).rstrip(BROKEN)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_what_says_nothing_between_the_bytes_of_a_character_does_not_break_it(count: int) -> None:
    first, *others = in_bytes("你")
    assert text_of(BYTE_FALLBACK, [*words("a"), first, *words("</s>") * count, *others]) == "a你"
    assert text_of(BYTE_FALLBACK, [*words("a"), first, *[31999] * count, *others, *words("b")]) == "a你b"


@pytest.mark.parametrize("count", [9, 20, 101])
def test_a_character_after_a_long_run_of_broken_bytes_is_shown(count: int) -> None:
    tokens = BYTE_LEVEL.encode("你", add_special_tokens=False).ids
    assert text_of(BYTE_LEVEL, [BROKEN_BYTE] * count + tokens) == BROKEN * count + "你"


# Spaces and special tokens ------------------------------------------------------------------------------------------


def test_spaces_between_words_are_kept_and_the_first_is_not() -> None:
    tokens = words("▁Hello", "▁the", "ing", "▁", "▁▁", "▁Hello")
    assert text_of(BYTE_FALLBACK, tokens) == "Hello theing    Hello"


def test_special_tokens_are_not_shown_and_swallow_no_space() -> None:
    tokens = words("<s>", "▁Hello", "</s>", "<s>", "▁the", "</s>")
    assert text_of(BYTE_FALLBACK, tokens) == "Hello the"


def test_a_token_that_the_tokenizer_does_not_know_is_nothing() -> None:
    given_out, rest = pieces(BYTE_FALLBACK, [*words("▁Hello"), 31999, *words("▁the")])
    assert given_out == ["Hello", "", " the"]


def test_an_answer_of_no_tokens_is_empty() -> None:
    assert pieces(BYTE_LEVEL, []) == ([], "")


# Stop strings -------------------------------------------------------------------------------------------------------


def stopped(tokens: list[int], *stop: str) -> tuple[str, bool]:
    stream = TextStream(BYTE_FALLBACK, stop)
    text = ""
    for token in tokens:
        text += stream.push(token)
        if stream.stopped:
            return text, True
    return text + stream.flush(), False


@pytest.mark.parametrize(
    ("tokens", "stop", "wanted"),
    [
        (words("a", "b", "c"), ("bc",), ("a", True)),
        (words("a", "▁Hello", "c"), ("Hell",), ("a ", True)),
        (words("a", "▁Hello", "c"), ("a Hello",), ("", True)),
        (words("a", "b", "a", "b", "c"), ("abc",), ("ab", True)),
        (words("a", "a", "a", "b"), ("aab",), ("a", True)),
        (words("a", "b"), ("abc",), ("ab", False)),
        (words("a", "b", "a"), ("abc",), ("aba", False)),
        ([*words("a"), *in_bytes("你好")], ("好",), ("a你", True)),
        ([*words("a"), *in_bytes("\n"), *in_bytes("\n"), *words("b")], ("\n\n",), ("a", True)),
        (words("a", "b", "c"), ("bc", "ab"), ("", True)),
        (words("Hello"), ("o", "ell"), ("H", True)),
        (words("Hello"), ("lo", "o", "llo"), ("He", True)),
        (words("</s>", "a"), ("</s>",), ("a", False)),
    ],
)
def test_an_answer_ends_before_its_stop_string(
    tokens: list[int], stop: tuple[str, ...], wanted: tuple[str, bool]
) -> None:
    assert stopped(tokens, *stop) == wanted


def test_what_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    given_out, rest = pieces(BYTE_FALLBACK, words("a", "b", "a", "c", "a", "b"), ("abx",))
    assert given_out == ["", "", "ab", "ac", "", ""]
    assert rest == "ab"


def test_the_beginning_of_a_stop_string_is_given_out_at_the_end() -> None:
    assert text_of(BYTE_FALLBACK, words("Hello", "a"), ("ab",)) == "Helloa"


def test_a_stop_string_that_is_whole_only_at_the_end_is_not_shown() -> None:
    """A token may end the stop string and begin a character that never becomes whole."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "xyä": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    assert text_of(tokenizer, [0, 1], ("xy",)) == "a"


@PROPERTY
@given(
    text=some.text(LETTERS, max_size=12),
    stop=some.lists(some.text(LETTERS, min_size=1, max_size=4), max_size=3).map(tuple),
    whole=some.booleans(),
)
def test_it_matters_not_how_text_and_stop_strings_fall_on_tokens(text: str, stop: tuple[str, ...], whole: bool) -> None:
    """With "b" and "abc" to stop at, "abc" once gave "a" from three tokens and nothing from one.

    What is wanted is the definition: read letter by letter, the answer ends where the first stop string is complete.
    """
    wanted, ended = text, False
    for end in range(len(text) + 1):
        complete = [len(word) for word in stop if text[:end].endswith(word)]
        if complete:
            wanted, ended = text[: end - max(complete)], True
            break
    in_one = Tokenizer(models.WordLevel({text: 0}, unk_token=""))
    stream = TextStream(in_one if whole else BYTE_FALLBACK, stop)
    tokens = [0] if whole else [token for letter in text for token in in_bytes(letter)]
    given_out = ""
    for token in tokens:
        given_out += stream.push(token)
        assert wanted.startswith(given_out)
        if stream.stopped:
            break
    assert stream.stopped is ended
    assert (given_out if ended else given_out + stream.flush()) == wanted


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [("", ("ab",), 0), ("xa", ("ab",), 1), ("ab", ("ab",), 0), ("aba", ("abab",), 3), ("xaa", ("aab", "ax"), 2),
     ("a", (), 0), ("a", ("a",), 0), ("\n", ("\nUser:",), 1), ("a\nUs", ("\nUser:", "s!"), 3)],
)  # fmt: skip
def test_only_the_longest_beginning_of_a_stop_string_is_held_back(
    text: str, stop: tuple[str, ...], wanted: int
) -> None:
    assert held_back(text, stop) == wanted


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("abc", ("b", "abc"), "b"),
        ("abc", ("c", "bc"), "bc"),
        ("abc", ("x",), None),
        ("abc", (), None),
        ("aab", ("ab",), "ab"),
    ],
)
def test_the_stop_string_that_is_complete_first_is_found(text: str, stop: tuple[str, ...], wanted: str | None) -> None:
    found = find_stop(text, stop)
    assert (found and text[slice(*found)]) == wanted
    stopping = StopFilter(stop)
    stopping.push(text)
    assert (stopping.stop or None) == wanted


@TOKENIZERS
def test_an_answer_that_goes_on_keeps_the_space_of_its_first_word(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("Hello the", add_special_tokens=False).ids
    if tokenizer is BYTE_FALLBACK:
        tokens = [tokenizer.token_to_id("▁Hello"), tokenizer.token_to_id("▁the")]
    whole = tokenizer.decode(tokens)
    for count in range(1, len(tokens)):
        stream = TextStream(tokenizer, (), tokens[count - 1 : count])
        further = "".join(map(stream.push, tokens[count:])) + stream.flush()
        assert tokenizer.decode(tokens[:count]) + further == whole


def test_marks_that_are_special_tokens_are_shown_where_they_are_asked_for() -> None:
    """Decoding leaves special tokens out, and with them the beginning and the end of a thought."""
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate("ab你")}, [], unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "[THINK]", "[/THINK]"])
    start, opening, closing = (tokenizer.token_to_id(name) for name in ("<s>", "[THINK]", "[/THINK]"))
    shown = special_in(tokenizer, ("[THINK]", "[/THINK]"))
    assert shown == {opening: "[THINK]", closing: "[/THINK]"}
    stream = TextStream(tokenizer, ("</s>",), shown=shown)
    assert [stream.push(token) for token in (start, opening, 0, closing, 1)] == ["", "[THINK]", "a", "[/THINK]", "b"]
    assert "THINK" not in text_of(tokenizer, [start, opening, 0, closing, 1])


def test_a_character_that_a_mark_cuts_off_is_dropped_and_what_follows_is_whole() -> None:
    tokens = BYTE_FALLBACK.encode("你", add_special_tokens=False).ids
    half, mark = in_bytes("好")[:1], BYTE_FALLBACK.token_to_id("</s>")
    stream = TextStream(BYTE_FALLBACK, (), shown={mark: "</s>"})
    assert "".join(stream.push(token) for token in (*tokens, *half, mark, *tokens)) + stream.flush() == "你</s>你"
