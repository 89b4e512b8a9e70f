"""On a GPU: attention of one new token over a cache, held against float32. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

import pytest
import torch

from core.worker.kernels.decode_attention import SPLITS, DecodeKernels
from tests.support.compile_ahead import ATTENTION_HEADS
from tests.support.kv_pages import by_slot, paged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CONTEXT_TOKENS = 1200
# Where each row's new token stands: alone, at a border of what a block takes at once, beyond it, far on.
COLUMNS = (0, 63, 64, 700, 1111)
PADDING = -1
# So many times as many rows are a step of 126 chats.
TIMES = 21
# Of values around 1: half precision rounds the weights of up to 1112 of them.
TOLERANCE = 0.01
# Half of what the integers of 8 bit are apart.
COARSE = 0.03


def apply_rope(head: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE (arXiv 2104.09864) on [..., dim] in float32, rounded to half precision."""
    half = head.shape[-1] // 2
    partner = torch.cat((-head[..., half:], head[..., :half]), -1).float()
    return (head.float() * cos.float() + partner * sin.float()).half()


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("window", [1 << 30, 100])
@pytest.mark.parametrize(("heads", "dim"), ATTENTION_HEADS)
def test_attention_is_right_and_the_same_however_many_blocks_share_it(
    heads: tuple[int, int], dim: int, window: int, clusters: bool, bits: int
) -> None:
    if clusters and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("blocks cannot read one another's shared memory")
    device, rows, (num_heads, num_kv_heads) = torch.device("cuda:0"), len(COLUMNS) + 1, heads
    random = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float16, device=device, generator=random)

    qkv = draw(rows, (num_heads + 2 * num_kv_heads) * dim)
    angle = torch.rand(rows, 1, dim // 2, device=device, generator=random).repeat(1, 1, 2) * 6
    cos, sin = angle.cos().half(), angle.sin().half()
    before = draw(2, rows, num_kv_heads, CONTEXT_TOKENS + 1, dim)
    columns = torch.tensor([*COLUMNS, PADDING], device=device).unsqueeze(1)
    # Where a chat has not come to yet anything may stand.
    for row, column in enumerate((*COLUMNS, PADDING)):
        before[:, row, :, max(0, column) :] = torch.nan
    slots = torch.arange(rows, device=device).flip(0)
    before = before.flip(1)

    results = []
    for blocks in SPLITS:
        kernels = DecodeKernels(torch.float16, heads, dim, rows, device, (blocks,), clusters, bits=bits)
        cache = paged(*before, bits)
        got = kernels.attend(qkv, (cos, sin), cache, slots, columns, dim**-0.5, window)
        alone = kernels.attend(qkv[3:4], (cos[3:4], sin[3:4]), cache, slots[3:4], columns[3:4], dim**-0.5, window)
        assert torch.equal(alone[0], got[3])
        # The same rows in a step of many.
        many = DecodeKernels(torch.float16, heads, dim, TIMES * rows, device, (blocks,), clusters, bits=bits).attend(
            qkv.repeat(TIMES, 1), (cos.repeat(TIMES, 1, 1), sin.repeat(TIMES, 1, 1)), cache, slots.repeat(TIMES),
            columns.repeat(TIMES, 1), dim**-0.5, window,
        )  # fmt: skip
        if bits == 16 or num_heads == num_kv_heads:
            assert torch.equal(many, got.repeat(TIMES, 1))
        else:
            # Other warps add other sums first.
            assert (many - got.repeat(TIMES, 1)).abs().max() < TOLERANCE
        results.append((got, *by_slot(cache)))
    got, keys, values = results[0]
    assert all(torch.equal(got, other) for other, _, _ in results)

    assert not got[-1].any()
    new = qkv.view(rows, -1, dim)
    for row, column in enumerate(COLUMNS):
        slot, begin = int(slots[row]), max(0, column + 1 - window)
        query, key = apply_rope(new[row, : num_heads + num_kv_heads], cos[row], sin[row]).split(
            [num_heads, num_kv_heads]
        )
        value = new[row, num_heads + num_kv_heads :]
        assert (keys[slot, :, column] - key).abs().max() < (TOLERANCE if bits == 16 else COARSE)
        assert (values[slot, :, column] - value).abs().max() <= (0.0 if bits == 16 else COARSE)
        # What is stored is what is seen, the new column too.
        seen_keys, seen_values = (stored[slot, :, begin : column + 1].float() for stored in (keys, values))
        each = num_heads // num_kv_heads
        scores = query.float().unsqueeze(1) @ seen_keys.repeat_interleave(each, 0).transpose(1, 2)
        wanted = (scores * dim**-0.5).softmax(-1) @ seen_values.repeat_interleave(each, 0)
        assert (got[row].view(num_heads, dim) - wanted.squeeze(1)).abs().max() < TOLERANCE
