"""Tests of the kernels of a captured step, held against torch on the default device: for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.engine.sampling_params import Sampling
from core.worker.decode.logit_offsets import note_token
from core.worker.decode.sampling import cut, penalize
from core.worker.decode.slot_draw import unpacked
from core.worker.kernels import cache_attention, step_ops
from core.worker.kernels.logprobs_kernel import MAX_TOP, THREADS, logprobs_kernel_for, make_told, split_told
from core.worker.kernels.sampling_kernel import SEEN, make_slot_state, sampling_kernel_for, settings_row
from core.worker.model.integer_kv import dequantize, quantize
from tests.support.kv_pages import by_slot, paged

GREEDY = Sampling(temperature=0.0)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
# Of values around 1: half precision rounds a softmax's weights and the result.
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
DRAWS, VOCABULARY = 150, 500


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@HALVES
@pytest.mark.parametrize("size", [96, 33, 1100])
def test_rms_norm_and_the_gate_are_the_plain_sums(size: int, dtype: torch.dtype) -> None:
    """Rows of a head and of a layer, and some that no load of 16 bytes takes."""
    x, weight = torch.randn(3, 5, size).to(dtype), torch.randn(size).to(dtype)
    wanted = (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight
    got = step_ops.rms_norm(x, weight, 1e-5)
    assert torch.allclose(got.float(), wanted.float(), rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    # As Gemma has it: weights less one, and nothing rounded in between.
    wanted = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + weight.float())
    assert torch.allclose(
        step_ops.rms_norm(x, weight, 1e-5, 1.0).float(), wanted, rtol=torch.finfo(dtype).eps, atol=0.0
    )
    assert torch.equal(step_ops.rms_norm(x[1:2, 2:3], weight, 1e-5)[0, 0], got[1, 2])
    both = torch.randn(3, 2 * size).to(dtype)
    wanted = torch.nn.functional.silu(both[:, :size].float()).to(dtype) * both[:, size:]
    assert torch.allclose(step_ops.swiglu(both).float(), wanted.float(), rtol=2 * torch.finfo(dtype).eps, atol=0.0)


def test_angles_are_right_far_into_a_text() -> None:
    positions, frequencies = torch.tensor([[0, 1, 131071]]), 10000.0 ** -(torch.arange(24) / 24)
    cos, sin = step_ops.rope_angles(positions, frequencies, 1.5, torch.float16)
    # The model's own: a float32 holds the angle.
    wanted = (positions[0, :, None].float() * frequencies).double().repeat(1, 2)
    assert torch.allclose(cos[0].double(), wanted.cos() * 1.5, atol=1e-3)
    assert torch.allclose(sin[0].double(), wanted.sin() * 1.5, atol=1e-3)


@HALVES
@pytest.mark.parametrize(("dim", "turned_dim"), [(32, 32), (36, 36), (32, 8), (40, 28)])
def test_heads_are_rotated_where_they_lie(dim: int, turned_dim: int, dtype: torch.dtype) -> None:
    """Query and key are parts of one tensor, as a merged matrix gives them; what lies between them stays. GPT-NeoX and
    Phi-4-mini turn a part of a head: all of it was once turned, by angles that were others'."""
    qkv = torch.randn(2, 3, 8 * dim).to(dtype)
    before, by_head = qkv.clone(), qkv.view(2, 3, 8, dim).transpose(1, 2)
    half = turned_dim // 2
    angle = torch.rand(2, 3, half).repeat(1, 1, 2) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    # Some models keep angles in float32.
    query, key = step_ops.apply_rope(by_head[:, :4], by_head[:, 5:7], cos, sin.float())
    was = before.view(2, 3, 8, dim).transpose(1, 2).float()
    turned = torch.cat((-was[..., half:turned_dim], was[..., :half]), -1)
    wanted = was.clone()
    wanted[..., :turned_dim] = was[..., :turned_dim] * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)
    for got, heads in ((query, slice(0, 4)), (key, slice(5, 7))):
        assert torch.allclose(got.float(), wanted[:, heads], atol=torch.finfo(dtype).eps * 4)
    for head in (4, 7):
        assert torch.equal(by_head[:, head].float(), was[:, head])


def test_what_a_slot_writes_next_is_looked_up() -> None:
    tokens, positions = torch.tensor([11, 12, 13]), torch.tensor([4, 0, 9])
    found = step_ops.gather_slots(torch.tensor([1, 0, 2]), tokens, positions, padding_slot=2)
    assert [one.tolist() for one in found] == [[12, 11, 13], [0, 4, 9], [0, 4, -1], [1, 5, 0]]


def test_what_many_slots_write_next_is_looked_up() -> None:
    """More rows than one block has threads."""
    count = 128
    slots, tokens = torch.arange(count).flip(0), torch.arange(count + 1) + 7
    found = step_ops.gather_slots(slots, tokens, tokens * 3, padding_slot=count)
    wanted = (tokens[slots], tokens[slots] * 3, tokens[slots] * 3, tokens[slots] * 3 + 1)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_step_of_many_chats_draws_for_each_what_it_would_alone() -> None:
    """Each has settings and a seed of its own."""
    count = 100
    settings = [Sampling(temperature=0.5 + slot % 3, top_p=0.8, top_k=slot % 7) for slot in range(count + 1)]
    logits = torch.randn(count, VOCABULARY).half()
    rows, positions = torch.arange(count).flip(0), torch.arange(count) + 5
    kernel = sampling_kernel_for(logits.dtype, VOCABULARY, logits.device)

    def sample(some: slice) -> torch.Tensor:
        state = make_slot_state(count, VOCABULARY, logits.device)
        state.settings.copy_(torch.stack([settings_row(one) for one in settings]))
        state.seeds.copy_(torch.arange(count + 1) * 31)
        sampled = torch.zeros(len(rows[some]), dtype=torch.long)
        scratch = torch.empty(logits[some].shape, dtype=torch.float32)
        kernel(logits[some], scratch, rows[some], state, positions[some], sampled)
        assert torch.equal(state.tokens[rows[some]], sampled)
        return sampled

    together = sample(slice(0, count))
    for row in (0, 65, count - 1):
        assert torch.equal(sample(slice(row, row + 1)), together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("dim", [32, 20, 264])
def test_new_keys_are_stored_as_integers_as_in_plain_passes(dim: int, dtype: torch.dtype) -> None:
    """To the bit, also of a head that is all zeros."""
    cache = paged(*torch.zeros(2, 2, 2, 70, dim).to(dtype), 8)
    key, value = (torch.randn(2, 1, 2, 3, dim) * 3).to(dtype)
    value[0, 1, 2] = 0
    columns = torch.tensor([[63, 64, 65]])
    step_ops.store_kv(key, value, cache, torch.tensor([1]), columns)
    for stored, new in zip(by_slot(cache), (key, value), strict=True):
        assert torch.equal(stored[1, :, 63:66], dequantize(*quantize(new))[0])
        assert not stored[0].any()


@pytest.mark.parametrize("dim", [32, 20])
def test_new_keys_go_where_they_are_told_and_nowhere_else(dim: int) -> None:
    keys, values = torch.zeros(2, 4, 2, 11, dim).half()
    key, value = torch.randn(2, 2, 2, 3, dim).half()
    # Some models compute keys in float32.
    cache = paged(keys, values)
    step_ops.store_kv(key.float(), value, cache, torch.tensor([3, 1]), torch.tensor([[5, 6, -1], [-1, 0, 10]]))
    keys, values = by_slot(cache)
    assert torch.equal(keys[3, :, 5:7], key[0, :, :2]) and torch.equal(values[1, :, 0], value[1, :, 1])
    assert torch.equal(keys[1, :, 10], key[1, :, 2])
    keys[3, :, 5:7] = keys[1, :, 0] = keys[1, :, 10] = 0
    assert not keys.any()


@HALVES
@pytest.mark.parametrize(
    ("heads", "dim", "window"),
    [((8, 1), 32, 70), ((8, 8), 32, 2**30), ((4, 2), 100, 2**30), ((20, 1), 16, 90), ((2, 1), 512, 2**30)],
    ids=["one key, window", "own keys", "heads of 100", "20 queries a key", "heads of 512"],
)
@pytest.mark.parametrize("bits", [16, 8])
def test_attention_sees_each_slots_own_tokens_and_no_others(
    heads: tuple[int, int], dim: int, window: int, dtype: torch.dtype, bits: int
) -> None:
    (num_heads, num_kv_heads), context = heads, 150
    keys, values = torch.randn(2, 4, num_kv_heads, context + 1, dim).to(dtype)
    # The last row is the padding slot's, which no cache has.
    slots, ends = torch.tensor([2, 0, 3, 4]), torch.tensor([80, 1, 150, 0])
    for slot, end in zip(slots[:3], ends[:3], strict=True):
        keys[slot, :, end:] = values[slot, :, end:] = torch.nan
    query, cache = torch.randn(4, num_heads, 1, dim).to(dtype), paged(keys, values, bits)
    keys, values = by_slot(cache)
    got = cache_attention.attend_decode(query, cache, slots, ends, dim**-0.5, window)
    for row in range(3):
        places = torch.tensor([int(ends[row]) - 1])
        wanted = attention(query[row], keys[slots[row]], values[slots[row]], places, window)
        assert torch.allclose(got[row].float(), wanted, atol=TOLERANCES[dtype])
        one = slice(row, row + 1)
        alone = cache_attention.attend_decode(query[one], cache, slots[one], ends[one], dim**-0.5, window)
        assert torch.equal(alone[0], got[row])
    assert not got[3].any()


@HALVES
@pytest.mark.parametrize(("heads", "dim", "window"), [((8, 2), 32, 70), ((2, 2), 100, 2**30)], ids=str)
@pytest.mark.parametrize("bits", [16, 8])
def test_a_chunk_sees_what_came_before_each_of_its_tokens(
    heads: tuple[int, int], dim: int, window: int, dtype: torch.dtype, bits: int
) -> None:
    (num_heads, num_kv_heads), context, count = heads, 150, 70
    keys, values = torch.randn(2, 2, num_kv_heads, context + 1, dim).to(dtype)
    chunk, cache = torch.randn(1, count, num_heads, dim).to(dtype).transpose(1, 2), paged(keys, values, bits)
    keys, values = by_slot(cache)
    for begin in (0, 100):
        places = torch.arange(begin, begin + count)
        chunks = torch.tensor([[1, begin, count, 0]])
        got = cache_attention.attend_prefill(chunk, cache, chunks, dim**-0.5, window)
        wanted = attention(chunk[0], keys[1], values[1], places, window)
        # The last chunk of a context has tokens beyond its end, which nobody reads.
        is_real = places <= context
        assert torch.allclose(got[0].float()[is_real], wanted[is_real], atol=TOLERANCES[dtype])
        assert got.isfinite().all()


@HALVES
@pytest.mark.parametrize(("begin", "num_there"), [(0, 5), (0, 64), (37, 66), (80, 1)])
def test_a_chunk_is_not_broken_by_what_an_earlier_chat_left_behind_it(
    begin: int, num_there: int, dtype: torch.dtype
) -> None:
    """A recorded chunk is longer than most prompts: after a chat whose values were NaN, shorter ones there were too."""
    keys, values = torch.randn(2, 2, 2, 151, 32).to(dtype)
    chunk = torch.randn(1, 70, 4, 32).to(dtype).transpose(1, 2)
    keys[1, :, begin + num_there :] = values[1, :, begin + num_there :] = torch.nan
    chunks = torch.tensor([[1, begin, num_there, 0]])
    got = cache_attention.attend_prefill(chunk, paged(keys, values), chunks, 32**-0.5, 2**30)
    assert got.isfinite().all() and not got[0, num_there:].any()
    wanted = attention(chunk[0], keys[1], values[1], torch.arange(begin, begin + 70), 2**30)
    assert torch.allclose(got[0, :num_there].float(), wanted[:num_there], atol=TOLERANCES[dtype])


@HALVES
@pytest.mark.parametrize("window", [2**30, 40])
def test_chunks_of_several_chats_are_read_as_each_by_itself(window: int, dtype: torch.dtype) -> None:
    """To the last bit, in whatever order and beside whatever rows; those of no chunk get zeros."""
    keys, values = torch.randn(2, 4, 2, 151, 32).to(dtype)
    query = torch.randn(1, 240, 4, 32).to(dtype).transpose(1, 2)
    query[:, :, 223:] = torch.nan
    chunks = torch.tensor([[3, 20, 70, 0], [0, 0, 1, 70], [1, 5, 128, 71], [2, 60, 24, 199], [0, 0, 0, 223]])
    cache = paged(keys, values)
    got = cache_attention.attend_prefill(query, cache, chunks, 32**-0.5, window)
    assert not got[0, 223:].any()
    for slot, begin, count, row in chunks[:4].tolist():
        own = query[:, :, row : row + count]
        alone = torch.tensor([[slot, begin, count, 0]])
        assert torch.equal(
            cache_attention.attend_prefill(own, cache, alone, 32**-0.5, window)[0], got[0, row : row + count]
        )
        wanted = attention(own[0], keys[slot], values[slot], torch.arange(begin, begin + count), window)
        assert torch.allclose(got[0, row : row + count].float(), wanted, atol=TOLERANCES[dtype])


def test_the_rows_of_a_pass_are_told_where_they_belong() -> None:
    chunks = torch.tensor([[2, 7, 3, 0], [0, 0, 1, 3], [0, 0, 0, 4]])
    slots, positions, columns = step_ops.place_chunks(chunks, 6, padding_slot=4)
    assert slots.tolist() == [2, 2, 2, 0, 4, 4]
    assert positions.tolist() == [7, 8, 9, 0, 0, 0]
    assert columns.tolist() == [7, 8, 9, 0, -1, -1]


@HALVES
def test_a_sink_takes_its_share_of_every_tokens_attention(dtype: torch.dtype) -> None:
    """gpt-oss: a score of each head that belongs to no token, in a window, alone and beside a chunk."""
    keys, values = torch.randn(2, 2, 2, 151, 64).to(dtype)
    chunk, sinks = torch.randn(1, 70, 8, 64).to(dtype).transpose(1, 2), (torch.randn(8) * 3).to(dtype)
    chunks, places = torch.tensor([[1, 60, 70, 0]]), torch.arange(60, 130)
    got = cache_attention.attend_prefill(chunk, paged(keys, values), chunks, 64**-0.5, 50, sinks)
    wanted = attention(chunk[0], keys[1], values[1], places, 50, sinks)
    assert torch.allclose(got[0].float(), wanted, atol=TOLERANCES[dtype])
    # An empty row's result stays 0.
    slots, ends = torch.tensor([1, 1]), torch.tensor([130, 0])
    both = cache_attention.attend_decode(
        chunk[:, :, -1:].expand(2, -1, -1, -1), paged(keys, values), slots, ends, 64**-0.5, 50, sinks
    )
    assert torch.allclose(both[0].float(), wanted[-1:], atol=TOLERANCES[dtype]) and not both[1].any()


def attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    window: int,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[heads, tokens, dim] over one slot, written out: [tokens, heads, dim]. sinks: [heads]."""
    repeats = query.shape[0] // keys.shape[0]
    keys, values = (tensor.float().nan_to_num().repeat_interleave(repeats, 0) for tensor in (keys, values))
    back = places[:, None] - torch.arange(keys.shape[1])[None]
    scores = query.float() @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill((back < 0) | (back >= window), float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, len(places), 1)), -1)
    return (scores.softmax(-1)[..., : keys.shape[1]] @ values).transpose(0, 1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, top_p=0.8),
        Sampling(temperature=1.0, top_p=1.0, top_k=7),
        Sampling(temperature=1.3, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.3),
    ],
    ids=["top-p", "top-k", "all"],
)
def test_tokens_are_drawn_as_often_as_they_should_be(sampling: Sampling) -> None:
    """The same cuts as core/worker/decode/sampling.py: nothing outside them, and inside as likely as there."""
    logits = (torch.randn(1, VOCABULARY) * 3).half()
    counts = torch.zeros(VOCABULARY)
    for position in range(DRAWS):
        counts[draw(logits, sampling, seed=1234, position=position)] += 1
    scores, ids = cut(penalize(logits[0].float(), torch.arange(30), sampling.repetition_penalty) / sampling.temperature,
                      sampling)  # fmt: skip
    wanted = torch.zeros(VOCABULARY)
    wanted[slice(None) if ids is None else ids] = scores.softmax(-1)
    assert not counts[wanted == 0].any()
    # Chi-square over what is kept: its mean is the number of tokens kept, and far more would be chance in 10,000.
    expected = wanted[wanted > 0] * DRAWS
    chi_square = float(((counts[wanted > 0] - expected) ** 2 / expected).sum())
    assert chi_square < len(expected) + 5 * (2 * len(expected)) ** 0.5


def test_a_seed_draws_the_same_again_and_broken_logits_draw_nothing() -> None:
    logits, sampling = torch.randn(1, VOCABULARY).half(), Sampling(temperature=1.0, top_p=1.0)
    first = [draw(logits, sampling, seed=5, position=position) for position in range(20)]
    assert first == [draw(logits, sampling, seed=5, position=position) for position in range(20)]
    assert first != [draw(logits, sampling, seed=6, position=position) for position in range(20)]
    assert draw(logits, GREEDY, seed=5, position=0) == int(penalize(logits[0].float(), torch.arange(30), 1.0).argmax())
    logits[0, 17] = float("nan")
    assert draw(logits, sampling, seed=5, position=0) == -1


@HALVES
def test_offsets_and_masks_change_what_is_drawn_and_penalties_count_what_was(dtype: torch.dtype) -> None:
    logits = torch.randn(1, VOCABULARY).to(dtype)
    sampling = Sampling(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.2)
    slots = make_slot_state(1, VOCABULARY, logits.device)
    slots.settings[0] = settings_row(sampling, has_offsets=True, has_mask=True)
    slots.offsets[0] = torch.randn(VOCABULARY)
    slots.masks[0] = torch.randint(-(2**31), 2**31 - 1, slots.masks[0].shape)
    slots.seen[0, :30] = SEEN
    wanted_offsets, allowed = slots.offsets[0].clone(), unpacked(slots.masks[0], VOCABULARY)
    seen, said = set(range(30)), set()
    drawn, rows = torch.zeros(1).long(), torch.zeros(1).long()
    kernel = sampling_kernel_for(dtype, VOCABULARY, logits.device)
    for place in range(12):
        scores = penalize(logits[0].float(), torch.tensor(sorted(seen)), 1.2) + wanted_offsets
        wanted = int(scores.masked_fill(~allowed, -torch.inf).argmax())
        # The step itself leaves a slot with a mask alone, but for its position.
        before = [slots.tokens.clone(), slots.seen.clone(), slots.offsets.clone()]
        places = torch.tensor([place])
        kernel(logits, torch.empty(1, VOCABULARY), rows, slots, places, drawn.fill_(-7))
        assert int(drawn) == -7 and slots.positions[0] == place
        assert all(torch.equal(*pair) for pair in zip(before, (slots.tokens, slots.seen, slots.offsets), strict=True))
        kernel(logits, torch.empty(1, VOCABULARY), rows, slots, places, drawn, is_late=True)
        assert int(drawn) == int(slots.tokens[0]) == wanted and slots.positions[0] == place
        note_token(wanted_offsets, wanted, sampling, is_first=wanted not in said)
        seen.add(wanted)
        said.add(wanted)
    assert torch.equal(slots.offsets[0], wanted_offsets)
    assert len(said) > 1
    # That of padding has none, and is left alone by a late draw.
    kernel(logits, torch.empty(1, VOCABULARY), torch.ones(1).long(), slots, places, drawn.fill_(-7), is_late=True)
    assert int(drawn) == -7 and slots.offsets[1].eq(0).all()


@HALVES
@pytest.mark.parametrize("vocabulary", [7, VOCABULARY, 2500])
def test_log_probabilities_are_those_of_a_whole_softmax(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(3, vocabulary) * 3).to(dtype)
    logits[1, 3] = logits[1, 5] = 30.0
    # The likeliest of the last row are all of one thread.
    logits[2, 6::THREADS] = torch.arange(31, 40)[: len(range(6, vocabulary, THREADS))].to(dtype)
    tokens = torch.tensor([2, 5, -1])
    told, num_top = make_told(3, logits.device), min(MAX_TOP, vocabulary)
    logprobs_kernel_for(dtype, logits.device)(logits, tokens, told, num_top)
    numbers, ids = split_told(told)
    chosen, top_values, top_tokens = numbers[:, 0], numbers[:, 1:], ids.long()
    wanted = torch.log_softmax(logits.float(), dim=-1)
    assert torch.allclose(chosen[:2], wanted[[0, 1], tokens[:2]], atol=1e-4)
    values, _ = wanted.topk(num_top)
    assert torch.allclose(top_values[:, :num_top], values, atol=1e-4)
    assert torch.allclose(wanted.gather(1, top_tokens[:, :num_top]), values, atol=1e-4)
    # Each comes once, of equals the first first.
    assert top_tokens[1, :2].tolist() == [3, 5]
    assert all(len(set(row.tolist())) == num_top for row in top_tokens[:, :num_top])


def test_a_vocabulary_larger_than_a_block_is_drawn_from() -> None:
    """Each thread reads several scores; of equals the first is taken."""
    logits = torch.randn(2, 2500).bfloat16().clamp(max=3)
    logits[0, 2222] = logits[1, 1030] = logits[1, 2400] = 4.0
    slots = make_slot_state(2, 2500, logits.device)
    slots.settings[:] = settings_row(GREEDY)
    drawn = torch.zeros(2).long()
    kernel = sampling_kernel_for(torch.bfloat16, 2500, logits.device)
    kernel(logits, torch.empty(2, 2500), torch.tensor([1, 2]), slots, torch.tensor([1, 9]), drawn)
    assert drawn.tolist() == [2222, 1030]
    # The last slot is that of padding.
    assert slots.tokens.tolist() == [0, 2222, 0] and slots.positions.tolist() == [0, 1, 0]


def draw(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    slots = make_slot_state(1, VOCABULARY, logits.device)
    slots.settings[:] = settings_row(sampling)
    slots.seen[0, :30] = 1
    slots.seeds[0] = seed
    drawn, rows = torch.zeros(1).long(), torch.zeros(1).long()
    kernel = sampling_kernel_for(logits.dtype, VOCABULARY, logits.device)
    # First as one of several tokens in question: nothing of the slot changes.
    kernel(logits, torch.empty(1, VOCABULARY), rows, slots, torch.tensor([position + 1]), drawn, False)
    asked = int(drawn)
    assert not slots.positions.any() and not slots.tokens.any() and slots.seen.sum() == 30
    kernel(logits, torch.empty(1, VOCABULARY), rows, slots, torch.tensor([position + 1]), drawn)
    assert slots.positions[0] == position + 1 and int(drawn) == asked
    return int(drawn)
