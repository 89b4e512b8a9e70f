"""Experts by the names of their tensors, and the MLP of each layer as configuration and tensors tell."""

from __future__ import annotations

from typing import Any

import pytest

from core.checkpoint.experts import ExpertMatrix, expert_matrix
from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import DenseMlp, Experts, read_layers
from core.common.errors import CheckpointError

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_experts_per_tok": 2,
}


def tensors(*names: str) -> dict[str, TensorInfo]:
    both = [f"model.layers.{layer}.self_attn.q_proj.qweight" for layer in (0, 1)]
    return {name: TensorInfo("f", "I32", (8, 64), 0, 0) for name in (*both, *names)}


def stacks(layer: int, count: int, owner: str = "mlp") -> list[str]:
    return [f"model.layers.{layer}.{owner}.experts.{one}.up_proj.qweight" for one in range(count)]


def test_a_tensor_of_an_expert_says_whose_it_is() -> None:
    found = expert_matrix("model.layers.3.mlp.experts.17.down_proj.qweight")
    assert found == ExpertMatrix("model.layers.3.mlp.experts", 17, "down_proj", "qweight")
    assert found.expert == "model.layers.3.mlp.experts.17"
    assert expert_matrix("model.layers.3.mlp.experts.17.gate_up_proj") == ExpertMatrix(
        "model.layers.3.mlp.experts", 17, "gate_up_proj"
    )
    for name in ("model.layers.3.mlp.experts.down_proj", "model.layers.3.mlp.shared_experts.0.up_proj.weight",
                 "model.layers.3.mlp.experts.1.norm.weight", "model.layers.3.mlp.gate.weight"):  # fmt: skip
        assert expert_matrix(name) is None


@pytest.mark.parametrize(
    ("config", "names", "mlps"),
    [
        ({}, [], [DenseMlp(128), DenseMlp(128)]),
        # Mixtral and OLMoE have one size; Qwen's files have another for their experts.
        ({"num_local_experts": 4}, stacks(0, 4) + stacks(1, 4), [Experts(4, 2, 128)] * 2),
        ({"num_experts": 4, "moe_intermediate_size": 32}, stacks(1, 4), [DenseMlp(128), Experts(4, 2, 32)]),
        ({"moe_num_experts": 4, "moe_k": 3, "num_experts_per_tok": None, "moe_intermediate_size": [32, 32]},
         stacks(0, 4), [Experts(4, 3, 32), DenseMlp(128)]),
        ({"intermediate_size": None, "moe_intermediate_size": 32}, [*stacks(0, 3), *stacks(1, 3)],
         [Experts(3, 2, 32)] * 2),
        # Shared experts: as many of the others' size, or of a size of their own.
        ({"n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 32},
         [*stacks(1, 4), "model.layers.1.mlp.shared_experts.up_proj.qweight"], [DenseMlp(128), Experts(4, 2, 32, 64)]),
        ({"num_experts": 4, "shared_expert_intermediate_size": 48, "moe_intermediate_size": 32},
         [*stacks(1, 4), "model.layers.1.mlp.shared_expert.up_proj.qweight"], [DenseMlp(128), Experts(4, 2, 32, 48)]),
        # All experts in one tensor.
        ({"num_local_experts": 4}, ["model.layers.1.mlp.experts.down_proj"], [DenseMlp(128), Experts(4, 2, 128)]),
    ],
)  # fmt: skip
def test_each_layers_mlp_is_read(config: dict[str, Any], names: list[str], mlps: list[object]) -> None:
    layers = read_layers("m", BASE | config, tensors(*names))
    assert [layer.mlp for layer in layers] == mlps


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        # No router chooses more experts than there are: the verdict said yes, and the first step failed.
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok", "5"),
        ({"moe_num_experts": 4, "num_experts_per_tok": None, "moe_k": 8}, "moe_k", "8"),
        # Told by the name that the file has, as the file has it.
        ({"num_local_experts": "4"}, "num_local_experts", '"4"'),
        ({"num_experts": 0}, "num_experts", "0"),
        ({"num_experts": 4, "num_experts_per_tok": "1"}, "num_experts_per_tok", '"1"'),
        ({"num_experts": 4, "intermediate_size": None}, "moe_intermediate_size", "null"),
    ],
)
def test_a_number_of_experts_that_cannot_be_is_named(config: dict[str, Any], name: str, value: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_layers("m", BASE | config, tensors(*stacks(0, 4), *stacks(1, 4)))
    assert (caught.value.key, caught.value.params) == ("config_number", {"folder": "m", "name": name, "value": value})


def test_a_family_that_always_chooses_two_experts_reads_no_number_for_it() -> None:
    config = {"model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 5}
    layers = read_layers("m", BASE | config, tensors(*stacks(0, 4), *stacks(1, 4)))
    assert [layer.mlp for layer in layers] == [Experts(4, 4, 128)] * 2


def test_a_number_of_chosen_experts_that_only_the_class_has_is_asked_for() -> None:
    """Qwen3 MoE chooses 8 where config.json is silent: of four the first step failed."""
    few = BASE | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32}
    silent = {name: value for name, value in few.items() if name != "num_experts_per_tok"}
    with pytest.raises(CheckpointError) as caught:
        read_layers("m", silent, tensors(*stacks(0, 4), *stacks(1, 4)))
    assert (caught.value.key, caught.value.params) == (
        "config_untold",
        {"folder": "m", "name": "num_experts_per_tok"},
    )
    layers = read_layers("m", silent | {"num_experts": 9}, tensors(*stacks(0, 9), *stacks(1, 9)))
    assert [layer.mlp for layer in layers] == [Experts(9, 8, 32)] * 2
