"""Lore in a prompt: where it stands, and that it goes before a message, or the chat itself, has to."""

from __future__ import annotations

from typing import Any

import pytest

from core.chat.character_prompt import CharacterPrompt
from core.chat.model_prompt import ModelPrompt
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.truncation import ContextError
from core.engine.sampling_params import Sampling
from core.personas.character import Character
from core.personas.user import UserPersona
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.lorebooks import Words, entry


def prepared(
    entries: list[dict[str, Any]],
    said: str = "A bee?",
    *,
    context_tokens: int = 1000,
    mode: Any = "instruct",
    extensions: dict[str, Any] | None = None,
    before: int = 0,
    **book: Any,
) -> Prompt:
    character = Character(
        "Ada",
        context="Ada knows.",
        example_dialogue="<START>\nAda: Ho.",
        lorebook={"entries": entries} | book,
        extensions=extensions or {},
    )
    model = ModelPrompt("m", None, ChatTemplate(OWN_LLAMA2, "<s>", "</s>"), Words(), Words().count)
    speaker = CharacterPrompt(character, UserPersona("Tom"), Words().count)
    context = PromptContext(model, context_tokens, mode, speaker, Sampling(max_new_tokens=10))
    turns = [Turn(role="user" if place % 2 == 0 else "assistant", content="old " * 9) for place in range(before)]
    return context.prepare([*turns, Turn(role="user", content=said)])


def test_lore_stands_before_after_and_around_the_examples() -> None:
    entries = [entry("L0", position=0), entry("L1", position=1), entry("L5", position=5), entry("L6", position=6),
               entry("Tom: L5?\nAda: L5!", position=5), entry("<START>\n{{char}}: L6!", position=6)]  # fmt: skip
    prompt = prepared(entries, mode="chat").fitted.prompt
    order = ["L0", "Ada knows.", "L1", "L5", "Tom: L5?", "Ada: L5!", "Ada: Ho.", "Ada: L6!", "L6\n", "Tom: A bee?"]
    places = [prompt.index(part, 0 if part != "L6\n" else prompt.index("Ada: L6!") + 8) for part in order]
    assert places == sorted(places)
    prompt = prepared(entries).fitted.prompt
    assert prompt.index("Ada: L6!") < prompt.index("\n\nL6\n") < prompt.index("A bee?")


def test_an_outlets_lore_stands_where_its_macro_does() -> None:
    entries = [entry("{{outlet::Places}} end", position=0), entry("A hut.", position=7, outlet_name="Places")]
    assert "A hut." not in prepared(entries).fitted.prompt
    assert (
        "In: A hut."
        in prepared(entries, extensions={"depth_prompt": {"prompt": "In: {{outlet::Places}}"}}).fitted.prompt
    )


def test_in_a_plain_dialogue_nobody_says_what_the_system_does() -> None:
    note = {"depth_prompt": {"prompt": "{{char}} limps.", "depth": 0, "role": "system"}}
    prompt = prepared([entry("U", position=4, depth=0, role=1)], mode="chat", extensions=note).fitted.prompt
    assert prompt.endswith("Tom: A bee?\nAda limps.\nTom: U\nAda:")


@pytest.mark.parametrize(
    ("note", "end"),
    [
        ({"prompt": "N", "depth": 1}, "N\nTom: A bee?\nAda:"),
        ({"prompt": "N", "depth": 0, "role": "assistant"}, "Tom: A bee?\nAda: N\nAda:"),
        ({"prompt": "N", "role": 1}, "Tom: N\nTom: A bee?\nAda:"),
        ({"prompt": " ", "depth": 0}, "Tom: A bee?\nAda:"),
        ({"prompt": 5}, "Tom: A bee?\nAda:"),
        ("N", "Tom: A bee?\nAda:"),
        (None, "Tom: A bee?\nAda:"),
        ({"prompt": "N", "depth": "0"}, "Tom: A bee?\nN\nAda:"),
    ],
)
def test_the_characters_note_stands_at_its_depth(note: object, end: str) -> None:
    assert prepared([], mode="chat", extensions={"depth_prompt": note}).fitted.prompt.endswith(end)


def test_lore_has_a_quarter_of_the_context_where_its_book_names_no_budget() -> None:
    entries = [entry(f"LORE{number} " + "word " * 19) | {"insertion_order": number} for number in range(10)]
    prompt = prepared(entries, context_tokens=400)
    assert prompt.fitted.prompt.count("LORE") == 5
    assert [one.reason for one in prompt.left_out] == ["budget"] * 5


def test_lore_goes_before_a_chat_is_refused() -> None:
    entries = [entry("word " * 100) | {"insertion_order": number} for number in range(9)]
    prompt = prepared(entries, context_tokens=300, token_budget=100_000)
    assert prompt.fitted.prompt_tokens <= 290 and "A bee?" in prompt.fitted.prompt and prompt.left_out
    assert "word" not in prepared(entries, context_tokens=60, token_budget=100_000).fitted.prompt
    with pytest.raises(ContextError):
        prepared(entries, "A bee? " + "x " * 400, context_tokens=300, token_budget=100_000)


def test_the_question_stays_where_lore_comes_after_it() -> None:
    """The last turn was the lore then, and what was asked was left out."""
    entries = [entry("LORE " * 20, position=4, depth=0)]
    prompt = prepared(entries, "A bee? " + "please " * 60, context_tokens=90, before=8)
    assert "A bee?" in prompt.fitted.prompt and "LORE" not in prompt.fitted.prompt
    assert "LORE" in prepared(entries, "A bee? " + "please " * 20, context_tokens=90, before=8).fitted.prompt
