"""Decode and prefill as CUDA graphs: one graph a batch size, one a chunk length.

Where there is no room for graphs, or a kernel cannot be captured, the same steps run kernel by kernel. A step reads
from GPU memory what changes: slots, positions, sampling settings. So a step can follow another before the host has read
the first one's tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.common.errors import EngineError
from core.engine.sampling_params import Sampling
from core.memory.plan import batch_sizes, chunk_sizes
from core.worker.decode.draw_rules import NO_RULES, DrawRules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.graph_draws import GraphDraws
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.steps import PendingTokens
from core.worker.kernels import step_ops
from core.worker.kernels.sampling_kernel import make_slot_state, neutral_settings, sampling_kernel_for
from core.worker.model.model_runner import ModelRunner

ATTENTION = "llamadeck_captured"
WARM_UPS = 2
# Of the chunk lengths, the one that stands for all where a part of the model is replaced: 128 tokens.
PREFILL_PROBE = 3
# Of the logits' standard deviation. A recorded step runs the same kernels; only sums without a fixed order may differ.
TOLERANCE = 0.05


class AsyncTokens:
    """Tokens that a copy brings from the GPU."""

    def __init__(self, sampled: torch.Tensor) -> None:
        self._tokens = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
        self._tokens.copy_(sampled, non_blocking=True)
        # The next step is in flight meanwhile, so sleeping costs nothing; spinning would take a core.
        self._event = torch.cuda.Event(blocking=True)
        self._event.record()

    def wait(self) -> list[int | None]:
        self._event.synchronize()
        return [None if token < 0 else token for token in self._tokens.tolist()]

    def logprobs(self) -> list[None]:
        return [None] * len(self._tokens)


class GraphRecorder:
    """What captured steps need of CUDA."""

    def new_pool(self) -> Any:
        """A memory pool for captured steps. Memory that torch caches and nothing holds is freed first."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        """Record `compute` as a graph: what replays it, and the tensor that holds its result."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
            result = compute()
        return graph.replay, result

    def copy(self, sampled: torch.Tensor) -> PendingTokens:
        return AsyncTokens(sampled)


class GraphSteps:
    """Steps of `model` over our own attention, sampled on the GPU; as captured graphs, unless `is_recorded` is false.

    What captured ones need is allocated in __init__, and nothing later.
    """

    runs_ahead = True

    def __init__(
        self,
        model: ModelRunner,
        chunk_tokens: int,
        recorder: GraphRecorder | None = None,
        fuse: Callable[[GraphCache, Callable[[], object], Callable[[], object]], object] | None = None,
        is_recorded: bool = True,
    ) -> None:
        """fuse(cache, run_decode, run_prefill) may replace modules before capture. run_decode runs one decode step of 1
        or 2 slots, run_prefill one prefill chunk. Raises EngineError "captured_differs"."""
        self._model = model
        self.recorder = recorder or GraphRecorder()
        self.is_recorded = is_recorded
        self.num_slots = model.cache.num_slots
        self.has_states = model.cache.has_states
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        device = model.device
        # The last slot is the padding slot, for rows without a request.
        self.state = make_slot_state(self.num_slots, self.vocabulary, device)
        self.tokens, self.positions = self.state.tokens, self.state.positions
        self.draws = GraphDraws(self.state, self.num_slots, self.vocabulary)
        self.scratch = torch.empty((self.num_slots, self.vocabulary), dtype=torch.float32, device=device)
        self._zero = torch.zeros(1, dtype=torch.long, device=device)
        self.cache = GraphCache(model.cache)
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, self.cache.attend)
        model.use_attention(ATTENTION)
        self._prefill_graphs = [PrefillGraph(self, tokens) for tokens in chunk_sizes(chunk_tokens)]
        self._decode_graphs = [DecodeGraph(self, rows) for rows in batch_sizes(self.num_slots)]
        if fuse:
            fuse(self.cache, self._run_decode, self._run_prefill)
        self._capture()
        self.state.settings.copy_(neutral_settings(self.num_slots + 1, device))
        self.state.seen.zero_()

    def _capture(self) -> None:
        """Record every step, the largest first; all share one memory pool, since they never run at the same time.

        Raises EngineError where a recorded step computes something else than the same step run kernel by kernel.
        """
        steps: list[PrefillGraph | DecodeGraph] = [*reversed(self._prefill_graphs), *reversed(self._decode_graphs)]
        checked: list[PrefillGraph | DecodeGraph] = [self._prefill_graphs[-1], self._decode_graphs[-1]]
        for step in steps:
            for _ in range(WARM_UPS):
                step.compute()
        if not self.is_recorded:
            return
        # A step changes the slots' tokens, positions and recurrent states, which the next one reads.
        tokens, positions = self.tokens.clone(), self.positions.clone()

        def restore() -> None:
            self.tokens.copy_(tokens)
            self.positions.copy_(positions)
            self._model.cache.clear_states()

        wanted = []
        for step in checked:
            restore()
            wanted.append(step.compute().float())
        pool = self.recorder.new_pool()
        for step in steps:
            step.capture(pool)
        for step, plain in zip(checked, wanted, strict=True):
            restore()
            step.replay()
            tolerance = TOLERANCE * float(plain.std())
            if not torch.allclose(step.logits.float(), plain, atol=tolerance, rtol=0.0, equal_nan=True):
                raise EngineError("captured_differs")

    def _run_decode(self) -> torch.Tensor:
        """Decode one token of up to two slots, after a short prefill, kernel by kernel; the logits."""
        slots, prefill = range(min(2, self.num_slots)), self._prefill_graphs[0]
        count = min(prefill.num_tokens, self.context_tokens - 1)
        for slot in slots:
            prefill.load_inputs(slot, [(slot + 1) * place % self.vocabulary for place in range(count - slot)], 0, True)
            prefill.compute()
        decode = next(graph for graph in self._decode_graphs if graph.num_rows >= len(slots))
        decode.load_inputs(slots)
        return decode.compute()

    def _run_prefill(self) -> torch.Tensor:
        """Prefill the second chunk of a prompt, kernel by kernel; the logits. In a short context a half is one."""
        graph = self._prefill_graphs[min(PREFILL_PROBE, len(self._prefill_graphs) - 1)]
        count = max(1, min(graph.num_tokens, self.context_tokens // 2))
        for begin in (0, count):
            graph.load_inputs(0, [(begin + place) * 7 % self.vocabulary for place in range(count)], begin, True)
            logits = graph.compute()
        return logits

    def reset_slot(
        self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules = NO_RULES
    ) -> None:
        self.draws.reset_slot(slot, sampling, seed, tokens, rules)

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._model.cache.reusable_tokens(slot, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self._model.cache.begin_prefill(slot, begin, len(chunk))
        graph = next(graph for graph in self._prefill_graphs if graph.num_tokens >= len(chunk))
        return graph.run(slot, chunk, begin, is_last)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        self._model.cache.begin_decode(slots)
        graph = next(graph for graph in self._decode_graphs if graph.num_rows >= len(slots))
        return graph.run(slots)

    def run_model(self, tokens: torch.Tensor, positions: torch.Tensor, logits_of: int | torch.Tensor) -> torch.Tensor:
        return self._model.run_captured(tokens, positions, self.cache, logits_of)

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        """One token at a time: a captured prefill keeps the logits of its last token alone."""
        graph, scores = self._prefill_graphs[0], []
        for place, (token, next_token) in enumerate(zip(chunk, following, strict=True)):
            self._model.cache.begin_prefill(slot, begin + place, 1)
            graph.run(slot, [token], begin + place, False)
            scores.append(self.draws.logprobs_of(graph.logits[0], next_token, num_top))
        return scores

    def draw(
        self, slots: Sequence[int], logits: torch.Tensor, rows: torch.Tensor, sampled: torch.Tensor
    ) -> PendingTokens:
        """The tokens that a step has `sampled` [rows] from `logits` [rows, vocabulary] for the slots of `rows` [rows].

        While the GPU computes the step, grammars say what may come; those slots are drawn anew with their masks.
        """
        for row, slot in enumerate(slots):
            if self.draws.write_mask(slot):
                one = slice(row, row + 1)
                self.sample(logits[one], rows[one], self._zero, sampled[one])
        return self.draws.late(slots, logits, sampled, self.recorder.copy(sampled[: len(slots)]))

    def sample(self, logits: torch.Tensor, rows: torch.Tensor, step: torch.Tensor, sampled: torch.Tensor) -> None:
        kernel = sampling_kernel_for(logits.dtype, self.vocabulary, logits.device)
        kernel(logits, self.scratch, rows, self.state, step, sampled)


class _Step(ABC):
    """A step that runs kernel by kernel until `capture`, and is replayed from then on."""

    # Where a replay leaves the logits [rows, vocabulary].
    logits: torch.Tensor

    def __init__(self, steps: GraphSteps) -> None:
        self._steps = steps
        self.replay: Callable[[], object] = self._run_plainly

    @abstractmethod
    def compute(self) -> torch.Tensor:
        """Run the step kernel by kernel, from GPU memory alone; its logits [rows, vocabulary]."""

    def _run_plainly(self) -> None:
        self.logits = self.compute()

    def capture(self, pool: Any) -> None:
        """Record the step."""
        self.replay, self.logits = self._steps.recorder.record(self.compute, pool)


class DecodeGraph(_Step):
    """Decodes the next token of up to `num_rows` slots. The rows left over are the padding slot's."""

    def __init__(self, steps: GraphSteps, num_rows: int) -> None:
        super().__init__(steps)
        self.num_rows = num_rows
        device = steps.tokens.device
        self._padding_slot = steps.num_slots
        self._slots: list[int] = []
        self._rows = torch.full((num_rows,), self._padding_slot, dtype=torch.long, device=device)
        self._sampled = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._one = torch.ones(1, dtype=torch.long, device=device)

    def compute(self) -> torch.Tensor:
        steps = self._steps
        tokens, positions, columns, ends = step_ops.gather_slots(
            self._rows, steps.tokens, steps.positions, self._padding_slot
        )
        steps.cache.set_targets(self._rows, columns.unsqueeze(1), ends)
        logits = steps.run_model(tokens.unsqueeze(1), positions.unsqueeze(1), 1)
        steps.sample(logits, self._rows, self._one, self._sampled)
        return logits

    def load_inputs(self, slots: Sequence[int]) -> None:
        padded = [*slots, *[self._padding_slot] * (self.num_rows - len(slots))]
        if padded != self._slots:
            self._rows.copy_(torch.tensor(padded))
            self._slots = padded

    def run(self, slots: Sequence[int]) -> PendingTokens:
        self._steps.draws.prepare(slots)
        self.load_inputs(slots)
        self.replay()
        return self._steps.draw(slots, self.logits, self._rows, self._sampled)


class PrefillGraph(_Step):
    """Prefills up to `num_tokens` tokens of one slot's prompt."""

    def __init__(self, steps: GraphSteps, num_tokens: int) -> None:
        super().__init__(steps)
        self.num_tokens = num_tokens
        device = steps.tokens.device
        self._padding_slot = torch.tensor([steps.num_slots], device=device)
        # The slot, the chunk's first position, its length, whether it is the prompt's last; then its tokens.
        self._inputs = torch.tensor([0, 0, 1, 0, *[0] * num_tokens], device=device)
        self._offsets = torch.arange(num_tokens, device=device)
        self._sampled = torch.zeros(1, dtype=torch.long, device=device)

    def compute(self) -> torch.Tensor:
        steps = self._steps
        slot, begin, count, is_last = (self._inputs[index : index + 1] for index in range(4))
        positions = begin + self._offsets
        columns = torch.where(self._offsets < count, positions, -1).unsqueeze(0)
        steps.cache.set_targets(slot, columns, self._inputs[1:3])
        logits = steps.run_model(self._inputs[4:].unsqueeze(0), positions.unsqueeze(0), count - 1)
        rows = torch.where(is_last > 0, slot, self._padding_slot)
        steps.sample(logits, rows, begin + count - steps.positions[rows], self._sampled)
        return logits

    def load_inputs(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> None:
        rest = [0] * (self.num_tokens - len(chunk))
        self._inputs.copy_(torch.tensor([slot, begin, len(chunk), int(is_last), *chunk, *rest]))

    def run(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        if is_last:
            self._steps.draws.prepare([slot])
        self.load_inputs(slot, chunk, begin, is_last)
        self.replay()
        return self._steps.draw([slot], self.logits, self._inputs[:1], self._sampled) if is_last else None
