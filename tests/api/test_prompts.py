"""From requests to prompts, without an engine: names taken off, nothing left out, models of every kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api.errors import ApiError
from core.api.prompts import GenerationRequest, read_chat_request, read_completion_request
from core.api.schema import ChatRequest, CompletionRequest
from core.api.served_model import ServedModel
from core.chat.model_prompt import ModelPrompt
from core.chat.template import ChatTemplate
from core.chat.tokens import TokenCounter
from core.chat.truncation import ContextError
from core.engine.sampling_params import Sampling
from core.personas.character import Character
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


def chat(*said: tuple[str, str], **fields: Any) -> ChatRequest:
    messages = [{"role": role, "content": text} for role, text in said]
    return ChatRequest.model_validate({"messages": messages, **fields})


@given(
    st.lists(st.sampled_from(["Ada", "Ad", ":", " ", "\n", "a", "Ada: ", "x"]), max_size=8),
    st.sampled_from(["Ada", ""]),
)
def test_what_was_said_only_grows_whatever_the_pieces(pieces: list[str], speaker: str) -> None:
    ask = GenerationRequest("", Sampling(), 1, speaker=speaker)
    whole = ask.visible_text("".join(pieces), is_done=True)
    for number in range(len(pieces) + 1):
        assert whole.startswith(ask.visible_text("".join(pieces[:number]), is_done=False))


@given(st.lists(st.sampled_from(["<think>", "<th", "\n", "a", " ", "ink>", "x"]), max_size=8))
def test_a_begun_thought_stands_once_before_what_was_said(pieces: list[str]) -> None:
    ask = GenerationRequest("", Sampling(), 1, speaker="", begun="<think>\n")
    whole = ask.visible_text("".join(pieces), is_done=True)
    assert not whole or (whole.startswith("<think>") and not whole.startswith("<think>\n<think>"))
    for number in range(len(pieces) + 1):
        assert whole.startswith(ask.visible_text("".join(pieces[:number]), is_done=False))


R1 = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize("character", [None, Character("Ada", context="Ada.")])
def test_a_thought_that_the_template_began_is_sent_and_goes_on(character: Character | None) -> None:
    asked = read_chat_request(chat(("user", "hi")), served(source=R1), character)
    assert asked.visible_text("hm</think>Hello", True) == "<think>\nhm</think>Hello"
    begun = chat(("user", "hi"), ("assistant", "<think>\nhm"), continue_final_message=True)
    asked = read_chat_request(begun, served(source=R1), character)
    assert str(asked.prompt).endswith("<assistant><think>\nhm") and asked.visible_text(", so", True) == ", so"


def test_a_chat_model_of_unknown_format_is_asked_in_plain_lines() -> None:
    asked = read_chat_request(chat(("user", "hi")), served(source=None), None)
    assert str(asked.prompt).endswith("You: hi\nAssistant:") and "\nYou:" in asked.sampling.stop


def test_a_speakers_name_is_taken_off_and_a_colon_is_not() -> None:
    assert GenerationRequest("", Sampling(), 1, speaker="Ada").visible_text(" Ada: Hello", True) == "Hello"
    assert GenerationRequest("", Sampling(), 1, speaker="").visible_text(" : Hello", True) == ": Hello"
    assert GenerationRequest("", Sampling(), 1, echo="1 + 1 =").visible_text(" 2", True) == "1 + 1 = 2"


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
    said = chat(("user", "1"), ("assistant", "It is"), continue_final_message=True)
    ask = read_chat_request(said, served(), None)
    assert ask.prompt == "<|user|>1<|end|><|assistant|>It is" and ask.continues
    assert ask.visible_text(" so", False) == " so"
    acted = read_chat_request(said, served(), ADA)
    assert (
        str(acted.prompt).endswith("<|assistant|>It is")
        and acted.continues
        and acted.visible_text(" so", False) == " so"
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
