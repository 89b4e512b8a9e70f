"""Experts that run one after the other compute what transformers' module of all experts does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from core.worker.model.experts import (
    ExpertTensors,
    GatedActivation,
    LoopedExperts,
    activation_of,
    has_experts,
    loop_experts,
)

HIDDEN, SIZE, COUNT, CHOSEN = 8, 6, 5, 2
SETTINGS = {
    "num_experts": COUNT,
    "num_local_experts": COUNT,
    "hidden_size": HIDDEN,
    "moe_intermediate_size": SIZE,
    "intermediate_size": SIZE,
    "hidden_act": "silu",
    "swiglu_alpha": 1.702,
    "swiglu_limit": 0.5,
    "_experts_implementation": "eager",
}


def make(experts: type[Any], **changes: Any) -> Any:
    torch.manual_seed(0)
    module = experts(SimpleNamespace(**{**SETTINGS, **changes}))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.requires_grad_(False)


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    module.weight.data = weight
    if bias is not None:
        module.bias.data = bias
    return module


def in_two(module: Any) -> list[ExpertTensors]:
    """Each expert of `module` by itself, with a matrix for gate and one for up."""
    found = []
    for number in range(COUNT):
        weight, down = module.gate_up_proj[number], module.down_proj[number]
        if module.is_transposed:
            biases, down_bias = module.gate_up_proj_bias[number], module.down_proj_bias[number]
            inputs = [linear(weight.T[begin::2], biases[begin::2]) for begin in (0, 1)]
            found.append(ExpertTensors(list(inputs), linear(down.T, down_bias)))
        else:
            inputs = [linear(part) for part in weight.chunk(2)]
            found.append(ExpertTensors(list(inputs), linear(down)))
    return found


def looped(module: Any) -> LoopedExperts:
    return loop_experts(in_two(module), activation_of(module), lambda _: pytest.fail("nothing is quantized"))


ROUTES = {
    "each token its own": torch.tensor([[0, 3], [4, 1], [2, 0], [3, 4]]),
    "all to one expert": torch.tensor([[2, 4], [2, 0], [2, 1], [2, 3]]),
    "one token": torch.tensor([[4, 1]]),
    "experts that nobody chose": torch.tensor([[1, 0], [0, 1]]),
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("experts", [Qwen3MoeExperts, GptOssExperts])
def test_looped_experts_compute_what_the_stacked_ones_do(experts: type[Any], route: torch.Tensor) -> None:
    module = make(experts)
    hidden, weights = torch.randn(len(route), HIDDEN), torch.rand(route.shape)
    torch.testing.assert_close(looped(module)(hidden, route, weights), module(hidden, route, weights))


class Times(nn.Module):
    """Multiplies by one number, which gives a row the same bits wherever it stands; torch's products do not."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_a_tokens_bits_do_not_depend_on_its_place_nor_on_what_others_choose() -> None:
    times = [Times(factor) for factor in (1e8, -1e8, 1.0, 3.0, 1e-3)]
    module = LoopedExperts([[Times(1.0)]] * COUNT, times, GatedActivation(lambda x: x))
    hidden, weights = torch.randn(4, HIDDEN), torch.rand(4, 3)
    route = torch.tensor([[0, 2, 1], [3, 4, 0], [1, 0, 2], [4, 2, 3]])
    together, order = module(hidden, route, weights), torch.tensor([2, 0, 3, 1])
    assert torch.equal(module(hidden[order], route[order], weights[order]), together[order])
    for row in range(4):
        assert torch.equal(module(hidden[[row]], route[[row]], weights[[row]]), together[[row]])


def test_a_token_that_is_no_number_spoils_no_other() -> None:
    module = looped(make(Qwen3MoeExperts))
    hidden, weights, route = torch.randn(4, HIDDEN), torch.rand(4, CHOSEN), ROUTES["all to one expert"]
    hidden[1] = torch.nan
    assert torch.isfinite(module(hidden, route, weights)).all(-1).tolist() == [True, False, True, True]


def test_the_activation_is_known_by_its_name_or_called_by_what_it_is() -> None:
    assert activation_of(make(Qwen3MoeExperts)).kind == "silu"
    clamped = activation_of(make(GptOssExperts))
    assert (clamped.kind, clamped.alpha, clamped.limit) == ("clamped_silu", 1.702, 0.5)
    gelu = activation_of(make(Qwen3MoeExperts, hidden_act="gelu"))
    assert gelu.kind == "other"
    torch.testing.assert_close(gelu.function(torch.tensor([[1.0, 2.0]])), torch.tensor([[0.8413447 * 2]]))


def test_only_a_module_with_the_tensors_of_all_experts_is_one() -> None:
    assert has_experts(make(Qwen3MoeExperts)) and has_experts(make(GptOssExperts))
    assert not has_experts(nn.Linear(2, 2))
