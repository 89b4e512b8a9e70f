"""The numbers of the kernels for experts, by their sources run on a CPU, and what is chosen for how many pairs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from core.checkpoint.quantization import MatrixFormat
from core.memory.kernels.llamadeck import LLAMADECK, expert_tile_rows
from core.worker.kernels import expert_kernels, expert_prompts
from core.worker.kernels.expert_kernels import DOWN, DOWN_WARPS, GATE_UP, GATE_UP_WARPS, ExpertKernels, shared_bytes
from core.worker.kernels.expert_prompts import ExpertPrompts, SharedRoom
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import (
    Added,
    PairKernels,
    is_worth_sorting,
    most_segments,
    rows_per_segment,
)
from core.worker.model import kernel_check
from core.worker.model.kernel_check import check_experts, run_experts
from tests.support.expert_stacks import MadeStack, make_stack
from tests.support.ptx_on_cpu import kernels_on_cpu

CPU = torch.device("cpu")
# A result's own rounding, and of bfloat16 those of its scales.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}
NUM_EXPERTS, HIDDEN, INTERMEDIATE = 6, 256, 128
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with kernels_on_cpu():
        yield


def make_experts(format: CodeFormat, dtype: torch.dtype, permuted: bool) -> tuple[PackedExperts, MadeStack, MadeStack]:
    gate_up = make_stack(NUM_EXPERTS, HIDDEN, 2 * INTERMEDIATE, format, dtype, permuted, 1)
    down = make_stack(NUM_EXPERTS, INTERMEDIATE, HIDDEN, format, dtype, permuted, 2)
    kernels = ExpertKernels(dtype, format, CPU)
    return PackedExperts(gate_up.matrix, down.matrix, (kernels, kernels), PairKernels(dtype, CPU)), gate_up, down


def choose(tokens: int, chosen: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all experts but the last, which nobody wants; and the weights."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(NUM_EXPERTS - 1, generator=random)[:chosen] for _ in range(tokens)])
    return ids, torch.rand((tokens, chosen), generator=random)


@needs_compiler
@pytest.mark.parametrize(
    ("format", "dtype", "permuted"),
    [
        (CodeFormat(4, 128, False), torch.float16, False),
        (CodeFormat(4, 32, True), torch.bfloat16, True),
        (CodeFormat(8, 64, True), torch.float16, False),
        (CodeFormat(4, -1, False), torch.bfloat16, False),
    ],
    ids=str,
)
def test_a_token_comes_out_the_same_alone_and_beside_any_others(
    monkeypatch: pytest.MonkeyPatch, format: CodeFormat, dtype: torch.dtype, permuted: bool
) -> None:
    """To the last bit: one after the other, a few as they come, and many sorted, eight and more rows at once."""
    experts, gate_up, down = make_experts(format, dtype, permuted)
    tokens, chosen = 34, 2
    ids, weights = choose(tokens, chosen)
    ids[20:, 0] = 0
    x = torch.randn((tokens, HIDDEN), generator=torch.Generator().manual_seed(6)).to(dtype)
    together = experts(x, ids, weights)
    wanted = run_experts(x, ids, weights, gate_up.dense, down.dense)
    assert (together.float() - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()
    assert [is_worth_sorting(n, chosen, NUM_EXPERTS) for n in (1, 2, 10, tokens)] == [False, False, True, True]
    assert [rows_per_segment(n, chosen, NUM_EXPERTS) for n in (10, 16, tokens)] == [8, 16, 32]
    for turns, begin, count in ((0, 33, 1), (9999, 33, 1), (0, 5, 2), (9999, 5, 2), (0, 3, 10), (0, 18, 16)):
        rows = slice(begin, begin + count)
        monkeypatch.setattr(expert_kernels, "MANY_TURNS", turns)
        assert torch.equal(experts(x[rows], ids[rows], weights[rows]), together[rows])


@needs_compiler
@pytest.mark.parametrize(
    ("format", "dtype", "permuted"),
    [
        (CodeFormat(4, 128, False), torch.float16, False),
        (CodeFormat(8, 32, True), torch.float16, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("tile_rows", [64, 128])
def test_the_rows_of_a_prompt_are_multiplied_in_tiles(
    format: CodeFormat, dtype: torch.dtype, permuted: bool, tile_rows: int
) -> None:
    """An expert with more rows than a tile has, one with fewer, one with none; what a tile lacks is left alone."""
    hidden, intermediate = (192, 64) if permuted else (256, 128)
    gate_up = make_stack(3, hidden, 2 * intermediate, format, dtype, permuted, 1)
    down = make_stack(3, intermediate, hidden, format, dtype, permuted, 2)
    kernels, prompts = ExpertKernels(dtype, format, CPU), ExpertPrompts(dtype, (format, format), CPU)
    experts = PackedExperts(gate_up.matrix, down.matrix, (kernels, kernels), PairKernels(dtype, CPU), prompts)
    tokens = 150
    random = torch.Generator().manual_seed(9)
    x, more = torch.randn((2, tokens, hidden), generator=random).to(dtype)
    ids = (torch.arange(tokens) % 10 == 0).long().unsqueeze(-1)
    weights = torch.rand((tokens, 1), generator=random)
    got = experts._multiply_tiles(prompts._kernels[tile_rows], x, ids, weights, Added(more))
    wanted = run_experts(x, ids, weights, gate_up.dense, down.dense) + more.float()
    # Codes are rounded to half precision with their scales.
    assert (got.float() - wanted).abs().max() < 2 * TOLERANCES[dtype] * wanted.std()


@needs_compiler
def test_tokens_of_a_chat_each_go_through_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those sum in another order, so that a token would be another one as soon as enough chats are answered."""
    format, dtype, tokens = CodeFormat(4, 64, False), torch.float16, 80
    gate_up, down = make_stack(3, 128, 128, format, dtype, False, 1), make_stack(3, 64, 128, format, dtype, False, 2)
    kernels, prompts = ExpertKernels(dtype, format, CPU), ExpertPrompts(dtype, (format, format), CPU)
    experts = PackedExperts(gate_up.matrix, down.matrix, (kernels, kernels), PairKernels(dtype, CPU), prompts)
    random = torch.Generator().manual_seed(10)
    x, weights = torch.randn((tokens, 128), generator=random).to(dtype), torch.rand((tokens, 1), generator=random)
    ids = torch.randint(0, 3, (tokens, 1), generator=random)
    assert expert_tile_rows(tokens, 3) == 64
    tiles = torch.zeros_like(x)
    monkeypatch.setattr(experts, "_multiply_tiles", lambda *_: tiles)
    together = experts(x, ids, weights)
    wanted = run_experts(x, ids, weights, gate_up.dense, down.dense)
    assert (together.float() - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()
    assert torch.equal(experts.multiply(x, ids, weights, is_step=True), together)
    for row in (0, tokens - 1):
        one = slice(row, row + 1)
        assert torch.equal(experts(x[one], ids[one], weights[one]), together[one])
    assert experts.multiply(x, ids, weights) is tiles


def test_captured_products_of_all_layers_work_in_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of Qwen3.5-35B-A3B had no room for 4096 tokens a pass: each layer's buffer left a hole too small for the
    next one's."""
    room = SharedRoom()
    own, another = room.take(100, CPU), room.take(100, CPU)
    assert own.data_ptr() != another.data_ptr() and own.numel() == 100
    monkeypatch.setattr(expert_prompts, "is_capturing", lambda device: device == CPU)
    large, small = room.take(1000, CPU), room.take(200, CPU)
    assert large.data_ptr() == small.data_ptr() and (large.numel(), small.numel()) == (1000, 200)
    assert room.take(2000, CPU).numel() == 2000
    room.drop()
    assert room.take(10, CPU).untyped_storage().nbytes() == 10


def test_tiles_are_as_large_as_experts_have_rows() -> None:
    assert [expert_tile_rows(tokens * 8, 128) for tokens in (256, 384, 512, 2048)] == [0, 64, 64, 128]
    assert [expert_tile_rows(tokens * 2, 8) for tokens in (64, 128, 512)] == [0, 64, 128]


@needs_compiler
def test_experts_are_added_to_what_is_there() -> None:
    experts, *_ = make_experts(CodeFormat(4, 128, False), torch.float16, False)
    for tokens in (1, 24):
        ids, weights = choose(tokens, 2)
        x, more = torch.randn((2, tokens, HIDDEN), generator=torch.Generator().manual_seed(7)).half()
        alone, gates = experts.multiply(x, ids, weights).float(), torch.tensor([0.25]).repeat(tokens)
        # Rounded once instead of twice.
        got = experts.multiply(x, ids, weights, Added(more, x, gates)).float()
        assert (got - alone - more.float() - 0.25 * x.float()).abs().max() < 0.005
        got = experts.multiply(x, ids, weights, Added(shared=x)).float()
        assert (got - alone - x.float()).abs().max() < 0.005


@needs_compiler
@pytest.mark.parametrize("chosen", [1, 3, 5])
def test_any_number_of_experts_may_be_chosen(chosen: int) -> None:
    experts, gate_up, down = make_experts(CodeFormat(4, 128, False), torch.float16, False)
    for tokens in (1, 9):
        ids, weights = choose(tokens, chosen)
        x = torch.randn((tokens, HIDDEN), generator=torch.Generator().manual_seed(8)).half()
        wanted = run_experts(x, ids, weights, gate_up.dense, down.dense)
        assert (experts(x, ids, weights).float() - wanted).abs().max() < 0.005 * wanted.std()


@needs_compiler
def test_pairs_are_sorted_by_expert() -> None:
    ids = torch.tensor([[3, 0], [3, 1], [3, 0], [3, 5], [3, 0]])
    routed = PairKernels(torch.float16, CPU).sort(ids, 8, 4)
    count = int(routed.num_segments)
    segments = routed.segments[:count, :3].tolist()
    assert segments == [[0, 0, 3], [1, 3, 1], [3, 4, 4], [3, 8, 1], [5, 9, 1]]
    of_place = torch.empty(10, dtype=torch.long)
    of_place[routed.positions.long()] = torch.arange(10)
    assert torch.equal(routed.tokens.long(), of_place // 2)
    experts = [expert for expert, _, rows in segments for _ in range(rows)]
    assert ids.flatten()[of_place].tolist() == experts
    assert count <= most_segments(10, 8, 4) == 10


@needs_compiler
@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (MatrixFormat(4, 128, True, False, "gptq"), torch.bfloat16),
        (MatrixFormat(8, 32, False, True, "gptq_v2"), torch.float16),
    ],
    ids=lambda one: one.label if isinstance(one, MatrixFormat) else str(one),
)
def test_the_check_of_a_load_passes(format: MatrixFormat, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(kernel_check, "NUM_TOKENS", (1, 17))
    check_experts(LLAMADECK, format, dtype, CPU)


def test_few_pairs_are_multiplied_as_they_come() -> None:
    """Of 128 experts hardly two tokens share one; of 8 they soon do."""
    assert [is_worth_sorting(tokens, 8, 128) for tokens in (1, 8, 16, 32)] == [False, False, True, True]
    assert [is_worth_sorting(tokens, 2, 8) for tokens in (1, 2, 4, 8)] == [False, False, True, True]
    assert is_worth_sorting(1, 17, 64)


def test_every_card_has_room_for_each_number_of_rows() -> None:
    formats = [CodeFormat(*one) for one in product((4, 8), (32, 64, 128, -1), (False, True))]
    for variants, warps in ((GATE_UP, GATE_UP_WARPS), (DOWN, DOWN_WARPS)):
        for (name, some), format in product(variants.items(), formats):
            assert min(shared_bytes(one, name, warps, format) for one in some) <= 99 * 1024, (name, format)
