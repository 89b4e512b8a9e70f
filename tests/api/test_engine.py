"""The API with the real engine and the starter model: what is said, counted, stopped, repeated, left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest

from core.engine.runner import Runner
from tests.support.api_server import LOAD_S, api_server

WAIT_S = 120.0
FRANCE: list = [{"role": "user", "content": "What is the capital of France?"}]
WORDS = ("sun", "river", "bread", "stone", "music", "winter", "paper", "horse")


@pytest.fixture(scope="module")
def runner(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    home = tmp_path_factory.mktemp("api_engine")
    (home / "models").mkdir()
    (home / "models" / "starter").symlink_to(starter_folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMADECK_MODELS", str(home / "models"))
        patch.setenv("LLAMADECK_DATA", str(home / "data"))
        runner = Runner()
        runner.load(home / "models" / "starter", context_tokens=256, num_slots=4)
        assert runner.wait_while_loading(LOAD_S).phase == "ready", runner.state
        yield runner
        runner.unload()


@pytest.fixture(scope="module")
def url(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(runner, tmp_path_factory.mktemp("api_keys")) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=WAIT_S)


def test_it_knows_the_capital_of_france(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="starter", messages=FRANCE, temperature=0, max_tokens=40)
    said = done.choices[0].message.content or ""
    assert "Paris" in said and said == said.lstrip()
    assert done.choices[0].finish_reason == "stop" and done.usage is not None
    again = client.chat.completions.create(model="starter", messages=FRANCE, temperature=0, max_tokens=40, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in again) == said


def test_tokens_are_counted_as_the_engine_counts(client: openai.OpenAI, url: str) -> None:
    done = client.chat.completions.create(model="starter", messages=FRANCE, max_tokens=7, seed=1)
    assert done.choices[0].finish_reason == "length" and done.usage is not None
    assert done.usage.completion_tokens == 7
    counted = httpx2.post(f"{url}/v1/tokenize", json={"messages": FRANCE}).json()
    assert done.usage.prompt_tokens == counted["count"]


def test_a_seed_repeats_and_its_choices_differ(client: openai.OpenAI) -> None:
    first, second = (
        client.completions.create(model="starter", prompt="Once upon a time", seed=5, n=2, temperature=1.5)
        for _ in range(2)
    )
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert texts[0] != texts[1]


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="starter", prompt="1, 2, 3, 4, 5,", temperature=0, max_tokens=30)
    assert "8" in whole.choices[0].text
    cut = client.completions.create(model="starter", prompt="1, 2, 3, 4, 5,", temperature=0, max_tokens=30, stop="8")
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == whole.choices[0].text.partition("8")[0]


def test_an_answer_goes_on_from_given_words(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="starter",
        messages=[*FRANCE, {"role": "assistant", "content": "The capital of France is"}],
        temperature=0,
        max_tokens=4,
        extra_body={"continue_final_message": True},
    )
    assert (done.choices[0].message.content or "").startswith(" Paris")


def test_a_full_context_ends_an_answer_as_its_length_does(client: openai.OpenAI) -> None:
    done = client.completions.create(model="starter", prompt=[5] * 249, max_tokens=100, temperature=0)
    assert done.choices[0].finish_reason == "length" and done.usage is not None
    assert done.usage.total_tokens == 256
    alone = client.completions.create(model="starter", prompt=[5] * 256, max_tokens=0, echo=True, logprobs=1)
    assert alone.usage is not None and alone.usage.total_tokens == 256
    assert alone.choices[0].logprobs is not None and len(alone.choices[0].logprobs.tokens or ()) == 256
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="starter", prompt=[5] * 256)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="starter", prompt=[49152], stream=True)
    assert caught.value.param == "prompt"


def test_answers_that_are_written_side_by_side_are_not_mixed_up(client: openai.OpenAI) -> None:
    """Eight clients at four slots, each with a word of its own that the model goes on to repeat."""

    def ask(word: str, stream: bool) -> str:
        prompt = f"{word}, " * 12 + word + ","
        if not stream:
            done = client.completions.create(model="starter", prompt=prompt, temperature=0, max_tokens=12)
            return done.choices[0].text
        pieces = client.completions.create(model="starter", prompt=prompt, temperature=0, max_tokens=12, stream=True)
        return "".join(piece.choices[0].text for piece in pieces)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, WORDS, [True, False] * 4))
    found = [{one for one in WORDS if one in text} for text in said]
    assert found == [{word} for word in WORDS], said


def test_clients_that_leave_free_the_engine(client: openai.OpenAI, runner: Runner) -> None:
    for _ in range(6):
        stream = client.completions.create(model="starter", prompt="Numbers: 1 2 3", max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    for answer in runner.running_answers:
        assert answer.wait(WAIT_S)
        assert answer.reason == "cancelled"
    done = client.chat.completions.create(model="starter", messages=FRANCE, temperature=0, max_tokens=5)
    assert done.choices[0].message.content


def test_a_prompt_is_scored_as_benchmarks_of_choices_want_it(client: openai.OpenAI) -> None:
    """lm-evaluation-harness sends ids, wants one token more, and cuts that off again."""
    ids = list(range(70, 90))
    (choice,) = client.completions.create(
        model="starter", prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True
    ).choices
    told = choice.logprobs
    assert len(told.token_logprobs) == len(told.tokens) == len(told.top_logprobs) == len(ids) + 1
    assert told.token_logprobs[0] is None and all(value < 0 for value in told.token_logprobs[1:])
    for value, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
        assert value in top.values() and value <= max(top.values())
    # Others want none.
    (alone,) = client.completions.create(model="starter", prompt=ids, max_tokens=0, logprobs=1, echo=True).choices
    assert alone.logprobs.tokens == told.tokens[:-1]
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(told.token_logprobs[1:-1], abs=1e-3)


def test_settings_of_one_answer_reach_the_model(client: openai.OpenAI) -> None:
    ask = {"model": "starter", "prompt": "The quick", "temperature": 0, "max_tokens": 6}
    biased = client.completions.create(**ask, logit_bias={"80": 100}, logprobs=0)
    assert len(set(biased.choices[0].logprobs.tokens)) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**ask, logit_bias={"999999": 1})
    assert caught.value.param == "logit_bias"
    slow = client.completions.create(**ask, extra_body={"dry_multiplier": 1, "xtc_probability": 0.5, "typical_p": 0.9})
    assert slow.usage.completion_tokens > 0


def test_a_schema_of_six_fields_is_kept_whatever_is_drawn(client: openai.OpenAI) -> None:
    fields = {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "is_tame": {"type": "boolean"},
        "toys": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
        "home": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
                 "additionalProperties": False},
    }  # fmt: skip
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}
    done = client.chat.completions.create(
        model="starter", messages=FRANCE, response_format=wanted, n=4, temperature=1.5, max_tokens=200
    )
    for choice in done.choices:
        pet = json.loads(choice.message.content or "")
        assert set(pet) == set(fields) and pet["kind"] in ("cat", "dog") and 0 <= pet["age"] <= 120
        assert choice.finish_reason == "stop"


def test_a_form_that_cannot_be_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="starter", messages=FRANCE, extra_body={"guided_regex": "(a"}, stream=is_stream
            )
        assert caught.value.code == "invalid_grammar" and "unclosed group" in caught.value.message
    answer = client.chat.completions.create(
        model="starter", messages=FRANCE, extra_body={"guided_choice": ["Paris", "Rome"]}
    )
    assert answer.choices[0].message.content in ("Paris", "Rome")


def test_a_tool_that_has_to_be_called_is_called_as_its_schema_says(client: openai.OpenAI) -> None:
    """By a model that was never taught to call one."""
    fields = {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}}
    kinds: Any = {"type": "object", "properties": fields, "required": ["city", "unit"], "additionalProperties": False}
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "description": "x", "parameters": kinds}}]
    ask: Any = {"model": "starter", "tools": tools, "temperature": 1.0, "max_tokens": 60}
    question: Any = [{"role": "user", "content": "Weather in Paris?"}]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        done = client.chat.completions.create(**ask, messages=question, tool_choice=choice).choices[0]
        (call,) = done.message.tool_calls or ()
        assert done.finish_reason == "tool_calls" and set(json.loads(call.function.arguments)) == {"city", "unit"}
    pieces = client.chat.completions.create(**ask, messages=question, tool_choice="required", stream=True)
    arguments = ""
    for piece in pieces:
        for part in piece.choices[0].delta.tool_calls or ():
            arguments += (part.function and part.function.arguments) or ""
    assert json.loads(arguments)["unit"] in ("C", "F")


CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "is_large": {"type": "boolean"}},
    "required": ["city", "is_large"],
    "additionalProperties": False,
}


def test_the_other_apis_hold_to_schemas_stops_and_required_tools_too(url: str) -> None:
    """Their requests become ours: what the engine does for one, it does for all."""
    theirs = anthropic.Anthropic(base_url=url, api_key="-", max_retries=0, timeout=WAIT_S)
    tool: Any = {"name": "look", "input_schema": CITY}
    wanted: dict[str, Any] = {"model": "starter", "max_tokens": 120, "messages": FRANCE}
    (call,) = theirs.messages.create(**wanted, tools=[tool], tool_choice={"type": "any"}).content
    assert call.type == "tool_use" and set(call.input) == {"city", "is_large"}
    told = theirs.messages.create(
        **wanted, extra_body={"output_config": {"format": {"type": "json_schema", "schema": CITY}}}
    )
    assert set(json.loads(told.content[0].text)) == {"city", "is_large"}
    stopped = theirs.messages.create(**wanted, stop_sequences=["capital"], extra_body={"temperature": 0})
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "capital")

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=WAIT_S)
    form: Any = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    response = client.responses.create(model="starter", input="Paris", text={"format": form}, max_output_tokens=120)
    assert set(json.loads(response.output_text)) == {"city", "is_large"}

    local = ollama.Client(url, timeout=WAIT_S)
    said = local.chat("starter", FRANCE, format=CITY, options={"num_predict": 120}).message.content or ""
    assert set(json.loads(said)) == {"city", "is_large"}
