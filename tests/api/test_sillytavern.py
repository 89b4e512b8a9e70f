"""SillyTavern's requests as its server sends them, with its own first settings and some that people change.

By its createTextGenGenerationData and src/endpoints/backends of 2026: to backends of text completion go all settings,
those of other backends too; to a "custom" chat completion a few.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server

STOP = ["\nUser:", "\nAda:"]
# What it sends to every backend of text completion.
COMMON: dict[str, Any] = {
    "prompt": "User: hello\nAda:", "model": MODEL, "max_new_tokens": 40, "max_tokens": 40, "temperature": 0.7,
    "top_p": 0.9, "typical_p": 1, "typical": 1, "sampler_seed": -1, "min_p": 0.05, "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1, "top_k": 40, "skew": 0, "min_tokens": 0, "add_bos_token": True, "smoothing_factor": 0,
    "smoothing_curve": 1, "dry_allowed_length": 2, "dry_multiplier": 0.8, "dry_base": 1.75,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]', "dry_penalty_last_n": 0, "max_tokens_second": 0,
    "stopping_strings": STOP,
    "stop": STOP, "truncation_length": 1024, "ban_eos_token": False, "skip_special_tokens": True,
    "include_reasoning": True, "top_a": 0, "tfs": 1, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1,
    "custom_token_bans": "", "banned_strings": [], "api_type": "ooba", "api_server": "http://127.0.0.1:6006/",
    "xtc_threshold": 0.1, "xtc_probability": 0.5, "nsigma": 0, "top_n_sigma": 0, "min_keep": 0,
    "adaptive_target": -0.01,
    "adaptive_decay": 0.9, "sampler_order": [6, 0, 1, 3, 4, 2, 5], "length_penalty": 1, "early_stopping": False,
}  # fmt: skip
# Beside them to all but vLLM and Aphrodite.
FURTHER: dict[str, Any] = {
    "rep_pen": 1.1, "rep_pen_range": 0, "repetition_penalty_range": 0, "guidance_scale": 1, "negative_prompt": "",
    "repeat_penalty": 1.1, "repeat_last_n": 0, "n_predict": 40, "num_predict": 40, "num_ctx": 1024, "mirostat": 0,
    "ignore_eos": False, "rep_pen_slope": 1, "tfs_z": 1,
}  # fmt: skip
OF_OOBA: dict[str, Any] = {
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "penalty_alpha": 0, "temperature_last": True,
    "do_sample": True, "sampler_priority": ["temperature", "top_p"], "num_beams": 1,
}  # fmt: skip
CHANCES = {"logprobs": 10, "n_probs": 10}
OF_OPENAI = ("prompt", "model", "temperature", "max_tokens", "top_p", "presence_penalty", "frequency_penalty", "stop")
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text-generation-webui": COMMON | FURTHER | OF_OOBA,
    "with probabilities": COMMON | FURTHER | OF_OOBA | CHANCES,
    "vLLM": COMMON | {"n": 1, "ignore_eos": False, "spaces_between_special_tokens": True, "seed": 7},
    "TabbyAPI": COMMON | FURTHER | {"repetition_decay": 0, "temperature_last": True, "speculative_ngram": 3,
                                    "json_schema": {"type": "object", "properties": {}}},
    "KoboldCpp": COMMON | FURTHER | {"grammar": 'root ::= "yes" | "no"', "trim_stop": True,
                                     "dry_sequence_breakers": ["\n", ":"]},
    "biases": COMMON | FURTHER | OF_OOBA | {"logit_bias": {"80": 2.5, "81": -100}, "seed": 3},
    "any that is like OpenAI's": {name: COMMON[name] for name in OF_OPENAI} | {"logit_bias": {}, "stream": False},
}  # fmt: skip
OF_OLLAMA = ("num_predict", "num_ctx", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty",
             "top_k", "top_p", "tfs_z", "mirostat_tau", "min_p", "stop")  # fmt: skip
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Write Ada's next reply."},
        {"role": "assistant", "content": "Hello!", "name": "Ada"},
        {"role": "user", "content": "hello", "name": "User"},
    ],
    "model": MODEL, "temperature": 1, "max_tokens": 40, "stream": False, "presence_penalty": 0, "frequency_penalty": 0,
    "top_p": 1, "stop": STOP, "logit_bias": {}, "user_name": "User", "char_name": "Ada", "type": "normal",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(api_home: Path, api_runner: Runner) -> Iterator[httpx2.Client]:
    with api_server(api_runner, api_home) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("kind", COMPLETIONS)
def test_its_text_completions_are_answered_whole_and_as_streams(client: httpx2.Client, kind: str) -> None:
    response = client.post("/v1/completions", json=COMPLETIONS[kind])
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["text"]
    with client.stream("POST", "/v1/completions", json=COMPLETIONS[kind] | {"stream": True}) as stream:
        pieces = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert pieces[-1] == "[DONE]"
    assert "".join(json.loads(piece)["choices"][0]["text"] for piece in pieces[:-1]) == choice["text"]


def test_its_chat_completions_are_answered(client: httpx2.Client) -> None:
    told = client.post("/v1/chat/completions", json=CHAT | {"n": 2, "seed": 5, "top_k": 20, "reasoning_effort": "low"})
    assert told.status_code == 200, told.text
    assert len(told.json()["choices"]) == 2 and told.json()["choices"][0]["message"]["content"]


def test_it_finds_the_model_and_talks_to_it_as_to_ollama(client: httpx2.Client) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == MODEL
    assert client.get("/api/tags").json()["models"][0]["name"] == MODEL
    # It asks these of other servers; a page of the dashboard would be taken for their answer.
    for path in ("/v1/internal/model/info", "/props", "/v1/model/list"):
        assert client.get(path).status_code == 404 and client.get(path).json()["error"]
    options = {name: (COMMON | FURTHER)[name] for name in OF_OLLAMA}
    asked = {
        "model": MODEL,
        "prompt": COMMON["prompt"],
        "stream": False,
        "keep_alive": -1,
        "raw": True,
        "options": options,
    }
    answer = client.post("/api/generate", json=asked)
    assert answer.status_code == 200 and answer.json()["response"] and answer.json()["done"]
