"""A source is held against its family's class before anything is done with it, and no good one is refused for that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from core.checkpoint.judgement import judge
from core.checkpoint.text_config import PICTURE_FAMILIES
from core.common.errors import CheckpointError
from core.quantize.child import class_check
from core.quantize.child.class_check import check_tensors
from core.quantize.child.main import make
from core.quantize.families import KNOWN
from core.quantize.job_file import JobFile
from core.quantize.options import QuantizeOptions
from tests.support.checkpoints import WEIGHTS
from tests.support.family_tensors import built_models
from tests.support.plain_models import EXPERTS, change_json, make_headers, make_plain, make_plain_with_pictures

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1"
QUERY = f"{LAYER}.self_attn.q_proj"


def changed(folder: Path, change: Callable[[Tensors], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(
        {name: one.clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}, folder / WEIGHTS
    )
    return folder


def refusal(folder: Path) -> dict[str, Any]:
    with pytest.raises(CheckpointError) as raised:
        check_tensors(folder, "given")
    return {"key": raised.value.key, **raised.value.params}


def all_models(family: str) -> Iterator[Any]:
    """Every model without memory that the class of `family` builds, with and without each of its switches."""
    if family not in PICTURE_FAMILIES:
        yield from (model for _, model in built_models(family))
        return
    with torch.device("meta"):
        yield AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family]())


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(KNOWN))
def test_no_whole_model_of_a_family_is_refused(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it is read nor by its class, which is made of each."""
    unmade: list[str] = []
    monkeypatch.setattr(class_check.log, "warning", lambda text, *_, **__: unmade.append(text))
    num_checked = 0
    for model in all_models(family):
        if judge(family, json.loads(model.config.to_json_string(use_diff=False))) is None:
            check_tensors(make_headers(tmp_path, model), family)
            num_checked += 1
    assert num_checked > 0 and not unmade


def add_bias(tensors: Tensors) -> None:
    tensors[f"{QUERY}.bias"] = torch.ones(64).half()


def cut(tensors: Tensors) -> None:
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"][:48]


def take_norm(tensors: Tensors) -> None:
    del tensors[f"{LAYER}.self_attn.q_norm.weight"]
    del tensors["model.layers.0.self_attn.q_norm.weight"]


@pytest.mark.parametrize(
    ("family", "sizes", "change", "told"),
    [
        ("llama", {}, add_bias, {"key": "unexpected_weight", "name": f"{QUERY}.bias", "count": 1}),
        ("llama", {}, cut,
         {"key": "weight_shape", "name": f"{QUERY}.weight", "found": "[48, 64]", "wanted": "[64, 64]"}),
        # Only some models of the family have them.
        ("cohere", {"use_qk_norm": True}, take_norm,
         {"key": "missing_weight", "name": "model.layers.0.self_attn.q_norm.weight", "count": 2}),
    ],
)  # fmt: skip
def test_what_names_do_not_tell_is_refused_before_the_job_begins(
    tmp_path: Path, family: str, sizes: dict[str, Any], change: Callable[[Tensors], None], told: dict[str, Any]
) -> None:
    """Biases were dropped, and the perplexity before was that of the model without them."""
    folder = changed(make_plain(tmp_path / "given", family, **sizes), change)
    assert refusal(folder) == told | {"folder": "given"}
    stages: list[str] = []
    with pytest.raises(CheckpointError) as raised:
        make(JobFile("made", folder, QuantizeOptions(8, 32)), tmp_path / "work", tmp_path / "out",
             lambda stage, *_, **__: stages.append(stage))  # fmt: skip
    assert (raised.value.key, raised.value.params["folder"]) == (told["key"], "given")
    assert not stages


def test_an_expert_of_another_size_is_named(tmp_path: Path) -> None:
    """Each lies by itself in the files, all of them in one tensor of the class."""
    name = "model.layers.1.mlp.experts.2.down_proj.weight"

    def cut_one(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:, :32]

    folder = make_plain(tmp_path / "model", "qwen3_moe", **EXPERTS)
    check_tensors(folder, "given")
    found = refusal(changed(folder, cut_one))
    assert (found["key"], found["name"], found["found"]) == ("weight_shape", name, "[64, 32]")


def test_a_head_beside_a_tied_embedding_and_computed_tensors_are_no_reason(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors[f"{LAYER}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    folder = make_plain(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    check_tensors(changed(folder, add), "given")


def test_the_embedding_says_how_many_tokens_there_are(tmp_path: Path) -> None:
    """As it does for a load. gptqmodel took the configuration's word and ended in an error; then such sources were
    refused. A head of its own has as many rows."""
    folder = make_plain(tmp_path / "model")
    change_json(folder / "config.json", vocab_size=300)
    check_tensors(folder, "given")

    def cut_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:300]

    found = refusal(changed(folder, cut_head))
    assert (found["key"], found["found"], found["wanted"]) == ("weight_shape", "[300, 64]", "[384, 64]")


def test_keys_of_layers_that_have_an_earlier_ones_are_left_aside(tmp_path: Path) -> None:
    """Gemma 4's releases hold them, and its class does not read them."""
    shared = "model.layers.3.self_attn.k_proj.weight"

    def add(tensors: Tensors) -> None:
        assert shared not in tensors
        tensors[shared] = tensors[shared.replace("3", "1")]

    sizes = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "head_dim": 16, "global_head_dim": 32,
             "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0}  # fmt: skip
    folder = make_plain(tmp_path / "model", "gemma4_text", **sizes)
    check_tensors(changed(folder, add), "given")


def test_experts_of_qwen3_vl_may_lie_the_other_way(tmp_path: Path) -> None:
    """As in its releases. transformers and gptqmodel turn them."""

    def turn(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].transpose(1, 2)

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 64}
    text = EXPERTS | {"moe_intermediate_size": 96, "head_dim": 16, "rope_parameters": rope}
    folder = make_plain_with_pictures(tmp_path / "model", "qwen3_vl_moe", text, vision)
    check_tensors(folder, "given")
    assert load_file(changed(folder, turn) / WEIGHTS)["model.language_model.layers.0.mlp.experts.down_proj"].shape == (
        4,
        96,
        64,
    )
    check_tensors(folder, "given")


def test_where_the_class_cannot_be_made_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(make_plain(tmp_path / "model"), add_bias)

    def fail(*_: object) -> None:
        raise AttributeError("no such name")

    monkeypatch.setattr(class_check, "plain_config", fail)
    check_tensors(folder, "given")
    monkeypatch.undo()
    assert refusal(folder)["key"] == "unexpected_weight"
