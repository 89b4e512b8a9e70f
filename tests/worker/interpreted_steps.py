"""The captured steps and their kernels on a CPU, through Triton's interpreter. Run by tests/worker/test_cuda_graphs.py.

What is captured is run plainly here: graphs themselves need a GPU (tests/worker/test_gpu_kernels.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gptqmodel  # noqa: F401
import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.decode.cuda_graphs import GraphRecorder, GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.layer_fusion import fuse_prefill
from core.worker.decode.sampling import cut, penalize
from core.worker.decode.steps import EagerSteps, PendingTokens, ReadyTokens, Steps
from core.worker.kernels import triton_attention, triton_ops
from core.worker.kernels.sampling_kernel import SlotSamplingState
from core.worker.kernels.triton_sampling import sample_all
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint

GREEDY = Sampling(temperature=0.0)
CHUNK_TOKENS = 40
DRAWS = 150


class PlainRecorder(GraphRecorder):
    """Runs what CUDA would replay."""

    def new_pool(self) -> Any:
        return None

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        result = torch.empty(0)

        def replay() -> None:
            result.resize_(0).set_(compute())

        replay()
        return replay, result

    def copy(self, sampled: torch.Tensor) -> PendingTokens:
        return ReadyTokens([None if token < 0 else token for token in sampled.tolist()])


@pytest.fixture(autouse=True)
def inference() -> Any:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def load(folder: Path, recipe: Recipe, merged: bool) -> Any:
    make_checkpoint(folder, recipe)
    checkpoint, dense = read_checkpoint(folder), kernel_named("dense")
    return load_model(
        checkpoint,
        read_shape(checkpoint, merged),
        dense,
        DeviceMap((torch.device("cpu"),)),
        torch.float32,
        64,
        lambda _: None,
    )


def play(steps: Steps, num_steps: int = 6) -> list[list[int | None]]:
    """Three chats of different lengths, read in chunks, that write together, alone, and two of three."""
    prompt, answers = [(7 * place) % 300 + 5 for place in range(256)], []
    for slot in range(3):
        tokens = prompt[: 30 + 37 * slot]
        steps.reset_slot(slot, GREEDY, 1, tokens)
        pending = None
        for begin in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[begin : begin + CHUNK_TOKENS]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == len(tokens))
        assert pending is not None
        answers.append(pending.wait())
    for step in range(num_steps):
        slots = [0, 1, 2] if step % 3 else [1] if step % 2 else [0, 2]
        for slot, token in zip(slots, steps.decode(slots).wait(), strict=True):
            answers[slot].append(token)
    return answers


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(model_type="mistral", num_kv_heads=4, num_layers=1)],
    ids=["llama", "mistral"],
)
def test_captured_steps_say_what_plain_ones_say(tmp_path: Path, recipe: Recipe) -> None:
    plain = play(EagerSteps(ModelRunner(load(tmp_path, recipe, merged=False), 3, 256)))
    model = load(tmp_path, recipe, merged=True)
    assert fuse_modules(model) == ["FusedMlp", "FusedNorm", "FusedRope", "apply_rope"]
    assert play(GraphSteps(ModelRunner(model, 3, 256), CHUNK_TOKENS, PlainRecorder())) == plain
    assert len({tuple(answer) for answer in plain}) == 3


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_steps_are_captured_for_however_few_chats(tmp_path: Path, num_slots: int) -> None:
    """What the layers are replaced by is tried with a token of up to two chats. Where there were no more, the step for
    them wrote the next token when it was recorded and checked: that differed, so the model was run without graphs."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)

    def try_out(cache: object, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        run_decode()
        run_prefill()

    GraphSteps(ModelRunner(model, num_slots, 256), CHUNK_TOKENS, PlainRecorder(), try_out)


class Doubling(FusedDecoderLayer):
    """A layer that doubles what it is given, where little of its shape is there."""

    def __init__(self, factor: float = 2.0) -> None:
        torch.nn.Module.__init__(self)
        self.prefills, self._factor = False, factor

    def can_prefill(self) -> bool:
        return True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shape = hidden_states.shape
        assert sum(isinstance(one, torch.Tensor) and one.shape == shape for one in gc.get_objects()) < 5
        return hidden_states * (self._factor if self.prefills else 2.0)


@pytest.mark.parametrize("wrong", [2.0, 2.1, float("nan")])
def test_layers_that_read_in_few_kernels_are_compared_one_by_one(wrong: float) -> None:
    """What 80 layers took and gave was kept at once, a third of a GiB beyond the plan: a 70B was run without graphs."""
    model: Any = torch.nn.Sequential(*(Doubling() for _ in range(4)), Doubling(wrong), Doubling())
    num_reading = fuse_prefill(model, lambda: [model(torch.ones(1, 128, 64).half()) for _ in range(2)])
    assert num_reading == (6 if wrong == 2.0 else 0)
    assert all(layer.prefills == (wrong == 2.0) for layer in model)


def test_rms_norm_and_the_gate_are_the_plain_sums() -> None:
    x, weight = torch.randn(3, 5, 96).half(), torch.randn(96).half()
    wanted = (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).half() * weight
    assert torch.equal(triton_ops.rms_norm(x, weight, 1e-5), wanted)
    both = torch.randn(3, 200).half()
    gated = torch.nn.functional.silu(both[:, :100].float()).half() * both[:, 100:]
    assert torch.equal(triton_ops.swiglu(both), gated)


def test_angles_are_right_far_into_a_text() -> None:
    positions, frequencies = torch.tensor([[0, 1, 131071]]), 10000.0 ** -(torch.arange(24) / 24)
    cos, sin = triton_ops.rope_angles(positions, frequencies, 1.5, torch.float16)
    # The model's own: a float32 holds the angle.
    wanted = (positions[0, :, None].float() * frequencies).double().repeat(1, 2)
    assert torch.allclose(cos[0].double(), wanted.cos() * 1.5, atol=1e-3)
    assert torch.allclose(sin[0].double(), wanted.sin() * 1.5, atol=1e-3)


def test_what_a_slot_writes_next_is_looked_up() -> None:
    tokens, positions = torch.tensor([11, 12, 13]), torch.tensor([4, 0, 9])
    found = triton_ops.gather_slots(torch.tensor([1, 0, 2]), tokens, positions, padding_slot=2)
    assert [one.tolist() for one in found] == [[12, 11, 13], [0, 4, 9], [0, 4, -1], [1, 5, 0]]


@pytest.mark.parametrize(("num_kv_heads", "window"), [(1, 70), (8, 2**30)])
def test_attention_sees_each_slots_own_tokens_and_no_others(window: int, num_kv_heads: int) -> None:
    heads, dim, context = 8, 32, 150
    keys, values = torch.randn(2, 4, num_kv_heads, context + 1, dim).half()
    slots, ends = torch.tensor([2, 0, 3, 4]), torch.tensor([80, 1, 150, 0])
    query = torch.randn(4, heads, 1, dim).half()
    got = triton_attention.attend_decode(query, keys, values, slots, ends, dim**-0.5, window)
    for row in range(3):
        places = torch.tensor([int(ends[row]) - 1])
        wanted = attention(query[row], keys[slots[row]], values[slots[row]], places, window)
        assert torch.allclose(got[row].float(), wanted[0], atol=2e-3)
    assert not got[3].any()
    chunk = torch.randn(1, heads, 70, dim).half()
    for begin in (0, 100):
        places = torch.arange(begin, begin + 70)
        got = triton_attention.attend_prefill(
            chunk, keys, values, torch.tensor([1]), torch.tensor([begin]), dim**-0.5, window
        )
        wanted = attention(chunk[0], keys[1], values[1], places, window)
        is_real = places <= context
        assert torch.allclose(got[0].float()[is_real], wanted[is_real], atol=4e-3)


def attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor, window: int
) -> torch.Tensor:
    """[heads, tokens, dim] over one slot, written out: [tokens, heads, dim]."""
    repeats = query.shape[0] // keys.shape[0]
    keys, values = (tensor.float().repeat_interleave(repeats, 0) for tensor in (keys, values))
    back = places[:, None] - torch.arange(keys.shape[1])[None]
    scores = query.float() @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
    weights = scores.masked_fill((back < 0) | (back >= window), float("-inf")).softmax(-1)
    return (weights @ values).transpose(0, 1)


def test_new_keys_go_where_they_are_told_and_nowhere_else() -> None:
    keys, values = torch.zeros(2, 4, 2, 11, 32)
    key, value = torch.randn(2, 2, 2, 3, 32)
    triton_ops.store_kv(key, value, keys, values, torch.tensor([3, 1]), torch.tensor([[5, 6, -1], [-1, 0, 10]]))
    assert torch.equal(keys[3, :, 5:7], key[0, :, :2]) and torch.equal(values[1, :, 0], value[1, :, 1])
    assert torch.equal(keys[1, :, 10], key[1, :, 2])
    keys[3, :, 5:7] = keys[1, :, 0] = keys[1, :, 10] = 0
    assert not keys.any()


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
    logits = (torch.randn(1, 500) * 3).half()
    counts = torch.zeros(500)
    for position in range(DRAWS):
        counts[draw(logits, sampling, seed=1234, position=position)] += 1
    scores, ids = cut(penalize(logits[0].float(), torch.arange(30), sampling.repetition_penalty) / sampling.temperature,
                      sampling)  # fmt: skip
    wanted = torch.zeros(500)
    wanted[slice(None) if ids is None else ids] = scores.softmax(-1)
    assert not counts[wanted == 0].any()
    # Chi-square over what is kept: its mean is the number of tokens kept, and far more would be chance in 10,000.
    expected = wanted[wanted > 0] * DRAWS
    chi_square = float(((counts[wanted > 0] - expected) ** 2 / expected).sum())
    assert chi_square < len(expected) + 5 * (2 * len(expected)) ** 0.5


def test_a_seed_draws_the_same_again_and_broken_logits_draw_nothing() -> None:
    logits, sampling = torch.randn(1, 500).half(), Sampling(temperature=1.0, top_p=1.0)
    first = [draw(logits, sampling, seed=5, position=position) for position in range(20)]
    assert first == [draw(logits, sampling, seed=5, position=position) for position in range(20)]
    assert first != [draw(logits, sampling, seed=6, position=position) for position in range(20)]
    assert draw(logits, GREEDY, seed=5, position=0) == int(penalize(logits[0].float(), torch.arange(30), 1.0).argmax())
    logits[0, 17] = float("nan")
    assert draw(logits, sampling, seed=5, position=0) == -1


def draw(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    settings = torch.tensor([[float(getattr(sampling, name)) for name in names]] * 2)
    seen = torch.zeros((2, 500), dtype=torch.uint8)
    seen[0, :30] = 1
    tokens, positions, drawn = torch.zeros(2).long(), torch.tensor([position, 0]), torch.zeros(1).long()
    one, rows, seeds = torch.ones(1).long(), torch.zeros(1).long(), torch.tensor([seed, 0])
    slots = SlotSamplingState(settings, seeds, seen, tokens, positions)
    sample_all(logits, torch.empty(1, 500), rows, slots, one, drawn)
    assert positions[0] == position + 1
    return int(drawn)
