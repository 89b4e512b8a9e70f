"""Files that lack weights are refused by the names of their tensors, before a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.completeness import refuse_missing
from core.common.errors import CheckpointError
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint

LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": False}
ENDS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
NORMS = tuple(f"model.layers.{number}.input_layernorm.weight" for number in range(3))


def missing(config: dict[str, Any], *tensors: str) -> tuple[str, int] | None:
    error = refuse_missing("m", config, tensors, {}, 3)
    return None if error is None else (error.params["name"], error.params["count"])


def test_a_layer_that_lacks_what_most_layers_have_is_incomplete() -> None:
    assert missing(LLAMA, *ENDS, *NORMS) is None
    assert missing(LLAMA, *ENDS, *NORMS[:1], *NORMS[2:]) == (NORMS[1], 1)
    # A weight of one layer alone is nothing that the others lack.
    assert missing(LLAMA, *ENDS, *NORMS, "model.layers.0.self_attn.extra.weight") is None


def test_a_family_whose_layers_differ_is_not_held_to_its_other_layers() -> None:
    assert missing(LLAMA | {"model_type": "mixtral"}, *ENDS, *NORMS[1:]) is None
    assert missing(LLAMA | {"model_type": "modernbert-decoder"}, *ENDS, *NORMS[1:]) is None


def test_an_embedding_and_a_head_of_its_own_have_to_be_there() -> None:
    assert missing(LLAMA, *ENDS[1:], *NORMS) == (ENDS[0], 1)
    assert missing(LLAMA, *ENDS[:2], *NORMS) == (ENDS[2], 1)
    assert missing({"model_type": "llama", "tie_word_embeddings": True}, *ENDS[:2], *NORMS) is None
    # Where config.json says nothing, the family's class decides, which is not asked here.
    assert missing({"model_type": "gemma"}, *ENDS[:2], *NORMS) is None


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_matrix_without_one_of_its_tensors_is_incomplete(tmp_path: Path, part: str) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path, lost = tmp_path / "model" / WEIGHTS, f"model.layers.1.mlp.up_proj.{part}"
    save_file({name: value for name, value in load_file(path).items() if name != lost}, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    assert (caught.value.key, caught.value.params["name"]) == ("missing_weight", lost)


def test_a_quantized_embedding_is_refused_as_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe())
    path = tmp_path / "model" / WEIGHTS
    tensors = load_file(path)
    rows, columns = tensors.pop("model.embed_tokens.weight").shape
    tensors |= {
        "model.embed_tokens.qweight": np.zeros((rows // 8, columns), np.int32),
        "model.embed_tokens.qzeros": np.zeros((rows // 32, columns // 8), np.int32),
        "model.embed_tokens.scales": np.ones((rows // 32, columns), np.float16),
    }
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model").require_runs()
    assert caught.value.key == "quantized_embedding"
