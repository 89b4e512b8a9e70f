"""Experts with their router and norm in a few kernels, against transformers' own blocks; on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.ernie4_5_moe import modeling_ernie4_5_moe as ernie
from transformers.models.glm4_moe import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3

from core.worker.decode import fused_experts
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts, find_expert_modules, find_rule
from core.worker.decode.fused_modules import FusedNorm
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers
from core.worker.kernels import router_kernel
from core.worker.kernels.expert_kernels import expert_kernels_for
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import pair_kernels_for
from core.worker.kernels.router_kernel import RouterWeights, RoutingRule, router_kernels_for
from core.worker.model.paged_cache import PagedCache
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.expert_stacks import make_stack
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
CPU = torch.device("cpu")
HIDDEN, INTERMEDIATE, NUM_EXPERTS, CHOSEN = 128, 64, 10, 3
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "moe_intermediate_size": INTERMEDIATE,
    "num_experts_per_tok": CHOSEN,
}
QWEN2 = {"num_experts": NUM_EXPERTS, "shared_expert_intermediate_size": 64}
GLM = {"n_routed_experts": NUM_EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
GROUPS = {"n_group": 2, "topk_group": 1}
ERNIE = {"moe_num_experts": NUM_EXPERTS, "moe_k": CHOSEN, "moe_num_shared_experts": 1}


def qwen3_block(norm_topk_prob: bool) -> Any:
    config = qwen3.Qwen3MoeConfig(num_experts=NUM_EXPERTS, norm_topk_prob=norm_topk_prob, **SIZES)
    return qwen3.Qwen3MoeSparseMoeBlock(config)


BLOCKS = {
    "qwen3_moe": lambda: qwen3_block(True),
    "qwen3_moe, not normalized": lambda: qwen3_block(False),
    "qwen2_moe": lambda: qwen2.Qwen2MoeSparseMoeBlock(qwen2.Qwen2MoeConfig(**QWEN2, **SIZES)),
    "mixtral": lambda: mixtral.MixtralSparseMoeBlock(mixtral.MixtralConfig(num_local_experts=NUM_EXPERTS, **SIZES)),
    # transformers' own class, whose name gptqmodel gives to another one in a process that loads such a model.
    "glm4_moe": lambda: Glm4MoeMoE(Glm4MoeConfig(routed_scaling_factor=2.5, **GLM, **SIZES)),
    "glm4_moe, in groups": lambda: Glm4MoeMoE(Glm4MoeConfig(**GLM | GROUPS, **SIZES)),
    "ernie4_5_moe": lambda: ernie.Ernie4_5_MoeSparseMoeBlock(ernie.Ernie4_5_MoeConfig(**ERNIE, **SIZES)),
}
RULES = {
    "qwen3_moe": RoutingRule(False, True, True, True),
    "qwen3_moe, not normalized": RoutingRule(False, False, True, True),
    "qwen2_moe": RoutingRule(False, False, True, True),
    "mixtral": RoutingRule(False, True, True, False),
    "glm4_moe": RoutingRule(True, True, False, False, scale=2.5),
    "ernie4_5_moe": RoutingRule(False, True, False, True, least_sum=1e-12),
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused_experts, "NUM_SAMPLES", 8)
    with cuda_on_cpu(), kernels_on_cpu(), torch.inference_mode():
        yield


class Attention(nn.Module):
    """Nothing that is recognized."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states.flip(-1), None


class Layer(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        weights = [nn.Parameter((torch.rand(HIDDEN, generator=random) + 0.5).half()) for _ in range(2)]
        self.input_layernorm, self.post_attention_layernorm = (FusedNorm(weight, 1e-5) for weight in weights)
        self.self_attn, self.mlp = Attention(), mlp

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden = hidden_states + self.self_attn(self.input_layernorm(hidden_states))[0]
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


def make_layer(name: str) -> Layer:
    """A layer with the block, whose experts are packed."""
    torch.manual_seed(2)
    block: Any = BLOCKS[name]()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    for buffer_name, buffer in block.named_buffers():
        if "correction" in buffer_name:
            buffer.copy_(torch.rand(buffer.shape) * 0.2)
    format = CodeFormat(4, 64, False)
    stacks = [
        make_stack(NUM_EXPERTS, *sides, format, torch.float16, False, 3).matrix
        for sides in ((HIDDEN, 2 * INTERMEDIATE), (INTERMEDIATE, HIDDEN))
    ]
    kernels = expert_kernels_for(torch.float16, format, CPU)
    block.experts = PackedExperts(stacks[0], stacks[1], (kernels, kernels), pair_kernels_for(torch.float16, CPU))
    return Layer(block.half())


@pytest.mark.parametrize("name", RULES)
def test_experts_with_their_router_compute_the_block(name: str) -> None:
    """Few rows and many, which routers read in fours; a row alone gives the same bits as among others."""
    layer = make_layer(name)
    modules = find_expert_modules(layer)
    assert modules is not None
    rule = find_rule(modules)
    assert rule == RULES[name]
    fused = FusedExperts(modules, rule)
    hidden = torch.randn((20, HIDDEN), generator=torch.Generator().manual_seed(4)).half()
    wanted = hidden + layer.mlp(layer.post_attention_layernorm(hidden.unsqueeze(0))).squeeze(0)
    got = fused.decode(hidden, {})
    # Nearly equal logits may change places.
    close = ((got - wanted).float().norm(dim=-1) / wanted.float().norm(dim=-1)) < 0.004
    assert close.float().mean() >= 0.95
    assert all(torch.equal(fused.decode(hidden[row : row + 1], {})[0], got[row]) for row in (0, 19))
    assert torch.equal(fused.prefill(hidden, {}), got)


def test_experts_are_fused_where_the_attention_is_not() -> None:
    model: Any = nn.Sequential(make_layer("qwen3_moe"))
    model.config = qwen3.Qwen3MoeConfig(num_hidden_layers=1)
    hidden = torch.randn((2, 1, HIDDEN), generator=torch.Generator().manual_seed(5)).half()
    cache = GraphCache(PagedCache(2, 8, 2, torch.float16, {}), 2)
    cache.set_targets(torch.tensor([0, 1]), torch.tensor([[3], [5]]), torch.tensor([4, 6]))
    wanted = model[0](hidden, past_key_values=cache)
    assert fuse_layers(model, cache, lambda: model[0](hidden, past_key_values=cache)) == 1
    layer = model[0]
    assert isinstance(layer, FusedDecoderLayer)
    assert isinstance(layer._mlp, FusedExperts) and not layer._mixer.is_fused and layer.can_prefill()
    got = layer(hidden, past_key_values=cache)
    assert (got - wanted).abs().max() < 0.01 * wanted.std()


def test_for_rows_that_are_nobodys_no_expert_is_read_that_others_need_not() -> None:
    """A step of three chats is one of four rows; the last one's experts were a quarter of what it read."""
    modules = find_expert_modules(make_layer("qwen3_moe"))
    assert modules is not None
    hidden = torch.randn((4, HIDDEN), generator=torch.Generator().manual_seed(6)).half()
    kernels, rule = router_kernels_for(torch.float16, NUM_EXPERTS, HIDDEN, CPU), RULES["qwen3_moe"]
    alone = kernels.route(hidden, modules.weights(), rule, CHOSEN)
    padded = kernels.route(hidden, modules.weights(), rule, CHOSEN, torch.tensor([[7], [9], [0], [-1]]))
    for got, wanted in ((padded.ids, alone.ids), (padded.weights, alone.weights), (padded.normed, alone.normed)):
        assert torch.equal(got[:3], wanted[:3]) and torch.equal(got[3], wanted[0])


@pytest.mark.parametrize("sizes", [(70, 320, 70, 6), (3, 64, 9, 3)], ids=str)
@pytest.mark.parametrize("rounds", [True, False], ids=["half", "float"])
def test_many_rows_go_where_a_few_go(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int], rounds: bool
) -> None:
    """A prompt's rows go through the tensor cores: several tiles of them that are not full, and one."""
    rows, size, num_experts, chosen = sizes
    random = torch.Generator().manual_seed(7)
    # A part of longer rows.
    x = torch.randn((rows, size + 64), generator=random).half()[:, :size]
    router, gate = (torch.randn(shape, generator=random) / size**0.5 for shape in ((num_experts, size), (size,)))
    norm = FusedRmsNorm((torch.rand(size, generator=random) + 0.5).half(), None, 1e-6)
    weights = RouterWeights(norm, router.half(), torch.rand(num_experts, generator=random), gate.half())
    kernels = router_kernels_for(torch.float16, num_experts, size, CPU)
    rule = RoutingRule(True, True, rounds, False, scale=1.5)
    monkeypatch.setattr(router_kernel, "MANY_LOGITS", num_experts * rows)
    few = kernels.route(x, weights, rule, chosen)
    monkeypatch.setattr(router_kernel, "MANY_LOGITS", num_experts * rows - 1)
    many = kernels.route(x, weights, rule, chosen)
    assert torch.equal(many.normed, few.normed)
    # Rounded logits are often equal, or nearly so, and change places.
    assert (many.ids.sort().values == few.ids.sort().values).float().mean() > (0.95 if rounds else 0.99)
    assert (many.weights - few.weights).abs().max() < 0.003
    assert few.gates is not None and many.gates is not None
    assert (many.gates - few.gates).abs().max() < 0.001
    monkeypatch.setattr(router_kernel, "MANY_LOGITS", 0)
    alone = kernels.route(x[-1:], weights, rule, chosen)
    assert torch.equal(alone.ids[0], many.ids[-1]) and torch.equal(alone.weights[0], many.weights[-1])


def test_a_router_that_chooses_in_another_way_is_left_alone() -> None:
    layer = make_layer("qwen3_moe")
    layer.mlp.gate.forward = lambda x: (x, *torch.topk(x[..., :NUM_EXPERTS].float(), CHOSEN))
    modules = find_expert_modules(layer)
    assert modules is not None and find_rule(modules) is None


def test_a_router_that_chooses_among_groups_stays_its_class_own() -> None:
    """As DeepSeek-V3's and some of GLM's do; of few rows a rule without groups could choose the same experts."""
    assert find_expert_modules(make_layer("glm4_moe")) is not None
    assert find_expert_modules(make_layer("glm4_moe, in groups")) is None
