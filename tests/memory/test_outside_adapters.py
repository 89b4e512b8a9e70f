"""Adapters of what lies outside a model's layers, beside the quantized model: refused with what is true of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError
from core.memory.adapter_room import match_adapter
from tests.support.adapters import write_adapter
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint, make_matrix
from tests.support.plain_models import change_json

OUTPUTS, INPUTS, RANK = 384, 64, 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "tiny")
    return tmp_path / "tiny"


def with_head(folder: Path, model: Path, outputs: int = OUTPUTS) -> Path:
    """An adapter of the head too."""
    write_adapter(folder, model, rank=RANK)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    sides = {"lora_A": (RANK, INPUTS), "lora_B": (outputs, RANK), "base_layer": (outputs, INPUTS)}
    tensors |= {f"base_model.model.lm_head.{part}.weight": np.zeros(shape, np.float16) for part, shape in sides.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return folder


def reason(adapter: Path, model: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        match_adapter(read_adapter(adapter), read_checkpoint(model))
    return raised.value


def test_a_head_is_outside_the_layers_quantized_or_not(model: Path, tmp_path: Path) -> None:
    """A quantized head was told as one that is not."""
    adapter = with_head(tmp_path / "a", model)
    assert reason(adapter, model).key == "adapter_outside"
    tensors = load_file(model / WEIGHTS)
    parts, _ = make_matrix(np.random.default_rng(0), Recipe(), INPUTS, OUTPUTS)
    del tensors["lm_head.weight"]
    save_file(tensors | {f"lm_head.{part}": one for part, one in parts.items()}, model / WEIGHTS)
    assert "lm_head" in read_checkpoint(model).matrices
    error = reason(adapter, model)
    assert error.key == "adapter_outside" and "lm_head of tiny, which lies outside its layers" in str(error)


def test_a_head_that_is_the_embedding_is_told_as_that(model: Path, tmp_path: Path) -> None:
    """It was told as another model's."""
    adapter = with_head(tmp_path / "a", model)
    tensors = load_file(model / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, model / WEIGHTS)
    change_json(model / "config.json", tie_word_embeddings=True)
    assert reason(adapter, model).key == "adapter_tied_head"


def test_a_head_that_repeats_the_embedding_is_told_as_that(model: Path, tmp_path: Path) -> None:
    """The advice was to merge the adapter, which is refused for a model that uses its embedding as its head."""
    adapter = with_head(tmp_path / "a", model)
    tensors = load_file(model / WEIGHTS)
    own = tensors["lm_head.weight"]
    change_json(model / "config.json", tie_word_embeddings=True)
    assert reason(adapter, model).key == "adapter_outside"
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert own.shape == tensors["lm_head.weight"].shape
    save_file(tensors, model / WEIGHTS)
    assert reason(adapter, model).key == "adapter_tied_head"


def test_a_head_of_another_size_is_another_models(model: Path, tmp_path: Path) -> None:
    assert reason(with_head(tmp_path / "a", model, outputs=256), model).key == "adapter_base_shape"
