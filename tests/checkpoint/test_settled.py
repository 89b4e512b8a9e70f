"""What the values of tensors tell where a configuration says something else, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.settled import settle
from core.common.errors import CheckpointError
from core.memory.matrix_groups import merged_matrices
from core.memory.model_shape import read_shape
from tests.support.checkpoints import WEIGHTS, Recipe
from tests.support.packed import make_packed

K_PROJ = "model.layers.0.self_attn.k_proj"
SIZES = Recipe(hidden=128)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def make(folder: Path, packing: str, recipe: Recipe = SIZES, **settings: object) -> Checkpoint:
    make_packed(folder, packing, recipe, quantization=settings)
    return settle(read_checkpoint(folder))


def change(folder: Path, tensors: dict[str, np.ndarray | None], **config: object) -> Checkpoint:
    found = {**load_file(folder / WEIGHTS), **tensors}
    save_file({name: one for name, one in found.items() if one is not None}, folder / WEIGHTS)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return read_checkpoint(folder)


def packings(checkpoint: Checkpoint) -> set[tuple[str, bool]]:
    return {(matrix.format.packing, matrix.format.is_symmetric) for matrix in checkpoint.matrices.values()}


@pytest.mark.parametrize(("written", "said"), [("gptq_v2", "gptq"), ("gptq", "gptq_v2")])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_zeros_tell_their_version(tmp_path: Path, written: str, said: str, bits: int) -> None:
    recipe = Recipe(hidden=128, bits=bits)
    made = make(tmp_path, written, recipe, checkpoint_format=said)
    assert packings(made) == {(written, True)}
    assert made.settled is not None and made.settled.notes == ("zeros_version",)


def test_symmetric_matrices_tell_the_version_of_the_others(tmp_path: Path) -> None:
    others = {"k_proj": Recipe(symmetric=False)}
    dynamic = {".*k_proj": {"sym": False}}
    make_packed(tmp_path, "gptq_v2", SIZES, others, {"checkpoint_format": "gptq", "dynamic": dynamic})
    assert packings(settle(read_checkpoint(tmp_path))) == {("gptq_v2", True), ("gptq_v2", False)}


@pytest.mark.parametrize("said", [True, False, None])
def test_zeros_tell_whether_a_matrix_is_symmetric(tmp_path: Path, said: bool | None) -> None:
    assert packings(make(tmp_path / "a", "gptq", Recipe(hidden=128, symmetric=False), sym=said)) == {("gptq", False)}
    assert packings(make(tmp_path / "s", "gptq", sym=said)) == {("gptq", True)}


def test_zeros_of_other_containers_tell_it_too(tmp_path: Path) -> None:
    assert packings(make(tmp_path / "awq", "awq")) == {("awq", True)}
    made = make(tmp_path / "compressed", "compressed", Recipe(hidden=128, symmetric=False))
    assert packings(made) == {("pack_quantized", False)}


def test_an_order_counts_whatever_desc_act_says(tmp_path: Path) -> None:
    made = make(tmp_path / "own", "gptq", Recipe(hidden=128, act_order=True), desc_act=False)
    assert all(matrix.format.is_permuted for matrix in made.matrices.values())
    assert merged_matrices(made, permuted=True) == []
    plain = make(tmp_path / "plain", "gptq", desc_act=True)
    assert not any(matrix.format.is_permuted for matrix in plain.matrices.values())
    assert len(merged_matrices(plain)) == 4


def test_matrices_of_one_order_are_merged_and_others_not(tmp_path: Path) -> None:
    make(tmp_path, "gptq", Recipe(hidden=128, act_order=True))
    tensors = load_file(tmp_path / WEIGHTS)
    order = tensors["model.layers.0.mlp.gate_proj.g_idx"]
    made = settle(change(tmp_path, {"model.layers.0.mlp.up_proj.g_idx": order}))
    (group,) = merged_matrices(made, permuted=True)
    assert [name.rpartition(".")[2] for name in group.sizes] == ["gate_proj", "up_proj"]


@pytest.mark.parametrize("at", [-1, 4, 1])
def test_an_order_that_is_none_is_refused_with_its_tensor(tmp_path: Path, at: int) -> None:
    """A group out of range once read memory that is not the matrix's; one of another size shifts all behind it."""
    make(tmp_path, "gptq")
    order = load_file(tmp_path / WEIGHTS)[f"{K_PROJ}.g_idx"].copy()
    order[0] = at
    with pytest.raises(CheckpointError) as caught:
        settle(change(tmp_path, {f"{K_PROJ}.g_idx": order}))
    assert caught.value.key == "input_groups" and caught.value.params["tensor"] == f"{K_PROJ}.g_idx"


def test_a_tied_head_is_left_out_where_it_repeats_the_embedding(tmp_path: Path) -> None:
    make(tmp_path, "gptq")
    embedding = load_file(tmp_path / WEIGHTS)[EMBEDDING]
    made = settle(change(tmp_path, {HEAD: embedding}, tie_word_embeddings=True))
    assert made.settled is not None and (made.repeated, made.settled.notes) == ({HEAD}, ())
    size = embedding.size
    # Two pieces tell it before a load.
    assert read_checkpoint(tmp_path).repeated == {HEAD}
    assert read_shape(made).plain_elements.count(size) == 1


@pytest.mark.parametrize("other", [np.float16(0.5), np.float32(0)])
def test_a_tied_head_of_other_values_or_another_type_is_kept(tmp_path: Path, other: np.floating) -> None:
    make(tmp_path, "gptq")
    embedding = load_file(tmp_path / WEIGHTS)[EMBEDDING]
    made = settle(change(tmp_path, {HEAD: embedding + other}, tie_word_embeddings=True))
    assert made.settled is not None and (made.repeated, made.settled.notes) == (set(), ("own_head",))
    assert read_checkpoint(tmp_path).repeated == set()
    assert read_shape(made).plain_elements.count(embedding.size) == 2


def test_a_head_that_differs_in_its_end_alone_counts_once_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, "gptq")
    embedding = load_file(tmp_path / WEIGHTS)[EMBEDDING]
    head = embedding.copy()
    head[-1, -1] += 1
    checkpoint = change(tmp_path, {HEAD: head}, tie_word_embeddings=True)
    assert settle(checkpoint).repeated == set()


@pytest.mark.parametrize(("part", "dtype"), [("qweight", np.int64), ("qzeros", np.float32), ("g_idx", np.float32)])
def test_a_tensor_of_another_type_is_named(tmp_path: Path, part: str, dtype: type) -> None:
    make(tmp_path, "gptq")
    name = f"{K_PROJ}.{part}"
    odd = load_file(tmp_path / WEIGHTS)[name].astype(dtype)
    with pytest.raises(CheckpointError) as caught:
        assert change(tmp_path, {name: odd}).matrices
    assert caught.value.key == "tensor_type" and caught.value.params["tensor"] == name
