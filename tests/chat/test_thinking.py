"""How models that think are asked: what their templates get of earlier thoughts and of a chat's switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.chat.modes import PromptStyle
from core.chat.prompt_context import PromptContext
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.thinking import Thinking, switches_of, thinking_of
from core.chat.truncation import PromptParts
from core.chat.turn_rendering import Names
from core.engine.thought_formats import find_format
from tests.support import chat_desk
from tests.support import thinking_templates as kinds
from tests.support.chat_desk import Desk
from tests.support.chat_templates import SOURCES

ON = {"enable_thinking"}
# By kind: the format, the switches, whether an earlier thought is read again, and what the template begins.
KINDS: dict[str, tuple[str, str, set[str], bool, str]] = {
    "Qwen3": (kinds.QWEN3, "think", ON, False, ""),
    "R1": (kinds.R1, "think", set(), False, "<think>\n"),
    "DeepSeek V3.1": (kinds.DEEPSEEK_V31, "think", {"thinking"}, False, ""),
    "EXAONE 4": (kinds.EXAONE4, "think", ON, False, ""),
    "GLM 4.5": (kinds.GLM45, "think", ON, False, ""),
    "Granite 3.3": (kinds.GRANITE33, "think", {"thinking"}, False, ""),
    "Granite 3.2": (kinds.GRANITE32, "Granite", {"thinking"}, False, ""),
    "SmolLM3": (kinds.SMOLLM3, "think", ON, False, ""),
    "Hunyuan": (kinds.HUNYUAN, "think", ON, False, ""),
    "Gemma 4": (kinds.GEMMA4, "channel", ON, False, ""),
    "gpt-oss": (kinds.GPT_OSS, "channels", {"reasoning_effort"}, False, ""),
    "Seed-OSS": (kinds.SEED_OSS, "seed:think", set(), True, ""),
    "Magistral": (kinds.MAGISTRAL, "[THINK]", set(), False, ""),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
HISTORY = [
    Turn(role="user", content="How many moons has Mars?"),
    Turn(role="assistant", content="Two.", thought="Phobos, Deimos"),
    Turn(role="user", content="And Venus?"),
]


def template(kind: str, **variables: Any) -> ChatTemplate:
    source = KINDS[kind][0]
    return ChatTemplate(source, "<s>", "</s>", thought_format=find_format(source), variables=variables)


@every_kind
def test_a_family_is_known_by_its_template(kind: str) -> None:
    _, name, switches, is_read_again, opened = KINDS[kind]
    one = template(kind)
    assert one.thought_format is not None and one.thought_format.name == name and one.switches == switches
    prompt = one.render(HISTORY)
    assert ("Phobos" in prompt) == is_read_again and "Two." in prompt
    assert one.opened_thought(prompt) == opened


@every_kind
@pytest.mark.parametrize("is_over", [False, True])
def test_an_answer_goes_on_from_the_prompt_that_it_was_begun_with(kind: str, is_over: bool) -> None:
    one = template(kind)
    format = one.thought_format
    assert format is not None
    asked = one.render(HISTORY)
    opened = one.opened_thought(asked)
    written = (opened or f"{format.open[0]}\n") + "Hm, none" + (f"{format.closing}None" if is_over else "")
    style = PromptStyle("instruct", one, Names("You", "Assistant"))
    assert style.render(PromptParts(tuple(HISTORY), start=written)) == asked.removesuffix(opened) + written


@pytest.mark.parametrize(
    ("kind", "variables"),
    [*((kind, {}) for kind in KINDS), ("EXAONE 4", {"enable_thinking": True}), ("DeepSeek V3.1", {"thinking": True})],
)
@pytest.mark.parametrize("refuses_answers", [False, True])
def test_an_answer_that_has_no_thought_goes_on_as_one(
    kind: str, variables: dict[str, Any], refuses_answers: bool
) -> None:
    """A person began it, or a model wrote it that does not think."""
    one = template(kind, **variables)
    if refuses_answers:
        refusal = "{% if not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
        one = replace(one, source=refusal + (one.source or ""))
    style, parts = PromptStyle("instruct", one, Names("You", "Assistant")), PromptParts(tuple(HISTORY), start="None at")
    prompt = style.render(parts)
    begun = style.begun(prompt, parts)
    found, rules = style.message_parts(" all.", parts, begun), style.engine_rules(parts, begun, 9)
    assert prompt.endswith("None at") and (found.thought, found.answer) == ("", "None at all.")
    assert rules is not None and not rules.is_open and rules.budget_tokens is None


@pytest.mark.parametrize(
    ("kind", "variables", "words", "opened"),
    [
        ("Qwen3", {"enable_thinking": False}, "<think>\n\n</think>\n\n", ""),
        ("DeepSeek V3.1", {"thinking": True}, "<A><think>", "<think>"),
        ("DeepSeek V3.1", {}, "<A></think>", ""),
        ("EXAONE 4", {"enable_thinking": True}, "<think>\n", "<think>\n"),
        ("GLM 4.5", {"enable_thinking": False}, "/nothink<|assistant|>\n<think></think>", ""),
        ("SmolLM3", {"enable_thinking": False}, "<think>\n\n</think>\n", ""),
        ("Gemma 4", {"enable_thinking": True}, "<|turn>model\n", ""),
        ("gpt-oss", {"reasoning_effort": "high"}, "<|start|>assistant", ""),
    ],
)
def test_a_switch_reaches_the_template(kind: str, variables: dict[str, Any], words: str, opened: str) -> None:
    one = template(kind, **variables)
    prompt = one.render(HISTORY)
    assert prompt.endswith(words) and one.opened_thought(prompt) == opened
    if variables:
        assert prompt != template(kind).render(HISTORY)


def test_variables_take_no_name_that_is_the_chats_own() -> None:
    one = template("Qwen3", messages=[], add_generation_prompt=False, bos_token="x", self=5)
    assert one.render(HISTORY) == template("Qwen3").render(HISTORY)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "Qwen3"])
def test_models_that_do_not_think_have_no_switch_and_get_no_thought(name: str) -> None:
    source = SOURCES[name]
    assert switches_of(source) == frozenset() and find_format(source) is None
    one = ChatTemplate(source, "<s>", "</s>")
    assert one.render(HISTORY) == one.render([{**turn, "thought": ""} for turn in HISTORY])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'enable_thinking' }}", "enable_thinking", "{{ ns.enable_thinking }}", "{% set enable_thinking = true %}",
        "{% set ns = namespace(enable_thinking=true) %}", '{{ "use \\" thinking" }}', "{{ message.thinking }}",
        "{{ my_enable_thinking }} {{ thinking_budget }}",
    ],
)  # fmt: skip
def test_a_word_of_a_templates_own_is_no_switch(source: str) -> None:
    assert switches_of(source) == frozenset()


@pytest.mark.parametrize("source", ["{{" * 300_000, "{{ '" + "\\'" * 300_000 + " }}"])
def test_an_endless_template_has_no_switch_either(source: str) -> None:
    assert switches_of(source) == frozenset()


@pytest.mark.parametrize(
    ("settings", "thinking"),
    [
        ({}, Thinking()),
        ({"thinking": "on"}, Thinking({"enable_thinking": True})),
        (
            {"thinking": "off", "reasoning_effort": "low"},
            Thinking({"enable_thinking": False, "reasoning_effort": "low"}),
        ),
        ({"thinking": True, "reasoning_effort": 5}, Thinking()),
        ({"thinking_budget": 64}, Thinking({}, 64)),
        ({"thinking_budget": True}, Thinking()),
        ({"thinking_budget": -1}, Thinking()),
        ({"thinking_budget": 10**9}, Thinking()),
    ],
)
def test_what_a_chat_sets_is_checked_as_it_may_come_from_a_file(settings: dict[str, Any], thinking: Thinking) -> None:
    assert thinking_of(settings, frozenset(("enable_thinking", "reasoning_effort"))) == thinking
    assert thinking_of(settings, frozenset()).variables == {}


# A chat ---------------------------------------------------------------------------------------------------------------


def asked(kind: str, thinking: Thinking | None = None) -> PromptContext:
    context = chat_desk.context()
    model = replace(context.model, template=template(kind))
    character = replace(context.character, character=None)
    return replace(context, model=model, character=character, thinking=thinking or Thinking())


def test_a_thought_that_was_stopped_goes_on_and_the_next_question_is_asked_without_it(desk: Desk) -> None:
    context = asked("R1", Thinking({}, 99))
    message = desk.service.send(desk.chat, "How many moons has Mars?", None, context)
    rules = desk.engine.thoughts[-1]
    assert rules is not None and rules.is_open and rules.budget_tokens == 99
    desk.finish(message, "Phobos, ")
    answer = desk.store.read(desk.chat).messages[-1]
    assert answer.thought is not None and (answer.thought.text, answer.thought.closing, answer.text) == (
        "Phobos, ", "", "",
    )  # fmt: skip
    desk.service.continue_answer(desk.chat, message, context)
    first, second = (prompt for prompt, _ in desk.engine.prompts)
    assert second == first + "Phobos,"
    desk.finish(message, "Deimos.\n</think>\n\nTwo.")
    answer = desk.store.read(desk.chat).messages[-1]
    assert answer.thought is not None and answer.text == "Two."
    desk.service.continue_answer(desk.chat, message, context)
    assert desk.engine.prompts[-1][0] == first.removesuffix("<think>\n") + answer.whole
    rules = desk.engine.thoughts[-1]
    assert rules is not None and not rules.is_open and rules.budget_tokens is None
    desk.finish(message, " Small ones.")
    desk.service.send(desk.chat, "And Venus?", message, context)
    assert "Phobos" not in desk.engine.prompts[-1][0] and "Two. Small ones.</s>" in desk.engine.prompts[-1][0]


@pytest.mark.parametrize(
    ("written", "goes_on_from"),
    [
        ("[THINK]Phobos, Deimos[/THINK]Two", "<think>\nPhobos, Deimos\n</think>\n\nTwo"),
        ("[THINK]Phobos", "<think>\nPhobos"),
        ("[THINK][/THINK]Two", "Two"),
    ],
)
def test_an_answer_of_a_model_with_other_marks_goes_on_with_those_of_this_one(
    desk: Desk, written: str, goes_on_from: str
) -> None:
    message = desk.service.send(desk.chat, "How many moons has Mars?", None, asked("Magistral"))
    desk.finish(message, written)
    before = desk.store.read(desk.chat).messages[-1]
    desk.service.continue_answer(desk.chat, message, asked("Qwen3"))
    assert desk.engine.prompts[-1][0].endswith(f"<|im_start|>assistant\n{goes_on_from}")
    desk.finish(message, ", ")
    after = desk.store.read(desk.chat).messages[-1]
    thoughts = [one.thought.text if one.thought else "" for one in (before, after)]
    assert "[THINK]" not in after.whole and "".join([thoughts[1], after.text]) == "".join(
        [thoughts[0], before.text, ", "]
    )


def test_an_answer_goes_on_with_the_switch_that_it_was_begun_with(desk: Desk) -> None:
    off = asked("Qwen3", Thinking({"enable_thinking": False}))
    message = desk.service.send(desk.chat, "How many moons has Mars?", None, off)
    desk.finish(message, "Two")
    assert desk.store.read(desk.chat).messages[-1].stats["template"] == {"enable_thinking": False}
    desk.service.continue_answer(desk.chat, message, asked("Qwen3"))
    first, second = (prompt for prompt, _ in desk.engine.prompts)
    assert second == first + "Two"


def test_a_characters_name_after_its_thought_is_taken_off_and_kept_for_going_on() -> None:
    style = PromptStyle("chat-instruct", template("Qwen3"), Names("You", "Ada"))
    parts = style.message_parts("<think>\nhm\n</think>\n\nAda: Hello", PromptParts(()))
    assert (parts.thought, parts.answer) == ("hm", "Hello") and parts.whole.endswith("</think>\n\nAda: Hello")


def test_an_edited_answer_keeps_its_thought(desk: Desk) -> None:
    message = desk.service.send(desk.chat, "Hi", None, asked("Qwen3"))
    desk.finish(message, "<think>\nhm\n</think>\n\nHello")
    desk.store.edit(message, "Good morning")
    answer = desk.store.read(desk.chat).messages[-1]
    assert answer.whole == "<think>\nhm\n</think>\n\nGood morning"
