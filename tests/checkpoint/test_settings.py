"""Settings that older programs left out, called otherwise or stored as tensors: the shapes tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint
from tests.support.packed import make_packed


def make(folder: Path, recipe: Recipe, settings: dict[str, Any] | None = None) -> Path:
    """A checkpoint without a quantization in config.json, and with `settings` in quantize_config.json if any."""
    make_checkpoint(folder, recipe)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    if settings is not None:
        (folder / "quantize_config.json").write_text(json.dumps(settings))
    return folder


def add_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    "recipe",
    [
        *(Recipe(bits=bits, group_size=size) for bits in (2, 3, 4, 8) for size in (-1, 16, 32, 64)),
        Recipe(symmetric=False),
        Recipe(act_order=True),
        Recipe(act_order=True, symmetric=False, bits=3),
        Recipe(act_order=True, group_size=-1),
        # The last group of an input of 96 is shorter.
        Recipe(hidden=96, intermediate=160, group_size=64),
    ],
    ids=str,
)
def test_without_any_settings_the_tensors_tell_them(tmp_path: Path, recipe: Recipe) -> None:
    """GPTQ-for-LLaMa wrote none; people named the file llama-7b-4bit-128g.safetensors."""
    found = read_checkpoint(make(tmp_path / "m", recipe)).quantization
    assert (found.bits, found.group_size, found.packing) == (recipe.bits, recipe.group_size, "gptq")
    assert found.is_symmetric == recipe.symmetric
    assert found.is_permuted == (recipe.act_order and recipe.group_size > 0)


def test_a_matrix_without_an_order_tells_its_bits_by_its_zeros(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", Recipe(bits=8))
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}, folder / WEIGHTS)
    assert read_checkpoint(folder).quantization.label == "8 bit, group 32"


def test_symmetric_zeros_of_version_2_are_known_by_their_value(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", Recipe())
    tensors = load_file(folder / WEIGHTS)
    zeros = {name: np.full_like(tensor, -0x77777778) for name, tensor in tensors.items() if name.endswith("qzeros")}
    add_tensors(folder, zeros)
    found = read_checkpoint(folder).quantization
    assert (found.packing, found.is_symmetric) == ("gptq_v2", True)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"bits": 4, "groupsize": 32, "desc_act": False}, "4 bit, group 32"),
        ({"wbits": 4, "groupsize": 32, "act-order": True}, "4 bit, group 32, act-order"),
        ({"wbits": 4, "group_size": None}, "4 bit, group 32"),
        ({"bits": 4, "groupsize": 128, "group_size": 32}, "4 bit, group 32"),
        ({"quant_method": "gptq"}, "4 bit, group 32"),
        ({"load_in_4bit": True}, "4 bit, group 32"),
        ({"bits": 4}, "4 bit, group 32"),
        ({"bits": "4", "group_size": "32", "desc_act": "false", "sym": "True"}, "4 bit, group 32"),
        ({"bits": 4.0, "groupsize": "32", "desc_act": "true"}, "4 bit, group 32, act-order"),
        ({"quant_method": "gptq_marlin", "weight_bits": 4, "group_size": 32}, "4 bit, group 32"),
        ({"quant_method": "gptq_marlin"}, "4 bit, group 32"),
    ],
)
def test_settings_under_older_names_and_in_part_are_taken(tmp_path: Path, settings: dict, label: str) -> None:
    assert read_checkpoint(make(tmp_path / "m", Recipe(), settings)).quantization.label == label


def test_settings_of_text_generation_inference_are_no_weights(tmp_path: Path) -> None:
    """They lie as three tensors of one number beside the weights."""
    folder = make(tmp_path / "m", Recipe(group_size=16))
    own = {"gptq_bits": 4, "gptq_groupsize": 16, "gptq_sym": 1, "gptq_checkpoint_format": 0}
    add_tensors(folder, {name: np.array(value, np.int64) for name, value in own.items()})
    checkpoint = read_checkpoint(folder)
    assert checkpoint.quantization.label == "4 bit, group 16"
    assert not own.keys() & checkpoint.tensors.keys()


def test_weights_without_settings_that_are_not_gptqs_are_not_quantized(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", Recipe())
    save_file({"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.float16)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert caught.value.key == "not_quantized"


@pytest.mark.parametrize("bits", ["four", "", "4.5", True, "99999999999999999999"])
def test_a_text_that_is_no_number_of_bits_is_named(tmp_path: Path, bits: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(make(tmp_path / "m", Recipe(), {"bits": bits, "group_size": 32}))
    assert caught.value.key == "bits"


def test_settings_as_deep_as_a_stranger_likes_are_no_fault(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bits": "4"}
    for _ in range(400):
        settings = {"bits": "4", "group_size": "32", "dynamic": settings}
    assert read_checkpoint(make(tmp_path / "m", Recipe(), settings)).quantization.label == "4 bit, group 32"


def test_numbers_in_texts_count_in_every_container(tmp_path: Path) -> None:
    for packing, settings in (
        ("awq", {"bits": "4", "group_size": "32"}),
        ("auto_round", {"bits": "4", "group_size": "32"}),
        ("compressed", {"config_groups": {"g": {"weights": {"num_bits": "4", "group_size": "32"}}}}),
    ):
        make_packed(tmp_path / packing, packing, quantization=settings)
        found = read_checkpoint(tmp_path / packing).quantization
        assert (found.bits, found.group_size) == (4, 32), packing


@pytest.mark.parametrize("settings", [{"checkpoint_format": "gptq_marlin"}, {"quant_method": "gptq_marlin"}])
def test_what_is_stored_in_the_order_of_a_kernel_is_refused_by_its_tensors(tmp_path: Path, settings: dict) -> None:
    """vLLM keeps GPTQ's names for it, auto-gptq has names of its own."""
    settings = {"bits": 4, "group_size": 32, "is_marlin_format": True} | settings
    folder = make(tmp_path / "m", Recipe(), settings)
    tensors = load_file(folder / WEIGHTS)
    tiles = {
        name: one.reshape(-1)[: one.size].reshape(one.shape[0] // 2, one.shape[1] * 2)
        for name, one in tensors.items()
        if name.endswith(".qweight")
    }
    add_tensors(folder, tiles)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder).matrices  # noqa: B018
    assert (caught.value.key, caught.value.params["format"]) == ("format", "marlin")
    own = {".qweight": ".B", ".scales": ".s", ".qzeros": ".workspace"}
    named = {
        name.removesuffix(end) + new: tensors[name]
        for name in tensors
        for end, new in own.items()
        if name.endswith(end)
    }
    save_file(named | {"model.norm.weight": tensors["model.norm.weight"]}, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert (caught.value.key, caught.value.params["format"]) == ("format", "marlin")


@pytest.mark.parametrize("settings", [None, {"bits": 4, "group_size": -1}])
def test_the_first_layout_of_all_is_refused_by_its_name(tmp_path: Path, settings: dict | None) -> None:
    """Scales and zero points of an output were two numbers of their own, before there were groups."""
    folder = make(tmp_path / "m", Recipe(), settings)
    tensors = {
        name: one for name, one in load_file(folder / WEIGHTS).items() if not name.endswith((".qzeros", ".g_idx"))
    }
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name].T[:, :1].copy()
        tensors[name.replace(".scales", ".zeros")] = tensors[name]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert caught.value.key == "first_gptq_layout"
    assert str(caught.value.params["name"]).endswith(".zeros")


@pytest.mark.parametrize(
    ("file", "key"),
    [(None, "tokenizer_missing"), ("qwen.tiktoken", "tokenizer_kind"), ("tekken.json", "tokenizer_kind")],
)
def test_a_model_without_a_tokenizer_that_is_read_does_not_run(tmp_path: Path, file: str | None, key: str) -> None:
    make_checkpoint(tmp_path / "m", Recipe())
    (tmp_path / "m" / "tokenizer.json").unlink()
    if file is not None:
        (tmp_path / "m" / file).write_text("")
    checkpoint = read_checkpoint(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.require_runs()
    assert caught.value.key == key
    (tmp_path / "m" / "tokenizer.model").write_text("")
    read_checkpoint(tmp_path / "m").require_runs()


STRAYS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": (8,),
    "model.layers.0.self_attn.rotary_emb.cos_cached": (1, 1, 256, 16),
    "model.layers.0.self_attn.rotary_emb.sin_cached": (1, 1, 256, 16),
    "model.layers.0.self_attn.q_proj.wf": (1, 8, 1),
    "model.layers.0.self_attn.q_proj.wf_unsqueeze_zero": (1, 1, 8),
    "transformer.h.0.attn.masked_bias": (),
    "transformer.h.0.attn.bias": (1, 1, 256, 256),
    "gpt_neox.layers.0.attention.bias": (1, 1, 256, 256),
    "model.embeddings.position_ids": (1, 256),
    "gptq_bits": (1,),
    "model.layers.0.self_attn.bias": (1, 1, 64, 64),
    "model.layers.0.self_attn.k_scale": (1,),
    "model.layers.0.self_attn.attn.v_scale": (2, 1, 1),
    "model.layers.0.self_attn.k_proj.k_scale": (),
    "model.layers.0.self_attn.v_proj.output_scale": (1,),
}


@pytest.mark.parametrize(("name", "shape"), STRAYS.items())
def test_a_computed_tensor_is_neither_counted_nor_loaded(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    make_checkpoint(tmp_path / "m", Recipe())
    before = read_checkpoint(tmp_path / "m")
    add_tensors(tmp_path / "m", {name: np.ones(shape, np.float16)})
    after = read_checkpoint(tmp_path / "m")
    assert (after.tensors.keys(), after.size_bytes) == (before.tensors.keys(), before.size_bytes)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.h.0.attn.bias", (64,)),
        ("model.layers.0.self_attn.wf.weight", (64, 64)),
        ("model.layers.0.mlp.adapter.weight", (64, 64)),
    ],
)
def test_an_unknown_tensor_with_the_shape_of_a_weight_is_kept(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    make_checkpoint(tmp_path / "m", Recipe())
    add_tensors(tmp_path / "m", {name: np.ones(shape, np.float16)})
    assert name in read_checkpoint(tmp_path / "m").tensors
