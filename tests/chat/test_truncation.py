"""What fits: whole messages, the newest, and never without the character."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from core.chat.modes import PromptStyle, notebook_parts
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.tokens import TokenCounter, read_counter
from core.chat.truncation import ContextError, PromptParts, find_first, fit_to_context, join_texts
from core.chat.turn_rendering import Names
from core.common.errors import CheckpointError
from tests.support.chat_templates import OWN_LLAMA2, SOURCES

NAMES = Names("Tom", "Ada")
LLAMA2 = PromptStyle("instruct", ChatTemplate(OWN_LLAMA2, "<s>", "</s>"), NAMES)


def count_words(text: str) -> int:
    return len(text.replace("[", " [").split())


def talk(*lengths: int) -> tuple[Turn, ...]:
    """Questions and answers in turn, of so many words each."""
    return tuple(
        Turn(role="user" if place % 2 == 0 else "assistant", content=f"m{place} " + "word " * (length - 1))
        for place, length in enumerate(lengths)
    )


def test_all_that_fits_is_in() -> None:
    history, example = talk(5, 5, 5), talk(3, 3)
    fitted = fit_to_context(PromptParts(history, "Ada.", (example,)), LLAMA2.render, count_words, 1000, 100)
    assert (fitted.first_kept, fitted.num_examples, fitted.history_tokens) == (0, 1, 15)
    assert fitted.prompt_tokens == count_words(fitted.prompt) and fitted.room_tokens == 1000 - fitted.prompt_tokens


def test_examples_go_before_any_message_and_the_oldest_messages_next() -> None:
    parts = PromptParts(talk(20, 20, 20, 20, 20), "Ada likes numbers.", (talk(30, 30), talk(30, 30)))
    seen = []
    for context in range(400, 40, -1):
        fitted = fit_to_context(parts, LLAMA2.render, count_words, context, 10)
        assert "Ada likes numbers." in fitted.prompt and "m4" in fitted.prompt
        assert fitted.prompt_tokens <= context - 10
        for place in range(5):
            assert (f"m{place} " in fitted.prompt.split("<</SYS>>")[1]) == (place >= fitted.first_kept)
        seen.append((fitted.first_kept, -fitted.num_examples))
    assert seen == sorted(seen) and set(seen) == {(0, -2), (0, -1), (0, 0), (1, 0), (2, 0), (3, 0), (4, 0)}


def test_what_is_too_long_is_asked_about() -> None:
    with pytest.raises(ContextError) as caught:
        fit_to_context(PromptParts(talk(5, 5, 500), "Ada."), LLAMA2.render, count_words, 200, 50)
    assert caught.value.key == "message_too_long" and caught.value.params["tokens"] == 500
    assert 100 < int(caught.value.params["limit"]) < 150
    with pytest.raises(ContextError) as caught:
        fit_to_context(PromptParts(talk(5), "word " * 500), LLAMA2.render, count_words, 200, 50)
    assert caught.value.key == "character_too_long"
    with pytest.raises(ContextError) as caught:
        fit_to_context(PromptParts(talk(5), start="word " * 500), LLAMA2.render, count_words, 200, 50)
    assert caught.value.key == "message_too_long"


def test_what_fits_is_told_as_what_the_other_part_leaves() -> None:
    """A character of 40 tokens did not fit, "and only 64 fit": the question took the rest. And -36 tokens fitted."""
    render = LLAMA2.render
    with pytest.raises(ContextError) as caught:
        fit_to_context(PromptParts(talk(90), "word " * 100), render, count_words, 200, 50)
    params = caught.value.params
    assert caught.value.key == "character_too_long" and int(params["limit"]) == 150 - 90 < int(params["tokens"])
    with pytest.raises(ContextError) as caught:
        fit_to_context(PromptParts(talk(300), "word " * 200), render, count_words, 200, 50)
    assert caught.value.key == "message_too_long" and caught.value.params["limit"] == 0


def test_a_generous_answer_does_not_push_out_the_chat() -> None:
    fitted = fit_to_context(PromptParts(talk(*[20] * 9)), LLAMA2.render, count_words, 300, 100_000)
    assert 100 < fitted.prompt_tokens <= 150 and fitted.room_tokens >= 150


def test_nothing_said_yet_fits() -> None:
    assert fit_to_context(PromptParts((), "Ada."), LLAMA2.render, count_words, 100, 10).first_kept == 0
    plain = PromptStyle("notebook", LLAMA2.template, NAMES)
    assert fit_to_context(notebook_parts(""), plain.render, count_words, 100, 10).prompt == ""


def test_a_notebooks_oldest_lines_go() -> None:
    text = "".join(f"line {number} of it\n" for number in range(100))
    plain = PromptStyle("notebook", LLAMA2.template, NAMES)
    fitted = fit_to_context(notebook_parts(text), plain.render, count_words, 100, 20)
    assert text.endswith(fitted.prompt) and fitted.first_kept == 80 and fitted.prompt.startswith("line 80 of it\n")


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(60, 500),
    st.sampled_from(sorted(SOURCES)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_no_message_more_would_fit(lengths: list[int], context: int, name: str, chance: random.Random) -> None:
    render = PromptStyle("instruct", ChatTemplate(SOURCES[name], "<s>", "</s>"), NAMES).render
    parts = PromptParts(talk(*lengths), "Ada.")
    fitted = fit_to_context(parts, render, count_words, context, 20)
    limit = context - min(20, context // 2)
    assert fitted.prompt_tokens == count_words(fitted.prompt) <= limit
    if fitted.first_kept:
        assert count_words(render(PromptParts(parts.history[fitted.first_kept - 1 :], "Ada."))) > limit


def test_a_long_chat_is_rendered_a_few_times() -> None:
    renders: list[int] = []

    def render(parts: PromptParts) -> str:
        renders.append(len(parts.history))
        return LLAMA2.render(parts)

    fit_to_context(
        PromptParts(talk(*[random.Random(1).randint(5, 60) for _ in range(500)])), render, count_words, 4096, 512
    )
    assert len(renders) <= 6


def test_of_a_long_chat_only_the_last_messages_are_counted() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return count_words(text)

    history = talk(*[8] * 5000)
    fitted = fit_to_context(PromptParts(history, "Ada."), LLAMA2.render, count, 400, 20)
    assert 4900 < fitted.first_kept < 4990 and len(counted) < 150
    assert fitted.history_tokens == sum(count_words(turn["content"]) for turn in history[fitted.first_kept :])


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_first_that_fits_is_found_from_anywhere(guess: int, last: int, wanted: int) -> None:
    wanted, guess = min(wanted, last), min(guess, last)
    assert find_first(guess, last, lambda index: index >= wanted) == wanted


def test_texts_are_joined_as_paragraphs() -> None:
    assert join_texts(" lore ", "", "\n", "Ada.\n", "more") == "lore\n\nAda.\n\nmore"


# Counting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = {word: number for number, word in enumerate(["<s>", "[UNK]", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_are_counted_as_the_engine_reads_them(folder: Path) -> None:
    counter = read_counter(folder)
    assert counter.is_exact and counter.opening == "<s>"
    assert counter.count("<s>a b a b a b c") == 8 and counter.count("") == 0 and counter.count("a \ud800") == 2
    assert read_counter(folder) is counter


def test_the_real_tokenizer_counts_without_adding(starter_folder: Path) -> None:
    counter = read_counter(starter_folder)
    assert counter.opening == "" and counter.count("<|im_start|>user\nHello<|im_end|>") == 5
    assert counter.count("word " * 20_000) > 20_000


def test_a_text_is_counted_once_and_is_not_kept_for_that(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, counted = read_counter(folder), []
    monkeypatch.setattr(counter, "_count", lambda text: counted.append(len(text)) or len(text))
    text = "Llamas " * 100
    before = sys.getrefcount(text)
    assert [counter.count(text), counter.count(text), counter.count("Llamas")] == [700, 700, 6]
    assert counted == [700, 6] and sys.getrefcount(text) == before


def test_a_long_text_is_counted_while_others_go_on(starter_folder: Path) -> None:
    """One request with megabytes of text once held every page and every other client for seconds."""
    counter, turns = read_counter(starter_folder), 0
    counting = threading.Thread(target=counter.count, args=("hello world " * 100_000,))
    counting.start()
    while counting.is_alive():
        counting.join(0.001)
        turns += 1
    assert turns > 10


def test_a_model_without_tokenizer_json_is_estimated_from_above(tmp_path: Path) -> None:
    counter = read_counter(tmp_path)
    assert not counter.is_exact and counter.opening == "" and TokenCounter(None).count("你好 hello") == 4


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{"), lambda path: (path.unlink(), path.mkdir())])
def test_a_tokenizer_that_cannot_be_read_is_told_of(folder: Path, harm: Callable[[Path], object]) -> None:
    harm(folder / "tokenizer.json")
    with pytest.raises(CheckpointError) as caught:
        read_counter(folder)
    assert caught.value.key == "tokenizer" and json.dumps(caught.value.params)
