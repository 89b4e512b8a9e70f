"""The Hub's search as it comes back: what is read of it, and what a server without one is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import HfApi

from core.common.errors import DeckError
from core.hub.search import NUM_RESULTS, FoundModel, parse_results, search_models, search_route, weights_size
from tests.support.hub_standin import HubStandin


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandin]:
    for repo in ("some/Tiny-GPTQ", "some/Other-GPTQ", "some/Tiny-GGUF"):
        (tmp_path / "hub" / repo / "main").mkdir(parents=True)
    with HubStandin(tmp_path / "hub") as standin:
        yield standin


def refusal(hub: HubStandin) -> DeckError:
    with pytest.raises(DeckError) as caught:
        search_models("tiny", hub.url)
    assert "{" not in str(caught.value)
    return caught.value


def test_models_are_found_by_their_names_and_only_gptq(hub: HubStandin) -> None:
    hub.behaviour.gated = {"some/Tiny-GPTQ"}
    assert search_models("tiny", hub.url) == (
        FoundModel("some/Tiny-GPTQ", 0, 5000, "apache-2.0", "2024-09-25", is_gated=True),
    )
    assert search_models("nothing of that name", hub.url) == ()


def test_other_containers_that_run_here_are_found_too(hub: HubStandin) -> None:
    for name in ("Tiny-AWQ", "Tiny-compressed-tensors", "Tiny-GPTQ-AWQ", "Tiny-EXL3"):
        (hub.root / "some" / name / "main").mkdir(parents=True)
    found = [model.repo.removeprefix("some/") for model in search_models("tiny", hub.url)]
    assert sorted(found) == ["Tiny-AWQ", "Tiny-GPTQ", "Tiny-GPTQ-AWQ", "Tiny-compressed-tensors"]


def test_the_most_downloaded_comes_first(hub: HubStandin) -> None:
    found = search_models("", hub.url)
    assert [model.downloads for model in found] == sorted((model.downloads for model in found), reverse=True)
    assert len(found) == 2


def test_the_question_is_put_as_the_hubs_own_client_puts_it(hub: HubStandin) -> None:
    properties = ["downloads", "lastModified", "tags", "gated", "safetensors", "config"]
    list(HfApi(hub.url).list_models(search="a b&c", filter="gptq", sort="downloads", limit=NUM_RESULTS,
                                    expand=properties))  # type: ignore[arg-type]  # fmt: skip
    asked = parse_qs(urlsplit(hub.paths[-1]).query)
    assert parse_qs(urlsplit(search_route(" a b&c ")).query) == asked


def test_the_token_is_shown_to_the_endpoint(hub: HubStandin) -> None:
    search_models("tiny", hub.url, "hf_one")
    assert hub.requests[-1].headers["Authorization"] == "Bearer hf_one"


def test_a_server_without_a_search_says_so(hub: HubStandin) -> None:
    hub.behaviour.statuses["/api/models"] = 404
    assert refusal(hub).key == "hub_no_search"


def test_what_the_server_refuses_is_a_sentence(hub: HubStandin) -> None:
    hub.behaviour.statuses["/api/models"] = 429
    assert refusal(hub).key == "hub_busy"
    hub.behaviour.statuses["/api/models"] = 503
    assert refusal(hub).key == "hub_failed"


def test_a_dead_server_is_a_sentence(hub: HubStandin) -> None:
    hub.close()
    assert refusal(hub).key == "hub_unreachable"


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"[" * 100_000, b'"x"'])
def test_an_answer_that_is_no_list_is_none_of_a_hub(hub: HubStandin, body: bytes) -> None:
    hub.behaviour.bodies["/api/models"] = body
    assert refusal(hub).key == "hub_answer"


def test_odd_entries_are_left_out_and_odd_values_are_nothing() -> None:
    entries = [
        5,
        {"id": 7},
        {"id": "../../etc"},
        {"id": "<b>x</b>/y"},
        {"id": "a/b", "downloads": "many", "tags": 3, "lastModified": 1, "gated": None, "safetensors": []},
        {"id": "c/d", "downloads": 5, "tags": [1, "license:mit"]},
    ]
    assert parse_results(json.dumps(entries).encode(), "host") == (
        FoundModel("c/d", 5, None, "mit", "", is_gated=False),
        FoundModel("a/b", 0, None, "", "", is_gated=False),
    )


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"parameters": {"I32": 10, "F16": 5, "BF16": 1}}, 52),
        ({"parameters": {"I32": 10, "Q9": 5}}, None),
        ({"parameters": {"I32": -1}}, None),
        ({"parameters": {}}, None),
        (None, None),
    ],
)
def test_the_size_follows_from_the_elements_of_each_type(told: object, size: int | None) -> None:
    assert weights_size(told) == size


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ({"config": {"model_type": "qwen3_moe", "quantization_config": {"quant_method": "gptq"}}}, None),
        ({"config": {"model_type": "dbrx", "quantization_config": {"quant_method": "gptq"}}}, "family_moe"),
        ({"config": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}}, None),
        ({"config": {"model_type": "llama", "quantization_config": {"quant_method": "exl2"}}}, "other_quantization"),
        ({"config": {"model_type": "mamba", "quantization_config": {"quant_method": "exl2"}}}, "family_recurrent"),
        ({"tags": ["gptq", "jamba", "text-generation"]}, "family_recurrent"),
        ({"tags": ["gptq", "mixtral", "llama"]}, None),
        ({"config": {"model_type": ["llama"], "quantization_config": 4}, "tags": [{}]}, None),
        ({"config": []}, None),
    ],
)
def test_what_cannot_run_is_told_by_what_a_search_tells(told: dict[str, Any], key: str | None) -> None:
    (model,) = parse_results(json.dumps([{"id": "a/b", **told}]).encode(), "host")
    assert (model.refusal and model.refusal.key) == key
