"""On a GPU: the kernels for experts and their router compute what the matrices say, captured and not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.memory.kernels.llamadeck import LLAMADECK, has_fused_prefill
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.kernels.expert_kernels import expert_kernels_for
from core.worker.kernels.expert_prompts import ExpertPrompts
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packed_small_batch import FusedRmsNorm
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import Added, pair_kernels_for
from core.worker.kernels.router_kernel import RouterWeights, RoutingRule, router_kernels_for
from core.worker.load import load_engine
from core.worker.model.kernel_check import check_experts, run_experts
from core.worker.plan_load import use_capturable_stream
from tests.support.expert_stacks import make_stack
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = torch.device("cuda:0")
# Of the result's spread.
TOLERANCES = {torch.float16: 0.01, torch.bfloat16: 0.06}
# Experts, chosen, hidden, intermediate: hardly shared ones, much shared ones, many chosen.
SHAPES = [(32, 4, 512, 192), (8, 2, 1024, 512), (24, 10, 256, 128)]
KINDS = [
    (CodeFormat(4, 128, False), torch.bfloat16),
    (CodeFormat(4, 64, True), torch.float16),
    (CodeFormat(4, -1, False), torch.float16),
    (CodeFormat(8, 32, True), torch.bfloat16),
]


@pytest.fixture(autouse=True)
def inference() -> None:
    torch.set_grad_enabled(False)
    use_capturable_stream(DEVICE)


def on_gpu(num_experts: int, hidden: int, intermediate: int, format: CodeFormat, dtype: torch.dtype, permuted: bool):  # type: ignore[no-untyped-def]
    """The experts, and the dequantized matrices on the CPU."""
    made = [
        make_stack(num_experts, *sides, format, dtype, permuted, seed)
        for seed, sides in enumerate(((hidden, 2 * intermediate), (intermediate, hidden)))
    ]
    stacks = []
    for matrix, _ in made:
        parts = (matrix.codes, matrix.scales, matrix.zeros, matrix.permutations)
        stacks.append(type(matrix)(*(None if part is None else part.to(DEVICE) for part in parts)))
    kernels = expert_kernels_for(dtype, format, DEVICE)
    experts = PackedExperts(stacks[0], stacks[1], (kernels, kernels), pair_kernels_for(dtype, DEVICE))
    return experts, *(dense for _, dense in made)


@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_a_token_comes_out_right_and_the_same_beside_any_others(
    format: CodeFormat, dtype: torch.dtype, shape: tuple[int, int, int, int], permuted: bool
) -> None:
    num_experts, chosen, hidden, intermediate = shape
    if intermediate % max(format.group_size, 1):
        intermediate = 256
    experts, gate_up, down = on_gpu(num_experts, hidden, intermediate, format, dtype, permuted)
    random = torch.Generator().manual_seed(1)
    tokens = 90
    x = torch.randn((tokens, hidden), generator=random).to(dtype)
    ids = torch.rand((tokens, num_experts - 1), generator=random).topk(chosen).indices
    # All of some tokens go to one expert; the last expert is nobody's.
    ids[40:, 0] = num_experts - 2
    weights = torch.rand((tokens, chosen), generator=random)
    got = [part.to(DEVICE) for part in (x, ids, weights)]
    together = experts(*got)
    wanted = run_experts(x, ids, weights, gate_up, down)
    assert (together.float().cpu() - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()
    for begin, count in ((0, 1), (89, 1), (3, 2), (10, 8), (20, 32), (26, 64)):
        rows = slice(begin, begin + count)
        assert torch.equal(experts(*(part[rows] for part in got)), together[rows])


@pytest.mark.skipif(
    not torch.cuda.is_available() or not has_fused_prefill(torch.cuda.get_device_capability()),
    reason="needs a GPU of compute capability 9.0",
)
@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("tokens", [100, 700])
@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=str)
def test_the_rows_of_a_prompt_are_multiplied_in_tiles(
    format: CodeFormat, dtype: torch.dtype, tokens: int, permuted: bool
) -> None:
    """As those of few tokens are, but for rounding; an expert has many rows, others few, one none."""
    experts, *_ = on_gpu(6, 1024, 256, format, dtype, permuted)
    random = torch.Generator(DEVICE).manual_seed(3)
    x = torch.randn((tokens, 1024), generator=random, device=DEVICE).to(dtype)
    ids = torch.rand((tokens, 5), generator=random, device=DEVICE).topk(2).indices
    ids[: tokens // 2, 0] = 4
    weights = torch.rand((tokens, 2), generator=random, device=DEVICE)
    wanted = experts(x, ids, weights).float()
    experts._prompts = ExpertPrompts(dtype, (format, format), DEVICE)
    for _ in range(3):
        got = experts(x, ids, weights).float()
        assert not torch.equal(got, wanted)
        assert ((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max() < TOLERANCES[dtype]


@pytest.mark.parametrize("tokens", [1, 8, 48])
def test_a_captured_product_follows_whom_a_router_chooses(tokens: int) -> None:
    """Experts, and how many rows each has, are read from GPU memory."""
    experts, *_ = on_gpu(16, 256, 128, CodeFormat(4, 128, False), torch.float16, False)
    kernels, rule = router_kernels_for(torch.float16, 16, 256, DEVICE), RoutingRule(False, True, True, True)
    weights = RouterWeights(
        FusedRmsNorm(torch.ones(256, device=DEVICE).half(), None, 1e-6), torch.randn((16, 256), device=DEVICE).half()
    )
    x = torch.zeros((tokens, 256), dtype=torch.float16, device=DEVICE)

    def compute() -> torch.Tensor:
        routed = kernels.route(x, weights, rule, 4)
        return experts.multiply(routed.normed, routed.ids, routed.weights, Added(x))

    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = compute()
    for seed in range(5):
        x.copy_(torch.randn((tokens, 256), generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(result, compute())


@pytest.mark.parametrize("rows", [1, 8, 9, 300, 1100])
@pytest.mark.parametrize("sizes", [(128, 2048, 8), (8, 4096, 2), (512, 2048, 10)], ids=str)
def test_a_router_chooses_what_torch_chooses(rows: int, sizes: tuple[int, int, int]) -> None:
    num_experts, hidden, chosen = sizes
    random = torch.Generator(DEVICE).manual_seed(2)
    x, router, gate = (
        torch.randn(shape, device=DEVICE, generator=random).half()
        for shape in ((rows, hidden), (num_experts, hidden), (hidden,))
    )
    weight = (torch.rand(hidden, device=DEVICE, generator=random) + 0.5).half()
    router, gate = router / hidden**0.5, gate / hidden**0.5
    weights = RouterWeights(FusedRmsNorm(weight, None, 1e-6), router, None, gate)
    kernels = router_kernels_for(torch.float16, num_experts, hidden, DEVICE)
    got = kernels.route(x, weights, RoutingRule(False, True, False, False), chosen)
    normed = torch.nn.functional.rms_norm(x.float(), (hidden,), eps=1e-6).half() * weight
    assert (got.normed.float() - normed.float()).abs().max() < 0.01
    scores = (got.normed.float() @ router.float().t()).softmax(-1)
    best = scores.topk(chosen)
    wanted = best.values / best.values.sum(-1, keepdim=True)
    assert (got.ids == best.indices).float().mean() > 0.99
    assert (got.weights - wanted).abs().max() < 0.001
    assert got.gates is not None
    assert (got.gates - (got.normed.float() @ gate.float()).sigmoid()).abs().max() < 0.002
    alone = kernels.route(x[-1:], weights, RoutingRule(False, True, False, False), chosen)
    assert torch.equal(alone.ids[0], got.ids[-1]) and torch.equal(alone.weights[0], got.weights[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "format",
    [
        MatrixFormat(4, 128, True, False, "gptq_v2"),
        MatrixFormat(4, 32, False, True, "gptq_v2"),
        MatrixFormat(8, -1, True, False, "gptq_v2"),
    ],
    ids=lambda one: one.label,
)
def test_the_check_of_a_load_passes(format: MatrixFormat, dtype: torch.dtype) -> None:
    check_experts(LLAMADECK, format, dtype, DEVICE)


CONTEXT_TOKENS, LENGTHS = 512, (130, 300, 37)
MIXTURE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY, "num_experts_per_tok": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8, "norm_topk_prob": True},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 256},
    "mixtral": {"num_local_experts": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_is_captured_and_computes_the_model(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chats together, then one of them alone: its logits have the same bits."""
    reference = make_family_checkpoint(tmp_path, {"model_type": family, **MIXTURE, **FAMILIES[family]})
    # An engine puts its own rotation there, for its process.
    source = sys.modules[type(reference).__module__]
    monkeypatch.setattr(source, "apply_rotary_pos_emb", source.apply_rotary_pos_emb)
    prompts = [[(7 * place + slot) % 300 + 5 for place in range(size)] for slot, size in enumerate(LENGTHS)]
    alone = [reference(torch.tensor([one])).logits[0, -1] for one in prompts]
    firsts = [int(logits.argmax()) for logits in alone]
    wanted = [
        reference(torch.tensor([[*one, first]])).logits[0, -1] for one, first in zip(prompts, firsts, strict=True)
    ]
    with torch.inference_mode():
        command = Load(tmp_path, CONTEXT_TOKENS, len(LENGTHS), "llamadeck")
        engine = load_engine(read_checkpoint(tmp_path), command, lambda *_: None)
        steps: Any = engine.steps
        assert engine.facts.captured and engine.facts.kernel == "llamadeck"
        layers = [one for one in steps._model._model.modules() if isinstance(one, FusedDecoderLayer)]
        assert len(layers) == 2 and all(isinstance(one._mlp, FusedExperts) for one in layers)

        def next_logits(slots: list[int]) -> torch.Tensor:
            for slot in slots:
                steps.reset_slot(slot, Sampling(temperature=0.0), 1, prompts[slot])
                steps.prefill(slot, prompts[slot], 0, True).wait()
                steps.tokens[slot] = firsts[slot]
            steps.decode(slots).wait()
            step = next(step for step in steps._decode_graphs if step.num_rows >= len(slots))
            logits: torch.Tensor = step.logits[: len(slots)].float().cpu()
            return logits

        together = next_logits([0, 1, 2])
        for got, one in zip(together, wanted, strict=True):
            assert (got - one).abs().max() < 0.05 * one.std()
        assert torch.equal(next_logits([1])[0], together[1])
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.set_per_process_memory_fraction(1.0)
