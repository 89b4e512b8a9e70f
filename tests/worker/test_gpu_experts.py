"""On a GPU: the kernels for experts and their router compute what the matrices say, captured and not."""

from __future__ import annotations

import pytest
import torch

from core.checkpoint.quantization import MatrixFormat
from core.memory.kernels.llamadeck import LLAMADECK, has_fused_prefill
from core.worker.kernels.expert_kernels import expert_kernels_for
from core.worker.kernels.expert_prompts import ExpertPrompts
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import Added, pair_kernels_for
from core.worker.kernels.router_kernel import MANY_LOGITS, RouterWeights, RoutingRule, router_kernels_for
from core.worker.model.kernel_check import check_experts, run_experts
from core.worker.plan_load import use_capturable_stream
from tests.support.expert_stacks import make_stack

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


# Each kind and each shape in order and by act-order.
@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_token_comes_out_right_and_the_same_beside_any_others(kind: int, permuted: bool) -> None:
    (format, dtype), shape = KINDS[kind], SHAPES[(kind + permuted) % len(SHAPES)]
    num_experts, chosen, hidden, intermediate = shape
    if intermediate % max(format.group_size, 1):
        intermediate = 256
    experts, gate_up, down = on_gpu(num_experts, hidden, intermediate, format, dtype, permuted)
    random = torch.Generator().manual_seed(1)
    tokens = 130
    x = torch.randn((tokens, hidden), generator=random).to(dtype)
    ids = torch.rand((tokens, num_experts - 1), generator=random).topk(chosen).indices
    # All of some tokens go to one expert; the last expert is nobody's.
    ids[40:, 0] = num_experts - 2
    weights = torch.rand((tokens, chosen), generator=random)
    got = [part.to(DEVICE) for part in (x, ids, weights)]
    together = experts(*got)
    wanted = run_experts(x, ids, weights, gate_up, down)
    assert (together.float().cpu() - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()
    for begin, count in ((0, 1), (129, 1), (3, 2), (10, 8), (20, 32), (26, 65), (2, 128)):
        rows = slice(begin, begin + count)
        assert torch.equal(experts(*(part[rows] for part in got)), together[rows])


@pytest.mark.skipif(
    not torch.cuda.is_available() or not has_fused_prefill(torch.cuda.get_device_capability()),
    reason="needs a GPU of compute capability 9.0",
)
@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_rows_of_a_prompt_are_multiplied_in_tiles(kind: int, permuted: bool) -> None:
    """As those of few tokens are, but for rounding; an expert has many rows, others few, one none."""
    (format, dtype), tokens = KINDS[kind], (150, 700)[(kind + permuted) % 2]
    experts, *_ = on_gpu(6, 1024, 256, format, dtype, permuted)
    random = torch.Generator(DEVICE).manual_seed(3)
    x = torch.randn((tokens, 1024), generator=random, device=DEVICE).to(dtype)
    ids = torch.rand((tokens, 5), generator=random, device=DEVICE).topk(2).indices
    ids[: tokens // 2, 0] = 4
    weights = torch.rand((tokens, 2), generator=random, device=DEVICE)
    wanted = experts(x, ids, weights).float()
    experts._prompts = ExpertPrompts(dtype, (format, format), DEVICE)
    # A step's rows are a chat each, and the same beside any others.
    assert torch.equal(experts.multiply(x, ids, weights, is_step=True).float(), wanted)
    for _ in range(3):
        got = experts(x, ids, weights).float()
        assert not torch.equal(got, wanted)
        assert ((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max() < TOLERANCES[dtype]


@pytest.mark.parametrize("tokens", [1, 8, 128])
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
    # A few rows are summed in one order, many in another.
    fewest = MANY_LOGITS // num_experts + 1
    part = fewest if rows >= fewest else 1
    alone = kernels.route(x[-part:], weights, RoutingRule(False, True, False, False), chosen)
    assert torch.equal(alone.ids, got.ids[-part:]) and torch.equal(alone.weights, got.weights[-part:])


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (MatrixFormat(4, 128, True, False, "gptq_v2"), torch.float16),
        (MatrixFormat(4, 32, False, True, "gptq_v2"), torch.bfloat16),
        (MatrixFormat(8, -1, True, False, "gptq_v2"), torch.float16),
    ],
    ids=["4 bit, group 128", "4 bit, group 32", "8 bit, no groups"],
)
def test_the_check_of_a_load_passes(format: MatrixFormat, dtype: torch.dtype) -> None:
    check_experts(LLAMADECK, format, dtype, DEVICE)
