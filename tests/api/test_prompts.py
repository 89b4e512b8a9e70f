"""From requests to prompts, without an engine: names taken off, nothing left out, models of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api.completion_prompts import read_completion_request
from core.api.errors import ApiError
from core.api.generation_request import GenerationRequest
from core.api.message_fields import Message
from core.api.prompts import read_chat_request, render_messages
from core.api.schema import ChatRequest, CompletionRequest
from core.api.served_model import ServedModel
from core.chat.model_prompt import ModelPrompt
from core.chat.template import ChatTemplate
from core.chat.tokens import TokenCounter
from core.chat.truncation import ContextError
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.personas import lorebooks
from core.personas.attached import with_attached
from core.personas.character import Character
from core.personas.lorebooks import Book, Lorebooks
from core.personas.user import UserPersona, persona_file, save_persona

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ADA = Character("Ada", context="{{char}} teaches {{user}}.", example_dialogue="{{user}}: 1+1?\n{{char}}: 2.")
# So many characters count as a token while a model has no tokenizer.json.
CHARS_PER_TOKEN = 3


@pytest.fixture(autouse=True)
def no_persona(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))


def served(name: str = "some-chat", source: str | None = CHATML, context_tokens: int = 1000) -> ServedModel:
    counter = TokenCounter(None)
    model = ModelPrompt(name, None, ChatTemplate(source, "", ""), counter, counter.count)
    return ServedModel(model, context_tokens, 1, {"top_k": 7}, 0)


def said(asked: GenerationRequest, text: str, is_done: bool = True) -> str:
    return asked.visible_parts(text, is_done).answer


def chat(*told: tuple[str, str], **fields: Any) -> ChatRequest:
    messages = [{"role": role, "content": text} for role, text in told]
    return ChatRequest.model_validate({"messages": messages, **fields})


@given(
    st.lists(st.sampled_from(["Ada", "Ad", ":", " ", "\n", "a", "Ada: ", "x"]), max_size=8),
    st.sampled_from(["Ada", ""]),
)
def test_what_was_said_only_grows_whatever_the_pieces(pieces: list[str], speaker: str) -> None:
    ask = GenerationRequest("", Sampling(), 1, speaker=speaker)
    whole = said(ask, "".join(pieces))
    for number in range(len(pieces) + 1):
        assert whole.startswith(said(ask, "".join(pieces[:number]), is_done=False))


@given(st.lists(st.sampled_from(["<think>", "<th", "\n", "a", " ", "ink>", "x", "</think>", "Ada: "]), max_size=8))
def test_a_thought_and_what_was_said_only_grow(pieces: list[str]) -> None:
    ask = GenerationRequest("", Sampling(), 1, speaker="Ada", thought=ThoughtRules(is_open=True))
    whole = ask.visible_parts("".join(pieces), is_done=True)
    assert not whole.thought.startswith("<think>")
    for number in range(len(pieces) + 1):
        parts = ask.visible_parts("".join(pieces[:number]), is_done=False)
        assert whole.thought.startswith(parts.thought) and whole.answer.startswith(parts.answer)


R1 = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize("character", [None, Character("Ada", context="Ada.")])
def test_a_thought_that_the_template_began_is_sent_and_goes_on(character: Character | None) -> None:
    asked = read_chat_request(chat(("user", "hi")), served(source=R1), character)
    parts = asked.visible_parts("hm</think>Hello", True)
    assert (parts.thought, parts.answer) == ("hm", "Hello")
    begun = chat(("user", "hi"), ("assistant", "<think>\nhm"), continue_final_message=True)
    asked = read_chat_request(begun, served(source=R1), character)
    assert str(asked.prompt).endswith("<assistant><think>\nhm")
    parts = asked.visible_parts(", so</think>Hello", True)
    assert (parts.thought, parts.answer) == (", so", "Hello")
    over = chat(("user", "hi"), ("assistant", "<think>\nhm</think>Hel"), continue_final_message=True)
    asked = read_chat_request(over, served(source=R1), character)
    assert asked.thought is None and said(asked, "lo") == "lo"


SWITCHED = R1 + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ reasoning_effort or '' }}"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, ""),
        ({"enable_thinking": False}, "False"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "True"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "False"),
        ({"reasoning_effort": "none"}, "False"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "high", "enable_thinking": True}, "Truehigh"),
        ({"chat_template_kwargs": {"messages": "x", "unknown": 1}}, ""),
    ],
)
def test_what_a_client_says_of_thinking_reaches_the_template(fields: dict[str, Any], end: str) -> None:
    asked = read_chat_request(chat(("user", "hi"), **fields), served(source=SWITCHED), None)
    assert str(asked.prompt).endswith(f"<assistant><think>\n{end}")


def test_tokens_are_counted_of_what_the_template_writes_with_its_variables() -> None:
    messages = [Message(role="user", content="hi")]
    prompt = render_messages(messages, served(source=SWITCHED), {"enable_thinking": False})
    assert prompt.endswith("<think>\nFalse") and not render_messages(messages, served(), {}).endswith("False")


def test_a_budget_goes_to_the_engine_and_earlier_thoughts_to_the_template() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}|{% endfor %}"
    thought = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    messages = [{"role": "user", "content": "hi"}, thought, {"role": "user", "content": "so"}]
    request = ChatRequest.model_validate({"messages": messages, "thinking_budget": 9})
    asked = read_chat_request(request, served(source=source), None)
    assert "|hi|hm|Hello|" in str(asked.prompt)
    assert asked.thought is not None and asked.thought.budget_tokens == 9
    newer = ChatRequest.model_validate({"messages": [messages[0], {**thought, "reasoning": "hm"}]})
    assert newer.messages[1].reasoning_content == "hm"


def test_a_chat_model_of_unknown_format_is_asked_in_plain_lines() -> None:
    asked = read_chat_request(chat(("user", "hi")), served(source=None), None)
    assert str(asked.prompt).endswith("You: hi\nAssistant:") and "\nYou:" in asked.sampling.stop


def test_a_speakers_name_is_taken_off_and_a_colon_is_not() -> None:
    assert said(GenerationRequest("", Sampling(), 1, speaker="Ada"), " Ada: Hello") == "Hello"
    assert said(GenerationRequest("", Sampling(), 1, speaker=""), " : Hello") == ": Hello"
    assert said(GenerationRequest("", Sampling(), 1, echo="1 + 1 ="), " 2") == "1 + 1 = 2"


def test_messages_go_through_the_models_template_as_they_are() -> None:
    ask = read_chat_request(
        chat(("developer", "Be brief."), ("user", "1"), ("user", "2"), max_tokens=9), served(), None
    )
    assert ask.prompt == "<|system|>Be brief.<|end|><|user|>1<|end|><|user|>2<|end|><|assistant|>"
    assert (ask.sampling.max_new_tokens, ask.sampling.top_k, ask.sampling.stop) == (9, 7, ())


def test_without_a_limit_an_answer_has_what_the_context_leaves() -> None:
    assert read_chat_request(chat(("user", "1")), served(), None).sampling.max_new_tokens == 1000
    both = chat(("user", "1"), max_tokens=5, max_completion_tokens=6)
    assert read_chat_request(both, served(), None).sampling.max_new_tokens == 6
    (ask,) = read_completion_request(CompletionRequest.model_validate({"prompt": "x"}), served())
    assert ask.sampling.max_new_tokens == 16


def test_a_message_that_goes_on_is_left_open() -> None:
    open_chat = chat(("user", "1"), ("assistant", "It is"), continue_final_message=True)
    ask = read_chat_request(open_chat, served(), None)
    assert ask.prompt == "<|user|>1<|end|><|assistant|>It is" and ask.continues
    assert said(ask, " so", is_done=False) == " so"
    acted = read_chat_request(open_chat, served(), ADA)
    assert (
        str(acted.prompt).endswith("<|assistant|>It is")
        and acted.continues
        and said(acted, " so", is_done=False) == " so"
    )


def test_a_model_that_was_not_taught_to_chat_gets_plain_lines() -> None:
    ask = read_chat_request(chat(("system", "A talk."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "So")),
                   served("plain-7b", None), None)  # fmt: skip
    assert ask.prompt == "A talk.\n\nYou: Hi\nAssistant: Yes?\nYou: So\nAssistant:"
    assert ask.sampling.stop == ("\nYou:", "\nAssistant:") and ask.speaker == "Assistant"


def test_a_character_is_put_as_on_the_page_and_system_texts_find_a_place() -> None:
    said = chat(("system", "Speak Latin."), ("user", "Salve"), ("assistant", "Ave"), ("system", "It rains."), stop="X")
    ask = read_chat_request(said, served(), ADA)
    prompt = str(ask.prompt)
    system, rest = prompt.split("<|end|>", 1)
    assert "Speak only as Ada." in system and "Speak Latin." in system and "Ada teaches friend." in system
    assert "1+1?" in system, "the example dialogue"
    assert rest == "<|user|>Salve<|end|><|assistant|>Ave<|end|><|user|>It rains.<|end|><|assistant|>"
    assert ask.sampling.stop == ("\nfriend:", "\nAda:", "X") and ask.speaker == "Ada"


def test_a_character_knows_its_further_lorebooks_and_none_of_all_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_LOREBOOKS", str(tmp_path / "books"))
    for name in ("Town", "Everywhere"):
        entry = {"keys": ["hut"], "content": f"Lore of {name}.", "enabled": True, "insertion_order": 1}
        Lorebooks().add(Book({"name": name, "entries": [entry]}, in_all_chats=name == "Everywhere"))
    ada = replace(ADA, extensions=with_attached({}, ["Town", "gone"]))
    prompt = str(read_chat_request(chat(("user", "A hut?")), served(), ada).prompt)
    assert "Lore of Town." in prompt and "Everywhere" not in prompt
    assert "Lore of" not in str(read_chat_request(chat(("user", "A hut?")), served(), ADA).prompt)
    # Files of megabytes are not read anew for each request.
    monkeypatch.setattr(lorebooks, "_read_file", None)
    assert prompt == str(read_chat_request(chat(("user", "A hut?")), served(), ada).prompt)
    # A folder that cannot be read keeps no character from answering.
    (tmp_path / "none").write_text("")
    monkeypatch.setenv("LLAMADECK_LOREBOOKS", str(tmp_path / "none"))
    assert "Lore of" not in str(read_chat_request(chat(("user", "A hut?")), served(), ada).prompt)


def test_a_long_chat_with_a_character_gives_up_examples_and_room_but_no_message() -> None:
    said = [("user" if number % 2 == 0 else "assistant", f"{number:04} " + "word " * 50) for number in range(9)]
    limit = sum(len(text) for _, text in said) // CHARS_PER_TOKEN + 150
    prompt = str(read_chat_request(chat(*said), served(context_tokens=limit), ADA).prompt)
    assert all(f"{number:04} " in prompt for number in range(9))
    with pytest.raises(ApiError) as caught:
        read_chat_request(chat(*said), served(context_tokens=limit - 150), ADA)
    assert caught.value.key == "api_too_long"
    with pytest.raises(ContextError):
        read_chat_request(chat(("user", "word " * 5000)), served(), ADA)


def test_seeds_are_one_for_each_choice_and_never_out_of_range() -> None:
    ask = read_chat_request(chat(("user", "1"), seed=2**63 - 1, n=3), served(), None)
    assert [ask.sampling_of(choice).seed for choice in range(3)] == [2**63 - 1, 0, 1]
    assert read_chat_request(chat(("user", "1")), served(), None).sampling_of(1).seed is None


def test_a_character_answers_the_owner_of_the_key_and_nobody_else() -> None:
    save_persona(UserPersona("Kim", "A cook."))
    save_persona(UserPersona("Ann", "A spy."), "id ann")
    for owner, there, absent in (("", "Kim", "spy"), ("id ann", "A spy.", "Kim"), ("id bob", "friend", "spy")):
        prompt = str(read_chat_request(chat(("user", "1")), served(), ADA, owner).prompt)
        assert there in prompt and absent not in prompt
    persona_file("id ann").path.write_text("- damaged")
    assert "friend" in str(read_chat_request(chat(("user", "1")), served(), ADA, "id ann").prompt)


def test_the_log_probabilities_of_a_long_prompt_are_told_within_a_limit() -> None:
    """Twenty for each token of a long context were hundreds of megabytes before a byte of them was sent."""
    asked = {"prompt": "x" * CHARS_PER_TOKEN * 20_000, "echo": True, "max_tokens": 1}
    far = served(context_tokens=100_000)
    (one,) = read_completion_request(CompletionRequest.model_validate(asked | {"logprobs": 5}), far)
    assert one.options.prompt_logprobs
    for more in ({"logprobs": 20}, {"logprobs": 5, "n": 3}):
        with pytest.raises(ApiError) as caught:
            read_completion_request(CompletionRequest.model_validate(asked | more), far)
        assert caught.value.key == "api_echo"
    (free,) = read_completion_request(CompletionRequest.model_validate(asked | {"logprobs": 20, "echo": False}), far)
    assert not free.options.prompt_logprobs
