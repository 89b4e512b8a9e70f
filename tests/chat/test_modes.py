"""What a model gets to read in each mode: templates that refuse things, answers that go on, our own lines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from core.chat.modes import PromptStyle, choose_mode, notebook_parts
from core.chat.records import Mode
from core.chat.template import ChatTemplate, TemplateError
from core.chat.template_messages import Turn
from core.chat.truncation import PromptParts
from core.chat.turn_rendering import Names
from core.engine.sampling_params import MAX_STOP_STRINGS
from tests.support.chat_templates import (
    CHATML,
    GEMMA,
    LLAMA3,
    MISTRAL,
    OWN_LLAMA2,
    PHI,
    QWEN3,
    SOURCES,
)

NAMES = Names("Tom", "Ada")
GREETING, ASK, SAY, MORE = (
    Turn(role="assistant", content="Greetings, I am Ada."),
    Turn(role="user", content="Who are you?"),
    Turn(role="assistant", content="I am a mathematician."),
    Turn(role="user", content="What do you count?"),
)
HISTORIES = {
    "nothing": (),
    "a greeting": (GREETING,),
    "a question": (ASK,),
    "a greeting and a question": (GREETING, ASK),
    "three turns": (ASK, SAY, MORE),
    "a greeting and three turns": (GREETING, ASK, SAY, MORE),
    "two questions": (ASK, MORE),
    "an answer last": (ASK, SAY),
    "an empty answer": (ASK, Turn(role="assistant", content=""), MORE),
    "memory that begins with an answer": (SAY, MORE),
}


def style(source: str | None, mode: Mode = "instruct") -> PromptStyle:
    return PromptStyle(mode, ChatTemplate(source, "<s>", "</s>"), NAMES, "<s>")


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("system", ["", "Ada likes numbers."])
def test_every_template_takes_every_chat(source: str | None, history: tuple[Turn, ...], system: str) -> None:
    """All of it is there, once and in its order, and the model is asked to answer."""
    prompt = style(source).render(PromptParts(history, system, after="Stay calm."))
    said = [*([system] if system else []), *(turn["content"] for turn in history if turn["content"])]
    places = [prompt.index(text) for text in said]
    if source not in (MISTRAL,):
        assert places == sorted(places)
    assert all(prompt.count(text) == 1 for text in said) and "Stay calm." in prompt
    assert prompt.count("<s>") <= max(1, prompt.count("[INST]"))
    assert not prompt.rstrip().endswith(("</s>", "<|im_end|>", "<end_of_turn>"))


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_an_answer_goes_on_inside_its_turn(source: str | None, history: tuple[Turn, ...]) -> None:
    prompt = style(source).render(PromptParts(history, "Ada likes numbers.", start="I count the \n stars and "))
    assert prompt.endswith("I count the \n stars and")
    assert "\ue0c5" not in prompt


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, GEMMA, PHI, QWEN3])
def test_going_on_is_as_in_transformers(source: str) -> None:
    turns = [ASK, Turn(role="assistant", content="I count")]
    (expected,), _ = render_jinja_template(
        [turns], chat_template=source, continue_final_message=True, bos_token="<s>", eos_token="</s>"
    )
    assert style(source).render(PromptParts((ASK,), start="I count")) == expected


def test_llama_2_goes_on_without_its_end() -> None:
    prompt = style(OWN_LLAMA2).render(PromptParts((ASK, SAY, MORE), "Be kind.", start="I count "))
    assert prompt == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWho are you? [/INST] I am a mathematician. </s>"
        "<s>[INST] What do you count? [/INST] I count"
    )


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_the_model_can_write_our_line(source: str | None) -> None:
    """It goes on inside a turn of ours, and stops where the template would close that."""
    prompt = style(source).render(PromptParts((ASK, SAY), voice="user", start="And what"))
    assert prompt.endswith("And what") and prompt.index("mathematician") < prompt.index("And what")
    ends = style(source).stop_strings("user")
    assert len(ends) == 1 and ends[0].strip() == ends[0]
    assert style(OWN_LLAMA2).stop_strings("user") == ("[/INST]",)
    empty = style(source).render(PromptParts((ASK, SAY), voice="user"))
    assert prompt.startswith(empty.rstrip())


def test_a_template_that_takes_nothing_is_quoted() -> None:
    with pytest.raises(TemplateError, match="not today"):
        style("{{ raise_exception('not today') }}").render(PromptParts((ASK,), "x", start="y"))
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ messages | length }}", "", "").render_open([ASK])
    assert caught.value.key == "chat_template_open" and "模板" in caught.value.sentence("zh")


def test_a_template_that_leaves_the_answer_out_is_helped() -> None:
    prompt = style("{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}:").render(
        PromptParts((ASK,), start="I count")
    )
    assert prompt == "[Who are you?]:I count"


def test_examples_are_told_and_the_last_word_stands_by_the_question() -> None:
    prompt = style(CHATML).render(PromptParts((ASK,), "Ada.", ((MORE, SAY), (ASK,)), after="Be short."))
    assert prompt == (
        "<|im_start|>system\nAda.\n\nExample dialogue:\n\nTom: What do you count?\nAda: I am a mathematician.\n\n"
        "Tom: Who are you?<|im_end|>\n<|im_start|>user\nWho are you?\n\nBe short.<|im_end|>\n<|im_start|>assistant\n"
    )


# Plain dialogue -----------------------------------------------------------------------------------------------------


def test_plain_dialogue_is_lines_under_names() -> None:
    plain = style(None, "chat")
    assert plain.render(PromptParts((GREETING, ASK), "Ada counts.", ((MORE, SAY),))) == (
        "<s>Ada counts.\n\nTom: What do you count?\nAda: I am a mathematician.\n\n"
        "Ada: Greetings, I am Ada.\nTom: Who are you?\nAda:"
    )
    assert plain.render(PromptParts((ASK,), after="Short.", start="I am ")) == "<s>Tom: Who are you?\nShort.\nAda: I am"
    assert plain.render(PromptParts((ASK, SAY), voice="user", after="Short.")).endswith(
        "Ada: I am a mathematician.\nTom:"
    )
    assert plain.render(PromptParts(())) == "<s>Ada:"
    assert plain.stop_strings(own=("END", "\nTom:")) == ("\nTom:", "\nAda:", "END")
    assert (
        len(plain.stop_strings(own=tuple(f"stop {number}" for number in range(MAX_STOP_STRINGS)))) == MAX_STOP_STRINGS
    )


def test_a_name_cannot_break_the_dialogue() -> None:
    assert Names.of(" Tom\nAda: ", "") == Names("Tom Ada:", "Assistant")
    assert Names.of("", "").user == "You"


def test_chat_instruct_is_told_who_it_is() -> None:
    prompt = style(CHATML, "chat-instruct").render(PromptParts((GREETING, ASK), "Ada counts."))
    assert "Speak only as Ada.\n\nAda counts." in prompt and prompt.endswith("<|im_start|>assistant\n")
    assert style(CHATML, "chat-instruct").stop_strings() == ("\nTom:", "\nAda:")
    assert style(CHATML).stop_strings() == ()


@pytest.mark.parametrize(
    ("parts", "answer", "message"),
    [
        (PromptParts((ASK,)), " Ada: Hello", "Hello"),
        (PromptParts((ASK,)), " Hello\n", "Hello\n"),
        (PromptParts((ASK,), start="Well, "), " Ada: no", "Well, Ada: no"),
        (PromptParts((ASK, SAY), voice="user"), "Tom: Why?", "Why?"),
    ],
)
def test_an_answer_loses_the_name_before_it(parts: PromptParts, answer: str, message: str) -> None:
    assert style(None, "chat").clean_answer(answer, parts) == message


def test_a_notebook_is_its_own_prompt() -> None:
    text = "Once upon a time\r\n\n there was 从前"
    notebook, parts = style(CHATML, "notebook"), notebook_parts(text)
    assert notebook.render(parts) == "<s>" + text
    assert notebook.clean_answer(" and so on", parts) == text + " and so on"
    assert notebook.stop_strings() == () and notebook.render(notebook_parts("")) == "<s>"


@pytest.mark.parametrize(
    ("source", "model", "has_character", "mode"),
    [
        (CHATML, "anything", False, "instruct"),
        (CHATML, "anything", True, "chat-instruct"),
        (OWN_LLAMA2, "TheBloke_Llama-2-7B-Chat-GPTQ", False, "instruct"),
        (OWN_LLAMA2, "llama-2-13b-chat", True, "chat-instruct"),
        (None, "some-2b-it-GPTQ", False, "chat"),
        (None, "some-chat", True, "chat"),
        (None, "TheBloke_Llama-2-7B-GPTQ", True, "chat"),
        (None, "TheBloke_Llama-2-7B-GPTQ", False, "notebook"),
        (None, "Switch-Bit", False, "notebook"),
    ],
)
def test_a_sensible_mode_is_chosen(source: str | None, model: str, has_character: bool, mode: Mode) -> None:
    assert choose_mode(ChatTemplate(source, "", ""), model, has_character) == mode


def test_all_modes_take_all_histories() -> None:
    renders: list[Callable[[PromptParts], str]] = [
        style(source, mode).render for source in SOURCES.values() for mode in ("chat", "chat-instruct", "notebook")
    ]
    for render in renders:
        for history in HISTORIES.values():
            prompt = render(PromptParts(history, "Ada."))
            assert all(turn["content"] in prompt for turn in history)


# What an answer was begun with --------------------------------------------------------------------------------------

R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<A>{{ m.content.split('</think>')[-1] }}</s>"
    "{% else %}<U>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
EMPTY_THOUGHT = CHATML.replace(
    "message['content'] | trim",
    "('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and loop.last else '') + message['content'] | trim",
)


@pytest.mark.parametrize("mode", ["instruct", "chat-instruct"])
@pytest.mark.parametrize("start", ["Okay\n</think>\n\nSo", "<think>\nOkay, so", "<think> Okay, so"])
def test_an_answer_goes_on_in_the_thought_that_the_template_began(mode: Mode, start: str) -> None:
    """Continue left the beginning out, and the thought went on as the answer."""
    parts = PromptParts((ASK,), start=start)
    prompt = style(R1, mode).render(parts)
    assert prompt.endswith(f"<A>{start}" if "<think>" in start else f"<A><think>\n{start}")
    begun = style(R1, mode).begun(prompt, parts)
    assert begun == (start if "<think>" in start else f"<think>\n{start}")
    assert style(R1, mode).clean_answer(" it is", parts, begun) == begun + " it is"


def test_a_begun_thought_belongs_to_the_message() -> None:
    parts = PromptParts((ASK,))
    prompt = style(R1).render(parts)
    begun = style(R1).begun(prompt, parts)
    assert begun == "<think>\n"
    assert style(R1).clean_answer("Hm.</think>Hi", parts, begun) == "<think>\nHm.</think>Hi"
    assert style(R1).clean_answer("<think>\nHm.", parts, begun) == "<think>\nHm."
    assert style(R1).clean_answer(" ", parts, begun) == ""
    assert style(CHATML).begun(style(CHATML).render(parts), parts) == ""


def test_only_the_template_begins_a_thought() -> None:
    """Words of a person that look like one at the end of a prompt are none."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    parts = PromptParts((Turn(role="user", content="What is <think>"),))
    assert style(source).begun(style(source).render(parts), parts) == ""


def test_no_empty_thought_is_put_before_an_answer_that_had_none() -> None:
    prompt = style(EMPTY_THOUGHT).render(PromptParts((ASK,), start="I count"))
    assert prompt.endswith("<|im_start|>assistant\nI count")


def test_a_formats_own_ends_are_stop_strings() -> None:
    template = ChatTemplate(CHATML, "", "", stop=("<|im_end|>",))
    assert PromptStyle("instruct", template, NAMES).stop_strings(own=("x",)) == ("<|im_end|>", "x")
    assert PromptStyle("chat", template, NAMES).stop_strings() == ("\nTom:", "\nAda:")
