"""Loading: every layout and bit width gives the matrices that its packing stands for, and nothing is left to chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError, DeckError
from core.memory.kernels.registry import choose_kernel
from core.memory.kernels.spec import Device
from core.memory.model_shape import read_shape
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model, untie_head
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.reference import reference_logits

CPU = torch.device("cpu")
# bfloat16 keeps 8 bits, a relative error of 0.4 % an operation; over two layers that stays under 8 % of the spread.
TOLERANCE = 0.08

RECIPES = {
    "4 bit": Recipe(),
    "old layout": Recipe(old_layout=True),
    "act-order": Recipe(act_order=True),
    "asymmetric": Recipe(symmetric=False),
    "act-order, asymmetric, group 64": Recipe(act_order=True, symmetric=False, group_size=64),
    "no groups": Recipe(group_size=-1),
    "group 16": Recipe(group_size=16),
    "2 bit": Recipe(bits=2),
    "3 bit": Recipe(bits=3),
    "3 bit asymmetric": Recipe(bits=3, symmetric=False),
    "8 bit": Recipe(bits=8),
    "8 bit act-order": Recipe(bits=8, act_order=True),
    "no grouped heads": Recipe(num_kv_heads=4),
}


def load(folder: Path) -> torch.nn.Module:
    checkpoint = read_checkpoint(folder)
    kernel, _ = choose_kernel(checkpoint, Device("cpu"))
    with torch.inference_mode():
        return load_model(
            checkpoint, read_shape(checkpoint), kernel, DeviceMap((CPU,)), torch.bfloat16, 64, lambda _: None
        )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_loaded_model_computes_what_its_packed_matrices_stand_for(tmp_path: Path, recipe: Recipe) -> None:
    dense = make_checkpoint(tmp_path / "model", recipe)
    tokens = torch.tensor([[5, 300, 17, 42, 260, 9, 101]])
    wanted = reference_logits(tmp_path / "model", dense, tokens)
    with torch.inference_mode():
        slots = ModelRunner(load(tmp_path / "model"), num_slots=1, context_tokens=32)
        got = slots.forward(tokens, torch.arange(7).unsqueeze(0), 0, 7).float()
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
    assert wanted.std() > 0.1


def test_a_model_of_another_family_loads_as_well(tmp_path: Path) -> None:
    dense = make_checkpoint(tmp_path / "model", Recipe(model_type="mistral"))
    tokens = torch.tensor([[5, 300, 17]])
    wanted = reference_logits(tmp_path / "model", dense, tokens)
    with torch.inference_mode():
        slots = ModelRunner(load(tmp_path / "model"), num_slots=1, context_tokens=32)
        got = slots.forward(tokens, torch.arange(3).unsqueeze(0), 0, 3).float()
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


def change_tensors(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    """Write the weights anew with some tensors replaced, added or (None) left out."""
    path = next(folder.glob("*.safetensors"))
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model.layers.1.mlp.up_proj.scales": None}, "missing_weight"),
        ({"model.norm.weight": None}, "missing_weight"),
        ({"model.layers.7.mlp.up_proj.qweight": np.zeros((8, 128), np.int32)}, "config_layers"),
        ({"model.extra.weight": np.zeros(3, np.float16)}, "unexpected_weight"),
        ({"model.norm.weight": np.ones(65, np.float16)}, "weight_shape"),
        ({"model.layers.0.mlp.up_proj.qzeros": np.zeros((4, 16), np.int32)}, "config_tensors"),
    ],
    ids=[
        "scales missing",
        "norm missing",
        "layer too many",
        "tensor too many",
        "norm too long",
        "groups too many",
    ],
)
def test_a_weight_missing_unexpected_or_of_another_shape_refuses_the_load(
    tmp_path: Path, change: dict[str, np.ndarray | None], key: str
) -> None:
    make_checkpoint(tmp_path / "model")
    change_tensors(tmp_path / "model", change)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "model")
    assert caught.value.key == key


def test_tied_embeddings_need_no_head_of_their_own(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    change_tensors(tmp_path / "model", {"lm_head.weight": None})
    model = load(tmp_path / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_tied_head_is_copied_to_where_the_layers_of_a_split_model_end(tmp_path: Path) -> None:
    """It once stayed with the embedding on the first GPU: such a model ran without graphs."""
    make_checkpoint(tmp_path, Recipe())
    model: Any = load(tmp_path)
    last = torch.device("meta")
    split = DeviceMap((CPU, last), (1, 1))
    untie_head(model, split)
    assert model.lm_head.weight.device == CPU
    model.lm_head.weight = model.model.embed_tokens.weight
    untie_head(model, DeviceMap((CPU,)))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untie_head(model, split)
    assert model.lm_head.weight.device == last and model.model.embed_tokens.weight.device == CPU


def test_stored_rotary_frequencies_of_older_checkpoints_are_ignored(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    change_tensors(tmp_path / "model", {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert load(tmp_path / "model") is not None


@pytest.mark.parametrize("pad", ["384", "-1", '"<pad>"', "1e9", "[0]"])
def test_a_padding_token_that_the_embedding_does_not_have_is_no_reason_to_refuse(tmp_path: Path, pad: str) -> None:
    make_checkpoint(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"bos_token_id"', f'"pad_token_id": {pad}, "bos_token_id"'))
    assert load(tmp_path / "model").model.embed_tokens.padding_idx is None


@pytest.mark.parametrize("vocabulary", [320, 400])
def test_a_vocabulary_of_another_size_than_the_embedding_gives_way_to_its_rows(tmp_path: Path, vocabulary: int) -> None:
    """Rows are padded to a multiple of 64, or tokens are announced that the embedding never got."""
    make_checkpoint(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 384', f'"vocab_size": {vocabulary}'))
    assert read_shape(read_checkpoint(tmp_path / "model")).vocabulary == 384
    assert load(tmp_path / "model").lm_head.out_features == 384


def bias_of(module: torch.nn.Module) -> torch.Tensor | None:
    """The bias of a matrix, also of one that is kept together with others."""
    return getattr(module, "merged", module).bias


def test_a_bias_of_zeros_is_dropped_and_any_other_is_kept(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe(old_layout=True))
    name = "model.layers.0.self_attn.q_proj"
    assert bias_of(load(tmp_path / "model").get_submodule(name)) is None
    change_tensors(tmp_path / "model", {f"{name}.bias": np.full(64, 0.5, np.float16)})
    assert bias_of(load(tmp_path / "model").get_submodule(name)) is not None


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('"model_type": "llama"', '"model_type": "warpdrive"', CheckpointError),
        ('"model_type": "llama"', '"model_type": "t5"', DeckError),
        ('"num_hidden_layers": 2', '"num_hidden_layers": "two"', DeckError),
        ('"hidden_size": 64', '"hidden_size": 96', CheckpointError),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', CheckpointError),
    ],
    ids=[
        "unknown family",
        "no causal model",
        "number as text",
        "contradicts the tensors",
        "more layers than tensors",
    ],
)
def test_a_configuration_that_cannot_be_this_model_is_refused_in_words(
    tmp_path: Path, old: str, new: str, error: type[DeckError]
) -> None:
    make_checkpoint(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(error):
        load(tmp_path / "model")


def test_a_family_that_turns_whole_heads_ignores_how_much_of_a_head_is_turned(tmp_path: Path) -> None:
    """As its class does; a library of kernels puts a rope of its own in its place when it is imported."""
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"partial_rotary_factor": 0.5}))
    load(tmp_path / "model")


def test_what_transformers_says_of_a_configuration_is_quoted(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"initializer_range": 1.5}))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "model")
    assert caught.value.key == "config_unread" and "1.5" in str(caught.value.params["detail"])
