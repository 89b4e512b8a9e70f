"""Log-probabilities in answers, by OpenAI's own client: whole and in streams, of chats, completions and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
import pytest

from core.api.logprob_bodies import chat_logprobs, completion_logprobs
from core.engine.protocol import TokenChance, TokenInfo
from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(api_home: Path, api_runner: Runner) -> Iterator[openai.OpenAI]:
    with api_server(api_runner, api_home) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


def test_a_chats_tokens_come_with_their_chances_only_where_that_is_asked(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
    content = told.choices[0].logprobs.content
    assert [one.token for one in content] == ["You ", "said: ", "hello "]
    assert [one.logprob for one in content] == [-0.5, -1.0, -1.5] and content[0].bytes == list(b"You ")
    assert [(one.token, one.logprob) for one in content[0].top_logprobs] == [
        ("You ", -0.5),
        ("\N{REPLACEMENT CHARACTER}", -9.0),
    ]
    plain = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert plain.choices[0].logprobs is None


def test_a_stream_tells_each_token_once(client: openai.OpenAI) -> None:
    tokens: list[str] = []
    text = ""
    for piece in client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, stream=True):
        choice = piece.choices[0]
        text += choice.delta.content or ""
        tokens += [one.token for one in (choice.logprobs.content if choice.logprobs else ())]
    assert "".join(tokens) == text == "You said: hello "
    offsets: list[int] = []
    for part in client.completions.create(model=MODEL, prompt="hello", logprobs=1, stream=True):
        if part.choices and (logprobs := part.choices[0].logprobs) is not None:
            offsets += logprobs.text_offset
    assert offsets == [0, 4, 10]


def test_a_completion_has_lists_of_one_length(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model=MODEL, prompt="hello", logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["You ", "said: ", "hello "] and logprobs.token_logprobs == [-0.5, -1.0, -1.5]
    assert logprobs.top_logprobs == [{"You ": -0.5}, {"said: ": -1.0}, {"hello ": -1.5}]
    assert logprobs.text_offset == [0, 4, 10]


def test_the_best_of_several_answers_is_sent(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="hello", best_of=3, n=2)
    assert len(done.choices) == 2 and done.choices[0].logprobs is None
    # All that were written count.
    assert done.usage.completion_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_can_be_read_alone(client: openai.OpenAI, stream: bool) -> None:
    """`max_tokens: 0`, by which evaluations ask for a prompt's chances alone, was refused as no length."""
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 0, "logprobs": 1, "echo": True}
    if stream:
        pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        choices = [piece.choices[0] for piece in pieces if piece.choices]
        usage = pieces[-1].usage
    else:
        done = client.completions.create(**asked)
        choices, usage = done.choices, done.usage
    assert "".join(choice.text for choice in choices) == "hello" and choices[-1].finish_reason == "length"
    assert not any(choice.logprobs.tokens for choice in choices if choice.logprobs is not None)
    assert usage.completion_tokens == 0 and usage.prompt_tokens == usage.total_tokens > 0


def test_nothing_is_written_where_nothing_is_asked(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(model=MODEL, prompt="hello", max_tokens=0).choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("", "length", None)


def told(*chances: tuple[str, float | None]) -> Sequence[TokenInfo]:
    return [TokenInfo(TokenChance(place, text.encode(), value)) for place, (text, value) in enumerate(chances)]


def test_a_prompts_first_token_has_no_chance_and_the_one_that_ends_is_no_text_of_a_chat() -> None:
    end = TokenInfo(TokenChance(2, b"</s>", -0.1), is_end=True)
    tokens = [*told(("The", None), (" end", -2.0)), end]
    lists = completion_logprobs(tokens)
    assert lists["token_logprobs"] == [None, -2.0, -0.1] and lists["top_logprobs"][0] is None
    assert [one["token"] for one in chat_logprobs(tokens[1:])["content"]] == [" end"]
