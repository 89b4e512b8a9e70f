"""A tiny model with recurrent layers under the scheduler: whatever a prompt goes on from, the answer is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import PromptStarted
from core.memory.kernels.registry import kernel_named
from core.memory.layer_state import num_state_rows
from core.memory.model_shape import read_shape
from core.memory.plan import state_bytes
from core.memory.sizes import round_to_block
from core.tokenizer.read import read_tokenizer
from core.worker.decode.cpu_decode import make_fast_decode
from core.worker.decode.steps import EagerSteps
from core.worker.kernels.delta_rule import delta_chunk, delta_step
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.family_checkpoints import make_family_checkpoint
from tests.support.family_checks import SIZES
from tests.support.scheduler_harness import SchedulerHarness

CONFIG: dict[str, Any] = {"model_type": "qwen3_5_text", **SIZES, "head_dim": 16, "num_hidden_layers": 2,
                          "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
                          "linear_value_head_dim": 32, "full_attention_interval": 2}  # fmt: skip
CONTEXT = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "recurrent"
    make_family_checkpoint(path, {**CONFIG, "max_position_embeddings": CONTEXT})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Any]:
    """In float32: in half precision the order of a sum can decide between two close tokens."""
    checkpoint, dense = read_checkpoint(folder), kernel_named("dense")
    places = DeviceMap((torch.device("cpu"),))
    with torch.inference_mode():
        yield load_model(checkpoint, read_shape(checkpoint), dense, places, torch.float32, 64, lambda _: None, CONTEXT)


def make_harness(folder: Path, model: Any, num_slots: int) -> SchedulerHarness:
    steps = EagerSteps(ModelRunner(model, num_slots, CONTEXT))
    return SchedulerHarness(steps, read_tokenizer(folder), chunk=100)


def answer_of(harness: SchedulerHarness, request: int, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens of an answer; the text of some tokens is empty."""
    slots = harness.scheduler._slots
    harness.ask(request, prompt, max_new_tokens=9)
    harness.run()
    slot = next(slot for slot in slots if tuple(slot.cached_tokens[: len(prompt)]) == prompt)
    return tuple(slot.cached_tokens[len(prompt) :])


def reused(harness: SchedulerHarness, request: int) -> int:
    (started,) = [one for one in harness.events if isinstance(one, PromptStarted) and one.request == request]
    return started.reused_tokens


def test_an_answer_does_not_depend_on_what_its_prompt_went_on_from(folder: Path, model: Any) -> None:
    harness = make_harness(folder, model, 2)
    first = tuple(torch.randint(3, 300, (150,), generator=torch.Generator().manual_seed(3)).tolist())
    said = answer_of(harness, 1, first)
    further = (*first, *said, *range(20, 90))
    # Regenerated, continued, and with the last question edited.
    prompts = [first, further, (*further[:165], *range(100, 140))]
    for request, prompt in enumerate(prompts, 2):
        assert answer_of(harness, request, prompt) == answer_of(make_harness(folder, model, 1), 1, prompt)
    assert [reused(harness, request) for request in (2, 3, 4)] == [128, 158, 158]


def test_chats_of_different_lengths_do_not_disturb_one_another(folder: Path, model: Any) -> None:
    """The third slot is idle between two that write, and keeps its state."""
    harness, prompts = make_harness(folder, model, 3), [tuple(range(3 + n, 20 + 40 * n)) for n in (1, 2, 3)]
    harness.ask(0, prompts[0], max_new_tokens=5)
    harness.ask(1, prompts[1], max_new_tokens=2)
    harness.ask(2, prompts[2], max_new_tokens=9)
    harness.run()
    for request, (prompt, count) in enumerate(zip(prompts, (5, 2, 9), strict=True)):
        alone = make_harness(folder, model, 1)
        alone.ask(0, prompt, max_new_tokens=count)
        alone.run()
        assert harness.text(request) == alone.text(0)
    # The chat that ended first goes on from where it was.
    further = (*harness.scheduler._slots[1].cached_tokens, 7, 8, 9)
    assert answer_of(harness, 5, further) == answer_of(make_harness(folder, model, 1), 1, further)
    assert reused(harness, 5) == len(further) - 3


def test_the_plan_has_the_bytes_of_the_states(folder: Path, model: Any) -> None:
    runner, shape = ModelRunner(model, 3, CONTEXT), read_shape(read_checkpoint(folder))
    # The convolution's inputs and keys and values are planned in half precision.
    found = 0
    for tensor in runner.cache.tensors:
        size = 4 if tensor.dim() == 4 and tensor.shape[0] == num_state_rows(3) else 2
        found += round_to_block(tensor.numel() * size)
    assert state_bytes(shape, CONTEXT, 3) == found
    assert len(runner.cache.states) == 1 and len(runner.cache.keys) == 1


def test_a_model_with_recurrent_layers_keeps_its_own_pass_on_a_cpu(model: Any) -> None:
    assert make_fast_decode(model, ModelRunner(model, 1, 64)) is None


def test_the_chunked_rule_is_the_rule_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, tokens, key_heads, heads, key_dim, value_dim = 2, 150, 2, 6, 8, 12

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = draw(rows, tokens, key_heads, key_dim), draw(rows, tokens, key_heads, key_dim) / key_dim**0.5
    value, state = draw(rows, tokens, heads, value_dim), draw(rows, heads, key_dim, value_dim)
    # Fading fast enough that the product over a chunk is no number that float32 has.
    decay, beta = -20 * draw(rows, tokens, heads).square(), draw(rows, tokens, heads).sigmoid()
    output, after = delta_chunk(query, key, value, decay, beta, state)
    for place in range(tokens):
        inputs = (one[:, place] for one in (query, key, value, decay, beta))
        wanted, state = delta_step(*inputs, state)
        torch.testing.assert_close(output[:, place], wanted)
    torch.testing.assert_close(after, state)
    with_float = delta_chunk(
        *(one.float() for one in (query, key, value, decay, beta)), torch.zeros_like(state).float()
    )
    assert all(bool(one.isfinite().all()) for one in with_float)
