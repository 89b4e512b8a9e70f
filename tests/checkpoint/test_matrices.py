"""What a checkpoint says of each matrix and each layer, from its configuration and its headers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint.attention import FullAttention, SlidingAttention
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.layers import DenseMlp, LayerShape
from core.common.errors import CheckpointError
from tests.support.checkpoints import Recipe, make_checkpoint, matrix_sizes

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / "plain"
    make_checkpoint(folder, Recipe())
    return read_checkpoint(folder)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(bits=bits, group_size=size) for bits in (2, 3, 4, 8) for size in (-1, 32)]
    + [Recipe(act_order=True, symmetric=False), Recipe(old_layout=True)],
)
def test_every_matrix_has_its_sides_its_format_and_its_tensors(tmp_path: Path, recipe: Recipe) -> None:
    make_checkpoint(tmp_path / "m", recipe)
    checkpoint = read_checkpoint(tmp_path / "m")
    found = {name: (one.in_features, one.out_features) for name, one in checkpoint.matrices.items()}
    assert found == matrix_sizes(recipe)
    query = checkpoint.matrices[QUERY]
    assert query.format == checkpoint.quantization
    assert query.num_groups == checkpoint.tensors[query.tensors["scales"]].shape[0]
    assert query.tensors["codes"] == f"{QUERY}.qweight"
    assert ("bias" in query.tensors) is recipe.old_layout
    stored = {name for matrix in checkpoint.matrices.values() for name in matrix.tensors.values()}
    assert stored == {name for name in checkpoint.tensors if name.rpartition(".")[0] in checkpoint.matrices}


def test_groups_are_counted_with_the_short_one(plain: Checkpoint) -> None:
    format = replace(plain.quantization, group_size=48)
    assert [format.num_groups(rows) for rows in (0, 1, 48, 49)] == [0, 1, 1, 2]
    assert [replace(format, group_size=-1).num_groups(rows) for rows in (0, 1, 49)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("part", "shape", "key"),
    [
        ("qweight", (8,), "no_matrix"),
        ("qweight", (8, 64, 1), "no_matrix"),
        ("g_idx", (128,), "config_tensors"),
        ("scales", (1, 64), "config_tensors"),
        ("qzeros", (2, 16), "config_tensors"),
    ],
)
def test_a_tensor_of_another_shape_is_named(plain: Checkpoint, part: str, shape: tuple[int, ...], key: str) -> None:
    name = f"{QUERY}.{part}"
    broken = replace(plain, tensors=plain.tensors | {name: replace(plain.tensors[name], shape=shape)})
    with pytest.raises(CheckpointError) as caught:
        assert broken.matrices
    assert caught.value.key == key
    assert name in caught.value.params.values()


FULL = FullAttention(num_heads=4, num_kv_heads=2, head_dim=16)
NEAR = SlidingAttention(num_heads=4, num_kv_heads=2, head_dim=16, window_tokens=48)


@pytest.mark.parametrize(
    ("changes", "mixers"),
    [
        ({}, [FULL, FULL]),
        ({"head_dim": 32}, [replace(FULL, head_dim=32)] * 2),
        ({"num_key_value_heads": None}, [replace(FULL, num_kv_heads=4)] * 2),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 48}, [NEAR, FULL]),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": None}, [FULL, FULL]),
        ({"layer_types": ["sliding_attention"], "sliding_window": 48}, [FULL, FULL]),
        ({"layer_types": {"a": 1}, "sliding_window": 48}, [FULL, FULL]),
    ],
)
def test_a_layers_attention_is_as_the_configuration_says(
    plain: Checkpoint, changes: dict[str, Any], mixers: list[FullAttention]
) -> None:
    layers = replace(plain, config=plain.config | changes).layers
    assert layers == tuple(LayerShape(mixer, DenseMlp(128)) for mixer in mixers)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 3}, "config_layers"),
        ({"num_hidden_layers": None}, "config_number"),
        ({"num_hidden_layers": 2.0}, "config_number"),
        ({"hidden_size": -1}, "config_number"),
        ({"head_dim": "16"}, "config_number"),
        ({"text_config": {}}, "config_number"),
    ],
)
def test_numbers_that_cannot_be_are_refused(plain: Checkpoint, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        assert replace(plain, config=plain.config | changes).layers
    assert caught.value.key == key


def test_a_huge_number_of_layers_takes_no_memory(plain: Checkpoint) -> None:
    """Families whose layers have other names have none to count; a tuple of a thousand million ended the process."""
    tensors = {name.replace("model.layers", "gpt_neox.layers"): tensor for name, tensor in plain.tensors.items()}
    with pytest.raises(CheckpointError) as caught:
        assert replace(plain, tensors=tensors, config=plain.config | {"num_hidden_layers": 2**30}).layers
    assert caught.value.key == "config_layers"
