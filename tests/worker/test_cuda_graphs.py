"""The captured steps without a GPU: their kernels run on the CPU (tests/support/cuda_on_cpu).

What is captured is run plainly here: graphs themselves need a GPU (tests/worker/test_gpu_steps.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gptqmodel  # noqa: F401
import pytest
import torch
from transformers.models.falcon import modeling_falcon
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.layer_fusion import fuse_prefill
from core.worker.decode.steps import EagerSteps, PendingTokens
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.plain_recorder import PlainRecorder

GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS, CHUNK_TOKENS = 256, 40
# Of the logits' spread: half precision rounds each of two layers' operations, in another order than torch's own.
TOLERANCE = 0.02


class WatchedRunner(ModelRunner):
    """Keeps the logits of the last pass."""

    logits: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logits = super().forward(*args, **kwargs)
        return self.logits

    def run_captured(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logits = super().run_captured(*args, **kwargs)
        return self.logits


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with cuda_on_cpu():
        yield


@pytest.fixture(autouse=True)
def inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # An engine puts its own there, for its process.
    for source in (modeling_llama, modeling_mistral, modeling_gpt_neox, modeling_falcon):
        monkeypatch.setattr(source, "apply_rotary_pos_emb", source.apply_rotary_pos_emb)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def load(folder: Path, recipe: Recipe, merged: bool) -> Any:
    make_checkpoint(folder, recipe)
    return read_and_load(folder, merged)


def read_and_load(folder: Path, merged: bool) -> Any:
    checkpoint, dense = read_checkpoint(folder), kernel_named("dense")
    places = DeviceMap((torch.device("cpu"),))
    return load_model(checkpoint, read_shape(checkpoint, merged), dense, places, torch.float16, 64, lambda _: None)


def play(runner: WatchedRunner, steps: EagerSteps | GraphSteps, wanted: Sequence[int] | None = None) -> tuple[Any, Any]:
    """Three chats of different lengths, read in chunks, that write together, alone, and two of three: the tokens, and
    the logits that each was taken from. wanted: tokens to go on with in their place."""
    prompt = [(7 * place) % 300 + 5 for place in range(256)]
    tokens: list[int] = []
    logits: list[torch.Tensor] = []

    def take(slots: Sequence[int], pending: PendingTokens | None) -> None:
        assert pending is not None
        for row, (slot, token) in enumerate(zip(slots, pending.wait(), strict=True)):
            assert token is not None
            tokens.append(token)
            # Plain steps compute the rows between as well.
            row = row if isinstance(steps, GraphSteps) else slot - slots[0]
            logits.append(runner.logits[row].float().clone())
            if isinstance(steps, GraphSteps) and wanted is not None:
                assert token == int(logits[-1].argmax())
                steps.tokens[slot] = wanted[len(tokens) - 1]

    for slot in range(3):
        text = prompt[: 30 + 37 * slot]
        steps.reset_slot(slot, GREEDY, 1, text)
        for begin in range(0, len(text), CHUNK_TOKENS):
            chunk = text[begin : begin + CHUNK_TOKENS]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == len(text))
        take([slot], pending)
    for step in range(6):
        slots = [0, 1, 2] if step % 3 else [1] if step % 2 else [0, 2]
        take(slots, steps.decode(slots))
    return tokens, torch.stack(logits)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(model_type="mistral", num_kv_heads=4, num_layers=1)],
    ids=["llama", "mistral"],
)
@pytest.mark.parametrize("is_recorded", [True, False], ids=["captured", "kernel by kernel"])
def test_steps_over_our_own_attention_say_what_plain_ones_say(
    tmp_path: Path, recipe: Recipe, is_recorded: bool
) -> None:
    plain = WatchedRunner(load(tmp_path, recipe, merged=False), 3, CONTEXT_TOKENS)
    tokens, wanted = play(plain, EagerSteps(plain))
    model = load(tmp_path, recipe, merged=True)
    assert fuse_modules(model) == ["FusedMlp", "FusedNorm", "FusedRope", "apply_rope"]
    runner = WatchedRunner(model, 3, CONTEXT_TOKENS)
    _, got = play(runner, GraphSteps(runner, CHUNK_TOKENS, PlainRecorder(), is_recorded=is_recorded), tokens)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
    assert len(set(tokens)) > 3


FAMILIES: dict[str, dict[str, Any]] = {
    # It turns a quarter of each head.
    "gpt_neox": {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
    # All queries share one key, and its attention is ours in place of its own.
    "falcon": {"num_attention_heads": 6, "num_hidden_layers": 2, "hidden_size": 96},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_of_an_older_family_say_what_plain_ones_say(tmp_path: Path, family: str) -> None:
    sizes = {"model_type": family, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS}
    make_family_checkpoint(tmp_path, sizes | FAMILIES[family])
    plain = WatchedRunner(read_and_load(tmp_path, merged=False), 3, CONTEXT_TOKENS)
    tokens, wanted = play(plain, EagerSteps(plain))
    model = read_and_load(tmp_path, merged=True)
    assert fuse_modules(model) == ["FusedRope", "apply_rope"]
    captured = WatchedRunner(model, 3, CONTEXT_TOKENS)
    _, got = play(captured, GraphSteps(captured, CHUNK_TOKENS, PlainRecorder()), tokens)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_steps_are_captured_for_however_few_chats(tmp_path: Path, num_slots: int) -> None:
    """What the layers are replaced by is tried with a token of up to two chats. Where there were no more, the step for
    them wrote the next token when it was recorded and checked: that differed, so the model was run without graphs."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)

    def try_out(cache: object, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        run_decode()
        run_prefill()

    GraphSteps(ModelRunner(model, num_slots, CONTEXT_TOKENS), CHUNK_TOKENS, PlainRecorder(), try_out)


class Doubling(FusedDecoderLayer):
    """A layer that doubles what it is given, where little of its shape is there."""

    def __init__(self, factor: float = 2.0) -> None:
        torch.nn.Module.__init__(self)
        self.prefills, self._factor = False, factor

    def can_prefill(self) -> bool:
        return True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shape = hidden_states.shape
        assert sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects()) < 5
        return hidden_states * (self._factor if self.prefills else 2.0)


@pytest.mark.parametrize("wrong", [2.0, 2.1, float("nan")])
def test_layers_that_read_in_few_kernels_are_compared_one_by_one(wrong: float) -> None:
    """What 80 layers took and gave was kept at once, a third of a GiB beyond the plan: a 70B was run without graphs."""
    model: Any = torch.nn.Sequential(*(Doubling() for _ in range(4)), Doubling(wrong), Doubling())
    num_reading = fuse_prefill(model, lambda: [model(torch.ones(1, 128, 64).half()) for _ in range(2)])
    assert num_reading == (6 if wrong == 2.0 else 0)
    assert all(layer.prefills == (wrong == 2.0) for layer in model)
