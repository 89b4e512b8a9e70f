"""Tests of the kernels of Gated DeltaNet layers, held against transformers' own rule on the default device.

For a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import conv1d, rms_norm, silu, softplus
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from core.checkpoint.recurrent import GatedDeltaNet
from core.worker.kernels.packed_prefill import rows_of, tile_rows_of
from core.worker.kernels.packing import invert_permutation
from core.worker.kernels.recurrent import (
    BlockSizes,
    DeltaKernels,
    DeltaWeights,
    Projected,
    choose_block_sizes,
    many_rows_bytes,
)
from core.worker.kernels.recurrent_check import check_delta_kernels
from core.worker.kernels.row_layout import IN_ORDER, RowLayout

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
# Values of a result between 1 and 2 are rounded by half of this, some twice on the way.
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Of a result's norm, where the factors of products are rounded as well.
BLOCK_TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
EPS = 1e-6
NUM_ROWS = 5  # of a layer's memory; the last is the padding slot's
SHAPES = [
    GatedDeltaNet(num_key_heads=2, num_value_heads=6, key_dim=32, value_dim=16, conv_width=4),
    GatedDeltaNet(num_key_heads=1, num_value_heads=2, key_dim=128, value_dim=128, conv_width=4),
    GatedDeltaNet(num_key_heads=2, num_value_heads=2, key_dim=20, value_dim=44, conv_width=2),
]
ALL_SHAPES = pytest.mark.parametrize("mixer", SHAPES, ids=["small", "of 128", "odd"])


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Layer:
    """A layer's numbers and its memory of NUM_ROWS slots."""

    mixer: GatedDeltaNet
    weights: DeltaWeights
    conv: torch.Tensor
    state: torch.Tensor
    kernels: DeltaKernels

    def memory(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv, self.state

    def copy(self) -> Layer:
        return replace(self, conv=self.conv.clone(), state=self.state.clone())

    def step(self, rows: Projected, slots: list[int], columns: list[int]) -> torch.Tensor:
        return self.kernels.step(rows, self.weights, *self.memory(), torch.tensor(slots), torch.tensor(columns))

    def chunk(
        self, rows: Projected, slot: int, begin: int, count: int, kept: tuple[int, int] | None = None
    ) -> torch.Tensor:
        bounds, on_way = torch.tensor([begin, count]), torch.tensor(kept) if kept else None
        return self.kernels.chunk(rows, self.weights, *self.memory(), torch.tensor([slot]), bounds, on_way)


def make_layer(mixer: GatedDeltaNet, dtype: torch.dtype, in_blocks: bool = False) -> Layer:
    heads, channels = mixer.num_value_heads, mixer.channels
    weights = DeltaWeights(
        conv=(torch.randn(channels, mixer.conv_width) * 0.5).to(dtype),
        a_log=torch.randn(heads),
        dt_bias=torch.randn(heads),
        norm=(torch.rand(mixer.value_dim) + 0.5).to(dtype),
        eps=EPS,
    )
    conv = torch.randn(NUM_ROWS, channels, mixer.conv_width - 1).to(dtype)
    state = torch.randn(NUM_ROWS, heads, mixer.key_dim, mixer.value_dim) * 0.1
    return Layer(mixer, weights, conv, state, DeltaKernels(mixer, dtype, NUM_ROWS, conv.device, in_blocks))


def make_rows(mixer: GatedDeltaNet, dtype: torch.dtype, tokens: int, padding: int | None = None) -> Projected:
    """As one merged matrix gives them: parts of a row, which begins on 16 bytes without another `padding`."""
    heads, values = mixer.num_value_heads, mixer.num_value_heads * mixer.value_dim
    sizes = [mixer.channels, values, heads, heads]
    padding = -sum(sizes) % 8 if padding is None else padding
    *parts, _ = torch.randn(tokens, sum(sizes) + padding).to(dtype).split([*sizes, padding], -1)
    return Projected.side_by_side(mixer, *parts)


def some(rows: Projected, tokens: slice) -> Projected:
    parts = (rows.mixed, rows.gates, rows.betas, rows.decays)
    return Projected(*(part[tokens] for part in parts), rows.layout)


def reference(layer: Layer, rows: Projected, slot: int, is_first: bool) -> torch.Tensor:
    """All tokens of `rows` by torch and transformers, in float32 but where a layer in half precision rounds;
    [tokens, value heads * value dim]. Changes the layer's memory."""
    mixer, weights, dtype = layer.mixer, layer.weights, rows.mixed.dtype
    if is_first:
        layer.conv[slot] = 0
        layer.state[slot] = 0
    window = torch.cat((layer.conv[slot], rows.mixed.t()), -1)
    layer.conv[slot] = window[:, -(mixer.conv_width - 1) :]
    sums = conv1d(window[None].float(), weights.conv[:, None].float(), groups=mixer.channels)[0].to(dtype)
    keys = mixer.num_key_heads * mixer.key_dim
    active = silu(sums.float()).to(dtype).float().t()[None]
    query, key, value = active.split([keys, keys, mixer.channels - 2 * keys], -1)
    decay = -weights.a_log.exp() * softplus(rows.decays.float() + weights.dt_bias)
    read, state = torch_recurrent_gated_delta_rule(
        query.unflatten(-1, (mixer.num_key_heads, -1)), key.unflatten(-1, (mixer.num_key_heads, -1)),
        value.unflatten(-1, (mixer.num_value_heads, -1)), g=decay[None],
        beta=rows.betas.float().sigmoid().to(dtype).float()[None], initial_state=layer.state[slot][None],
        output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    layer.state[slot] = state[0]
    normed = rms_norm(read[0].to(dtype).float(), (mixer.value_dim,), eps=weights.eps).to(dtype)
    gates = silu(rows.gates.float()).unflatten(-1, (mixer.num_value_heads, -1))
    return ((normed * weights.norm).float() * gates).to(dtype).flatten(1)


def assert_close(got: Layer, wanted: Layer, slot: int) -> None:
    """The states differ by less than a rounding of the halves that go into them: sums of another order round apart."""
    assert torch.equal(got.conv[slot], wanted.conv[slot])
    assert differs(got.state[slot], wanted.state[slot]) < torch.finfo(got.conv.dtype).eps / 2


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Beside values around 1, and in parts of larger ones."""
    return float(((got.float() - wanted.float()).abs() / wanted.float().abs().clamp(min=1.0)).max())


def differs(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """In parts of the norm."""
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def test_a_step_of_many_chats_gives_each_what_it_has_alone() -> None:
    mixer, dtype, chats = SHAPES[0], torch.float16, 70
    small, rows = make_layer(mixer, dtype), make_rows(mixer, dtype, chats)
    conv, state = (torch.randn(chats, *one.shape[1:]).to(one.dtype) for one in small.memory())
    layer = replace(small, conv=conv, state=state, kernels=DeltaKernels(mixer, dtype, chats, conv.device))
    alone, slots = layer.copy(), [(slot * 3 + 1) % chats for slot in range(chats)]
    got = layer.step(rows, slots, list(range(chats)))
    for row in (0, 1, 66, chats - 1):
        one = alone.step(some(rows, slice(row, row + 1)), [slots[row]], [row])
        assert torch.equal(one[0], got[row]) and torch.equal(alone.state[slots[row]], layer.state[slots[row]])


@HALVES
@ALL_SHAPES
def test_new_tokens_are_what_transformers_rule_makes_of_them(mixer: GatedDeltaNet, dtype: torch.dtype) -> None:
    """One slot goes on, one begins, whatever an earlier chat left there, and one is nobody's."""
    layer = make_layer(mixer, dtype)
    layer.state[0] = torch.nan
    wanted = layer.copy()
    for step in range(3):
        rows = make_rows(mixer, dtype, 3)
        got = layer.step(rows, [2, NUM_ROWS - 1, 0], [7 + step, -1, step])
        for row, slot in ((0, 2), (2, 0)):
            one = reference(wanted, some(rows, slice(row, row + 1)), slot, slot == 0 and step == 0)
            assert far(got[row], one[0]) < TOLERANCES[dtype]
        assert not got[1].any()
    assert_close(layer, wanted, 0)
    assert_close(layer, wanted, 2)
    for slot in (1, 3, 4):
        assert torch.equal(layer.conv[slot], wanted.conv[slot]) and torch.equal(layer.state[slot], wanted.state[slot])


@HALVES
@pytest.mark.parametrize("odd", [0, 2], ids=["rows on 16 bytes", "rows on 4 bytes"])
def test_many_rows_whose_states_are_read_ahead_have_the_same_bits(dtype: torch.dtype, odd: int) -> None:
    """One begins, one is nobody's; thread blocks take some heads each, one after the other. What copies do not take is
    not read ahead."""
    mixer = SHAPES[0]
    layer = make_layer(mixer, dtype)
    layer.state[0], layer.conv[0] = torch.nan, torch.nan
    wanted, rows = layer.copy(), make_rows(mixer, dtype, 4, padding=4 + odd)
    assert rows.can_be_copied() == (odd == 0)
    slots, columns = torch.tensor([2, NUM_ROWS - 1, 0, 1]), torch.tensor([7, -1, 0, 3])
    assert layer.kernels.ways == (False, True)
    got, plain = (
        one.kernels.step(rows, one.weights, *one.memory(), slots, columns, reads_ahead=way)
        for one, way in ((layer, True), (wanted, False))
    )
    assert torch.equal(got, plain)
    assert torch.equal(layer.state, wanted.state) and torch.equal(layer.conv, wanted.conv)


@pytest.mark.parametrize("way", [False, True])
def test_what_a_step_gives_lies_as_the_next_product_wants_it(way: bool) -> None:
    mixer, rows, dtype = SHAPES[0], 3, torch.float16
    layer, projected = make_layer(mixer, dtype), make_rows(mixer, dtype, rows)
    slots, columns, size = torch.tensor([2, 0, 1]), torch.tensor([7, 0, -1]), mixer.num_value_heads * mixer.value_dim
    order, tile_rows = torch.randperm(size).int(), tile_rows_of(rows)

    def step(layout: RowLayout) -> torch.Tensor:
        one = layer.copy()
        return one.kernels.step(projected, one.weights, *one.memory(), slots, columns, layout, reads_ahead=way)

    plain = step(IN_ORDER)
    for inverse, wanted in ((None, plain), (invert_permutation(order), plain[:, order.long()])):
        assert torch.equal(step(RowLayout(inverse)), wanted)
        swizzled = step(RowLayout(inverse, tile_rows))
        assert swizzled.shape[0] == tile_rows and torch.equal(rows_of(swizzled, rows), wanted)


@HALVES
def test_a_row_is_the_same_beside_any_others(dtype: torch.dtype) -> None:
    together, alone = (layer := make_layer(SHAPES[0], dtype)).copy(), layer.copy()
    rows = make_rows(SHAPES[0], dtype, 4)
    got = together.step(rows, [3, 1, 0, 2], [5, 0, 9, 1])
    for row, (slot, column) in enumerate(((3, 5), (1, 0), (0, 9), (2, 1))):
        assert torch.equal(alone.step(some(rows, slice(row, row + 1)), [slot], [column])[0], got[row])
    assert torch.equal(together.state, alone.state) and torch.equal(together.conv, alone.conv)


@HALVES
@ALL_SHAPES
@pytest.mark.parametrize(("begin", "count"), [(0, 40), (9, 37), (0, 1), (5, 2)])
def test_a_chunk_is_what_transformers_rule_makes_of_it(
    begin: int, count: int, mixer: GatedDeltaNet, dtype: torch.dtype
) -> None:
    """A chunk that begins a text or goes on with one; shorter than the graph's, and than the convolution."""
    layer = make_layer(mixer, dtype)
    if begin == 0:
        layer.state[1] = torch.nan
    rows, wanted = make_rows(mixer, dtype, 40), layer.copy()
    got = layer.chunk(rows, 1, begin, count)
    assert far(got[:count], reference(wanted, some(rows, slice(0, count)), 1, begin == 0)) < TOLERANCES[dtype]
    assert not got[count:].any()
    assert_close(layer, wanted, 1)
    for slot in (0, 2, 3, 4):
        assert torch.equal(layer.state[slot], wanted.state[slot])


@HALVES
@pytest.mark.parametrize("mixer", [SHAPES[0], SHAPES[1]], ids=["small", "of 128"])
@pytest.mark.parametrize(("begin", "count"), [(0, 150), (9, 128), (5, 2), (7, 65)])
def test_a_chunk_in_blocks_is_what_transformers_rule_makes_of_it(
    begin: int, count: int, mixer: GatedDeltaNet, dtype: torch.dtype
) -> None:
    """Full blocks of 64 tokens, and ones that are not; with all that is multiplied rounded to half precision."""
    layer = make_layer(mixer, dtype, in_blocks=True)
    if begin == 0:
        layer.state[1] = torch.nan
    rows, wanted = make_rows(mixer, dtype, 150), layer.copy()
    got = layer.chunk(rows, 1, begin, count)
    answers = reference(wanted, some(rows, slice(0, count)), 1, begin == 0)
    assert differs(got[:count], answers) < BLOCK_TOLERANCES[dtype]
    assert far(got[:count], answers) < 10 * BLOCK_TOLERANCES[dtype]
    assert not got[count:].any()
    assert torch.equal(layer.conv[1], wanted.conv[1])
    assert differs(layer.state[1], wanted.state[1]) < BLOCK_TOLERANCES[dtype]
    for slot in (0, 2, 3, 4):
        assert torch.equal(layer.state[slot], wanted.state[slot])


@HALVES
@pytest.mark.parametrize("in_blocks", [False, True], ids=["token by token", "in blocks"])
@pytest.mark.parametrize(("begin", "count", "tokens"), [(0, 150, 128), (9, 150, 64), (7, 128, 128), (0, 64, 128)])
def test_a_chunk_keeps_what_it_was_on_its_way(
    begin: int, count: int, tokens: int, in_blocks: bool, dtype: torch.dtype
) -> None:
    """To the last bit what a chunk of so many tokens leaves; nothing where the chunk is shorter."""
    layer = make_layer(SHAPES[0], dtype, in_blocks)
    rows, plain, shorter = make_rows(SHAPES[0], dtype, 150), layer.copy(), layer.copy()
    assert torch.equal(layer.chunk(rows, 1, begin, count, (3, tokens)), plain.chunk(rows, 1, begin, count))
    kept, left = ([one.conv[row], one.state[row]] for one, row in ((layer, 3), (shorter, 1)))
    if tokens <= count:
        shorter.chunk(rows, 1, begin, tokens)
        assert all(torch.equal(one, other) for one, other in zip(kept, left, strict=True))
    else:
        assert torch.equal(layer.state[3], plain.state[3])
    for slot in (0, 1, 2, 4):
        assert torch.equal(layer.state[slot], plain.state[slot]) and torch.equal(layer.conv[slot], plain.conv[slot])


@HALVES
def test_chunks_and_then_tokens_go_on_from_one_another(dtype: torch.dtype) -> None:
    layer = make_layer(SHAPES[0], dtype)
    rows, wanted = make_rows(SHAPES[0], dtype, 45), layer.copy()
    parts = [layer.chunk(some(rows, slice(0, 30)), 1, 0, 25)[:25], layer.chunk(some(rows, slice(25, 41)), 1, 25, 16)]
    parts += [layer.step(some(rows, slice(place, place + 1)), [1], [place]) for place in range(41, 45)]
    assert far(torch.cat(parts), reference(wanted, rows, 1, True)) < TOLERANCES[dtype]
    assert_close(layer, wanted, 1)


@HALVES
def test_the_order_of_qwen3_next_is_read(dtype: torch.dtype) -> None:
    """It has each key head's query, key, values and gates in a row: the same numbers, the same results."""
    mixer = SHAPES[0]
    keys = mixer.num_key_heads * mixer.key_dim
    rows, layer = make_rows(mixer, dtype, 3), make_layer(mixer, dtype)
    split = rows.mixed.split([keys, keys, mixer.channels - 2 * keys], -1)
    by_head = [part.unflatten(-1, (mixer.num_key_heads, -1)) for part in (*split, rows.gates, rows.betas, rows.decays)]
    mixed, scalars = torch.cat(by_head[:4], -1).flatten(1), torch.cat(by_head[4:], -1).flatten(1)
    grouped = Projected.by_key_head(mixer, mixed, scalars)
    other = layer.copy()
    assert torch.equal(layer.chunk(rows, 1, 4, 3), other.chunk(grouped, 1, 4, 3))
    assert torch.equal(layer.step(rows, [0, 1, 2], [3, 7, 0]), other.step(grouped, [0, 1, 2], [3, 7, 0]))
    assert torch.equal(layer.state, other.state) and torch.equal(layer.conv, other.conv)


def test_results_go_where_the_next_matrix_wants_them() -> None:
    layer, rows = make_layer(SHAPES[0], torch.float16), make_rows(SHAPES[0], torch.float16, 2)
    order = torch.randperm(SHAPES[0].num_value_heads * SHAPES[0].value_dim).int()
    slots, columns = torch.tensor([0, 4]), torch.tensor([3, -1])
    plain = layer.copy().step(rows, [0, 4], [3, -1])
    got = layer.kernels.step(rows, layer.weights, *layer.memory(), slots, columns, RowLayout(order))
    wanted = torch.empty_like(plain)
    wanted[:, order.long()] = plain
    assert torch.equal(got, wanted)


def test_blocks_take_what_shared_memory_has_room_for() -> None:
    """An H200, an A100, an RTX 4090; heads that are too large, and odd ones."""
    kib = 1024
    assert choose_block_sizes(SHAPES[1], 227 * kib) == choose_block_sizes(SHAPES[1], 163 * kib) == BlockSizes(64, 2)
    assert choose_block_sizes(SHAPES[1], 99 * kib) == BlockSizes(64, 1)
    assert choose_block_sizes(SHAPES[1], 80 * kib) == BlockSizes(32, 1)
    assert choose_block_sizes(replace(SHAPES[1], key_dim=256), 99 * kib) is None
    assert choose_block_sizes(SHAPES[2], 227 * kib) is None


def test_of_large_states_and_odd_heads_nothing_is_read_ahead() -> None:
    """A state of 128 x 128 leaves room for two thread blocks on a multiprocessor."""
    assert 64 * 1024 < many_rows_bytes(SHAPES[1]) < 80 * 1024
    assert many_rows_bytes(replace(SHAPES[1], key_dim=256)) == 0
    assert many_rows_bytes(SHAPES[2]) == 0


@HALVES
@pytest.mark.parametrize("in_blocks", [False, True], ids=["token by token", "in blocks"])
def test_the_check_of_a_load_passes(in_blocks: bool, dtype: torch.dtype) -> None:
    device = torch.zeros(0).device
    check_delta_kernels(DeltaKernels(SHAPES[0], dtype, 1, device, in_blocks), dtype, device)


def test_a_step_that_reads_ahead_and_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one goes on."""
    device = torch.zeros(0).device
    kernels = DeltaKernels(SHAPES[0], torch.float16, 1, device)
    monkeypatch.setattr(kernels, "_step_many", lambda *_: None)
    check_delta_kernels(kernels, torch.float16, device)
    assert kernels.ways == (False,)


@pytest.mark.parametrize("kernel", ["_step", "_outputs"])
def test_kernels_that_compute_something_else_are_refused(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load then takes torch's rule."""
    device = torch.zeros(0).device
    kernels = DeltaKernels(SHAPES[0], torch.float16, 1, device)
    monkeypatch.setattr(kernels, kernel, lambda *_: None)
    with pytest.raises(ValueError, match="off by"):
        check_delta_kernels(kernels, torch.float16, device)


def test_other_types_and_heads_are_refused() -> None:
    device = torch.zeros(0).device
    with pytest.raises(TypeError):
        DeltaKernels(SHAPES[0], torch.float32, 1, device)
    with pytest.raises(ValueError):
        DeltaKernels(replace(SHAPES[0], key_dim=30), torch.float16, 1, device)
