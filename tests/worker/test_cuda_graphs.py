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

from core.common.errors import EngineError
from core.engine.sampling_params import Sampling
from core.memory.fit import MAX_CHATS
from core.memory.pages import PAGE_TOKENS, full_pages
from core.memory.step_sizes import VERIFIED_TOKENS, StepSizes
from core.tokenizer.read import read_tokenizer
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer, FusedHead
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.graph_step import DecodeGraph
from core.worker.decode.layer_fusion import fuse_head, fuse_prefill
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import EagerSteps, PendingTokens
from core.worker.model.model_runner import ModelRunner
from tests.support.attention_kinds import KINDS
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.dense_models import load_dense
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.plain_recorder import PlainRecorder
from tests.support.scheduler_harness import SchedulerHarness

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
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def load(folder: Path, recipe: Recipe, merged: bool) -> Any:
    make_checkpoint(folder, recipe)
    return load_dense(folder, merged=merged)


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
    runner = WatchedRunner(model, 3, CONTEXT_TOKENS, num_pages=full_pages(3, CONTEXT_TOKENS))
    _, got = play(runner, GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), is_recorded=is_recorded), tokens)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
    assert len(set(tokens)) > 3


def test_chats_over_few_pages_that_stop_and_go_on_say_what_they_would_over_many(tmp_path: Path) -> None:
    """And what they begin with alike is read once."""
    make_checkpoint(tmp_path, Recipe(num_layers=1))
    tokenizer, texts = read_tokenizer(tmp_path), []
    for num_pages in (6, 4):
        model = load_dense(tmp_path, merged=True)
        fuse_modules(model)
        runner = WatchedRunner(model, 2, 160, num_pages=num_pages)
        harness = SchedulerHarness(
            GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder()), tokenizer, chunk=CHUNK_TOKENS
        )
        for request, last in enumerate((5, 6)):
            harness.ask(request, (*range(30, 100), last), max_new_tokens=70)
            for _ in range(3):
                harness.scheduler.step()
        was_paused = False
        while not harness.scheduler.is_idle:
            harness.scheduler.step()
            was_paused |= any(slot.is_paused for slot in harness.scheduler._slots)
        assert was_paused == (num_pages == 4)
        assert harness.end(1).stats.reused_tokens == PAGE_TOKENS
        texts.append([harness.text(request) for request in range(2)])
    assert texts[0] == texts[1]


def test_prompts_are_read_together_as_each_by_itself(tmp_path: Path) -> None:
    """In one pass, of which some rows are nobody's, in any order; those that end draw their tokens in that order."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)
    fuse_modules(model)
    runner = WatchedRunner(model, 4, CONTEXT_TOKENS, num_pages=full_pages(4, CONTEXT_TOKENS))
    steps = GraphSteps(runner, StepSizes(256), PlainRecorder())
    text = [[(7 * place + 3 * slot) % 300 + 5 for place in range(100)] for slot in range(3)]
    for slot in range(3):
        steps.reset_slot(slot, GREEDY, 1, text[slot])
    alone = []
    for slot in range(3):
        pending = steps.prefill(slot, text[slot], 0, True)
        assert pending is not None
        alone.append((pending.wait()[0], runner.logits[0].float().clone(), steps.decode([slot]).wait()[0]))
    others = [PromptChunk(slot, text[slot], 0, True) for slot in (2, 1)]
    pending = steps.prefill_chunks([PromptChunk(0, text[0][:30], 0, False), *others])
    assert pending is not None and pending.wait() == [alone[2][0], alone[1][0]]
    for row, slot in enumerate((2, 1)):
        assert (runner.logits[row].float() - alone[slot][1]).abs().max() < TOLERANCE * alone[slot][1].std()
    pending = steps.prefill_chunks([PromptChunk(0, text[0][30:], 30, True)])
    assert pending is not None and pending.wait() == [alone[0][0]]
    assert steps.decode([0, 1, 2]).wait() == [one[2] for one in alone]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_tokens_that_are_verified_are_those_that_would_have_been_decoded(tmp_path: Path, temperature: float) -> None:
    """Whether all follow that were proposed, some, or none; and what is decoded afterwards."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)
    fuse_modules(model)
    runner = WatchedRunner(model, 2, CONTEXT_TOKENS, num_pages=full_pages(2, CONTEXT_TOKENS))
    steps = GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder())
    text = [(7 * place) % 300 + 5 for place in range(30)]

    def begin() -> int:
        steps.reset_slot(1, Sampling(temperature=temperature, top_p=1.0), 7, text)
        pending = steps.prefill(1, text, 0, True)
        assert pending is not None
        (first,) = pending.wait()
        assert first is not None
        return first

    wanted = [begin()]
    rows = list[torch.Tensor]()
    for _ in range(12):
        wanted += steps.decode([1]).wait()
        rows.append(runner.logits[0].clone())
    for num_right in (7, 3, 0):
        got = [begin()]
        proposed = [*wanted[1 : 1 + num_right], *[(token + 1) % 300 for token in wanted[1 + num_right : 8]]]
        pending = steps.verify(1, [got[0], *proposed], len(text))
        got += pending.wait()
        assert len(pending.logprobs()) == len(got) - 1 == num_right + 1
        far = runner.logits[: num_right + 1].float() - torch.stack(rows[: num_right + 1]).float()
        assert far.abs().max() < TOLERANCE * rows[0].float().std()
        while len(got) < len(wanted):
            got += steps.decode([1]).wait()
        assert got == wanted


@pytest.mark.parametrize(("verified_tokens", "num_rows"), [(VERIFIED_TOKENS, VERIFIED_TOKENS), (0, 2)])
def test_steps_have_rows_for_what_the_plan_lets_them_verify(
    tmp_path: Path, verified_tokens: int, num_rows: int
) -> None:
    """Where there is no room for that they verify nothing, and their buffers are those of one token a chat."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)
    fuse_modules(model)
    runner = WatchedRunner(model, 2, CONTEXT_TOKENS, num_pages=full_pages(2, CONTEXT_TOKENS))
    steps = GraphSteps(runner, StepSizes(CHUNK_TOKENS, verified_tokens), PlainRecorder())
    assert (steps.max_verified, len(steps._verify_graphs)) == (verified_tokens, int(verified_tokens > 0))
    assert steps.scratch.shape[0] == steps.cache.num_rows == num_rows


FAMILIES: dict[str, dict[str, Any]] = {
    # It turns a quarter of each head.
    "gpt_neox": {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
    # All queries share one key, and its attention is ours in place of its own.
    "falcon": {"num_attention_heads": 6, "num_hidden_layers": 2, "hidden_size": 96},
    # It asks each of its rotary embeddings for its configuration, which a fused one once did not have.
    "granite_swa": KINDS["Granite with sinks"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_of_other_families_say_what_plain_ones_say(tmp_path: Path, family: str) -> None:
    sizes = {"model_type": family, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS}
    make_family_checkpoint(tmp_path, sizes | FAMILIES[family])
    plain = WatchedRunner(load_dense(tmp_path, merged=False), 3, CONTEXT_TOKENS)
    tokens, wanted = play(plain, EagerSteps(plain))
    model = load_dense(tmp_path, merged=True)
    assert {"FusedRope", "apply_rope"} <= set(fuse_modules(model))
    captured = WatchedRunner(model, 3, CONTEXT_TOKENS, num_pages=full_pages(3, CONTEXT_TOKENS))
    _, got = play(captured, GraphSteps(captured, StepSizes(CHUNK_TOKENS), PlainRecorder()), tokens)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_steps_are_captured_for_however_few_chats(tmp_path: Path, num_slots: int) -> None:
    """What the layers are replaced by is tried with a token of up to two chats. Where there were no more, the step for
    them wrote the next token when it was recorded and checked: that differed, so the model was run without graphs."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)

    def try_out(cache: object, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        run_decode()
        run_prefill()

    runner = ModelRunner(model, num_slots, CONTEXT_TOKENS, num_pages=full_pages(num_slots, CONTEXT_TOKENS))
    GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), try_out)


@pytest.mark.parametrize("num_writing", [65, MAX_CHATS])
def test_as_many_chats_as_there_may_be_write_what_plain_ones_write(tmp_path: Path, num_writing: int) -> None:
    """A step of half as many has a graph of its own; one more takes that of all."""
    num_slots, context_tokens = MAX_CHATS, 16
    texts = [[(11 * slot + 7 * place) % 300 + 5 for place in range(1 + slot % 4)] for slot in range(num_slots)]
    slots = [*range(num_writing - 1), num_slots - 1]
    plain = WatchedRunner(load(tmp_path, Recipe(num_layers=1), merged=False), num_slots, context_tokens)
    own = WatchedRunner(load(tmp_path, Recipe(num_layers=1), merged=True), num_slots, context_tokens,
                        num_pages=full_pages(num_slots, context_tokens))  # fmt: skip
    found = []
    for runner, steps in ((plain, EagerSteps(plain)), (own, GraphSteps(own, StepSizes(16), PlainRecorder()))):
        for slot in slots:
            steps.reset_slot(slot, GREEDY, 1, texts[slot])
            pending = steps.prefill(slot, texts[slot], 0, True)
            assert pending is not None and pending.wait() != [None]
        steps.decode(slots).wait()
        rows = [slot - slots[0] for slot in slots] if runner is plain else list(range(len(slots)))
        found.append(runner.logits[rows].float())
    wanted, got = found
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("context_tokens", [64, 16])
def test_no_step_writes_behind_a_short_context_before_the_first_chat(
    tmp_path: Path, context_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying out two chunks filled a context of 256. The decode steps after it wrote on, into another slot's keys: some
    blocks read these before, others after, so that captured steps differed from plain ones on a GPU."""
    model = load(tmp_path, Recipe(num_layers=1), merged=True)
    written: list[int] = []

    def watch(name: str) -> None:
        whole = getattr(GraphCache, name)

        def watched(
            cache: GraphCache, slots: torch.Tensor, middle: torch.Tensor, last: torch.Tensor, *more: torch.Tensor
        ) -> None:
            columns = middle if name == "set_targets" else last
            written.append(int(columns.max()))
            whole(cache, slots, middle, last, *more)

        monkeypatch.setattr(GraphCache, name, watched)

    def try_out(cache: object, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        run_decode()
        run_prefill()

    watch("set_targets")
    watch("set_chunks")
    runner = ModelRunner(model, 2, context_tokens, num_pages=full_pages(2, context_tokens))
    GraphSteps(runner, StepSizes(32), PlainRecorder(), try_out)
    assert max(written) == context_tokens - 1


class OnceOff(PlainRecorder):
    """Replays a decode step with the second row's token 5 off by one."""

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        replay, result = super().record(compute, pool)

        def replay_wrongly() -> None:
            replay()
            if isinstance(getattr(compute, "__self__", None), DecodeGraph) and len(result) == 2:
                result[1, 5] += 1.0

        return replay_wrongly, result


def test_where_a_captured_step_differs_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(tmp_path, Recipe(num_layers=1), merged=True)
    with pytest.raises(EngineError, match="does not compute"):
        GraphSteps(ModelRunner(model, 2, 64, num_pages=full_pages(2, 64)), StepSizes(32), OnceOff())
    assert "decode of 2 rows: logits of 1 of 2 rows differ (1), most in row 1 at token 5: " in caplog.text


class ReplacedHead(FusedHead):
    """A head that an earlier try has put there."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


def test_a_second_try_keeps_the_head_and_says_so() -> None:
    """After steps that could not be captured the log of the next try said that the head was as the model made it."""
    model: Any = torch.nn.Sequential(ReplacedHead())
    model.get_output_embeddings = lambda: model[0]
    assert fuse_head(model)
    assert isinstance(model[0], ReplacedHead)


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
