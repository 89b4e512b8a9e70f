"""Mixtures of experts compute what transformers' class does, from files that have each expert by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.layers import Experts
from tests.support.family_checkpoints import make_family_checkpoint
from tests.support.family_checks import SIZES, check_family

pytestmark = pytest.mark.slow

Rename = Callable[[str], str]
FOUR: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL: dict[str, Any] = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def unchanged(name: str) -> str:
    return name


def as_mixtral(name: str) -> str:
    """Of the releases of 2023 and 2024."""
    for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace(".mlp.router.", ".mlp.gate.").replace(".mlp.", ".block_sparse_moe.")


def as_ernie(name: str) -> str:
    return name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")


FAMILIES: dict[str, tuple[dict[str, Any], Rename]] = {
    "qwen3_moe": ({"model_type": "qwen3_moe", **SMALL, "head_dim": 32, "norm_topk_prob": True}, unchanged),
    "qwen3_moe, every second layer": ({"model_type": "qwen3_moe", **SMALL, "decoder_sparse_step": 2}, unchanged),
    "qwen2_moe": ({"model_type": "qwen2_moe", **SMALL, "shared_expert_intermediate_size": 96}, unchanged),
    "mixtral": ({"model_type": "mixtral", **SIZES, **FOUR, "sliding_window": None}, as_mixtral),
    "mixtral as it is now": ({"model_type": "mixtral", **SIZES, **FOUR, "sliding_window": None}, unchanged),
    "phimoe": ({"model_type": "phimoe", **SIZES, **FOUR, "sliding_window": None}, as_mixtral),
    "olmoe": ({"model_type": "olmoe", **SIZES, "num_experts": 4, "num_experts_per_tok": 2}, unchanged),
    "glm4_moe": ({"model_type": "glm4_moe", **SIZES, "n_routed_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16,
                  "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5, "use_qk_norm": True}, unchanged),
    "dots1": ({"model_type": "dots1", **SIZES, "n_routed_experts": 4, "num_experts_per_tok": 2,
               "moe_intermediate_size": 64, "n_shared_experts": 2, "first_k_dense_replace": 1, "head_dim": 16,
               "n_group": 1, "topk_group": 1, "layer_types": ["full_attention"] * 2}, unchanged),
    "ernie4_5_moe": ({"model_type": "ernie4_5_moe", **SIZES, "moe_num_experts": 4, "moe_k": 2, "head_dim": 16,
                      "moe_intermediate_size": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
                      "moe_layer_end_index": 1, "moe_layer_interval": 1}, as_ernie),
    "hunyuan_v1_moe": ({"model_type": "hunyuan_v1_moe", **SIZES, "num_experts": 4, "moe_topk": [2, 2],
                        "head_dim": 16}, unchanged),
    "minimax_m2": ({"model_type": "minimax_m2", **SIZES, **FOUR, "head_dim": 16, "rotary_dim": 8}, as_mixtral),
}  # fmt: skip


@pytest.mark.parametrize(("config", "rename"), FAMILIES.values(), ids=FAMILIES.keys())
def test_a_mixture_of_experts_computes_what_its_class_does(
    tmp_path: Path, config: dict[str, Any], rename: Rename
) -> None:
    model = make_family_checkpoint(tmp_path / "model", config, rename)
    layers = read_checkpoint(tmp_path / "model").layers
    assert any(isinstance(layer.mlp, Experts) and layer.mlp.experts_per_token == 2 for layer in layers)
    check_family(tmp_path / "model", model)
