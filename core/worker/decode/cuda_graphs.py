"""Steps as CUDA graphs: one a batch size for writing, one a chunk length for reading; knows no request and no text.

A captured step reads everything that changes from GPU memory: which slots, how far each has come, how it draws. So a
step can follow another before the host has seen the first one's tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.common.errors import EngineError
from core.engine.sampling_params import Sampling
from core.memory.plan import batch_sizes, chunk_sizes
from core.worker.decode.steps import PendingTokens
from core.worker.kernels import triton_ops
from core.worker.kernels.sampling_kernel import SETTINGS, SlotSamplingState, sampling_kernel_for
from core.worker.model.attention import refuse_additions
from core.worker.model.kv_cache import SlotCache
from core.worker.model.model_runner import ModelRunner

ATTENTION = "llamadeck_captured"
NO_WINDOW = 2**30
WARM_UPS = 2
# Which of the chunks' lengths stands for all of them where a part of the model is replaced: 128 tokens.
PREFILL_PROBE = 3
# In units of the logits' spread. Both run the same kernels; only what adds up in no fixed order may differ.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a layer's attention asks for: how it scales, how far it looks back, its heads and their size."""

    scale: float
    window: int
    heads: tuple[int, int]
    dim: int


class GraphCache:
    """The slots' cache as a captured pass sees it: places are tensors, written and read by kernels of our own."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self.context_tokens, self.num_slots = cache.context_tokens, cache.num_slots
        self.slots = self.columns = self.bounds = torch.empty(0)
        # What each layer's attention asked for when it was last called.
        self.attention_specs: dict[int, AttentionSpec] = {}

    def set_targets(self, slots: torch.Tensor, columns: torch.Tensor, bounds: torch.Tensor) -> None:
        """The next pass writes `columns` [rows, tokens] of `slots` [rows]. `bounds` [rows]: where a single token's
        view ends, or where a chunk begins."""
        self.slots, self.columns, self.bounds = slots, columns, bounds

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, [slots, kv heads, columns, dim]."""
        return self._cache.keys[index], self._cache.values[index]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._cache.keys[layer_idx], self._cache.values[layer_idx]
        triton_ops.store_kv(key, value, keys, values, self.slots, self.columns)
        return keys, values

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **extras: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention over the cache itself; what a model adds to plain attention is never left out in silence."""
        refuse_additions(extras)
        if mask is not None:
            raise NotImplementedError("attention with a mask")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attend = triton_ops.attend_decode if query.shape[2] == 1 else triton_ops.attend_prefill
        window = sliding_window or NO_WINDOW
        index = getattr(module, "layer_idx", None)
        if index is not None:
            self.attention_specs[index] = AttentionSpec(scale, window, (query.shape[1], keys.shape[1]), query.shape[3])
        return attend(query, keys, values, self.slots, self.bounds, scale, window), None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0


class AsyncTokens:
    """Tokens on their way from the GPU."""

    def __init__(self, drawn: torch.Tensor) -> None:
        self._tokens = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
        self._tokens.copy_(drawn, non_blocking=True)
        # The next step is under way meanwhile, so sleeping costs nothing, and spinning would take a core.
        self._event = torch.cuda.Event(blocking=True)
        self._event.record()

    def wait(self) -> list[int | None]:
        self._event.synchronize()
        return [None if token < 0 else token for token in self._tokens.tolist()]


class GraphRecorder:
    """What captured steps ask of CUDA."""

    def new_pool(self) -> Any:
        """Memory for captured steps; what ran before gives back what it does not hold."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        """`compute` as a graph: what runs it, and where it leaves its result."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
            result = compute()
        return graph.replay, result

    def copy(self, drawn: torch.Tensor) -> PendingTokens:
        return AsyncTokens(drawn)


class GraphSteps:
    """Steps of `model` as captured graphs. What they need is allocated here, at once, and never again."""

    runs_ahead = True

    def __init__(
        self,
        model: ModelRunner,
        chunk_tokens: int,
        recorder: GraphRecorder | None = None,
        fuse: Callable[[GraphCache, Callable[[], object], Callable[[], object]], object] | None = None,
    ) -> None:
        """`fuse` may replace parts of the model before it is captured; it is given the cache, and what runs the model
        for a new token of one or two slots, and for a piece of a prompt."""
        self._model = model
        self.recorder = recorder or GraphRecorder()
        self.num_slots = model.cache.num_slots
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        device, many = model.device, self.num_slots + 1  # One more, for rows that stand for nobody.
        self.settings = torch.ones((many, len(SETTINGS)), dtype=torch.float32, device=device)
        self.seeds = torch.zeros(many, dtype=torch.long, device=device)
        self.seen = torch.zeros((many, self.vocabulary), dtype=torch.uint8, device=device)
        self.tokens = torch.zeros(many, dtype=torch.long, device=device)
        self.positions = torch.zeros(many, dtype=torch.long, device=device)
        self.scratch = torch.empty((self.num_slots, self.vocabulary), dtype=torch.float32, device=device)
        self.cache = GraphCache(model.cache)
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, self.cache.attend)
        model.use_attention(ATTENTION)
        self._prefill_graphs = [PrefillGraph(self, tokens) for tokens in chunk_sizes(chunk_tokens)]
        self._decode_graphs = [DecodeGraph(self, rows) for rows in batch_sizes(self.num_slots)]
        if fuse:
            fuse(self.cache, self._run_decode, self._run_prefill)
        self._capture()
        self.settings.fill_(1.0)
        self.seen.zero_()

    def _capture(self) -> None:
        """Record every step. All share one pool of memory, the largest first: they never run at the same time.

        Raises EngineError where a recorded step computes something else than the same step run plainly.
        """
        steps: list[PrefillGraph | DecodeGraph] = [*reversed(self._prefill_graphs), *reversed(self._decode_graphs)]
        checked: list[PrefillGraph | DecodeGraph] = [self._prefill_graphs[-1], self._decode_graphs[-1]]
        for step in steps:
            for _ in range(WARM_UPS):
                step.compute()
        # A step of real slots goes on from where the last one came.
        tokens, positions = self.tokens.clone(), self.positions.clone()

        def go_back() -> None:
            self.tokens.copy_(tokens)
            self.positions.copy_(positions)

        wanted = []
        for step in checked:
            go_back()
            wanted.append(step.compute().float())
        pool = self.recorder.new_pool()
        for step in steps:
            step.capture(pool)
        for step, plain in zip(checked, wanted, strict=True):
            go_back()
            step.replay()
            tolerance = TOLERANCE * float(plain.std())
            if not torch.allclose(step.logits.float(), plain, atol=tolerance, rtol=0.0, equal_nan=True):
                raise EngineError("captured_differs")

    def _run_decode(self) -> torch.Tensor:
        """A new token of up to two slots, after a few others, run plainly."""
        slots, read = range(min(2, self.num_slots)), self._prefill_graphs[0]
        count = min(read.num_tokens, self.context_tokens - 1)
        for slot in slots:
            read.load_inputs(slot, [(slot + 1) * place % self.vocabulary for place in range(count - slot)], 0, True)
            read.compute()
        write = next(write for write in self._decode_graphs if write.num_rows >= len(slots))
        write.load_inputs(slots)
        return write.compute()

    def _run_prefill(self) -> torch.Tensor:
        """The second piece of a prompt, run plainly; half of a context that is not long enough for two."""
        read, half = self._prefill_graphs[min(PREFILL_PROBE, len(self._prefill_graphs) - 1)], self.context_tokens // 2
        count = max(1, min(read.num_tokens, half))
        for begin in (0, count):
            read.load_inputs(0, [(begin + place) * 7 % self.vocabulary for place in range(count)], begin, True)
            logits = read.compute()
        return logits

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int]) -> None:
        self.settings[slot].copy_(torch.tensor([float(getattr(sampling, name)) for name in SETTINGS]))
        self.seeds[slot] = seed
        self.seen[slot] = 0
        if sampling.repetition_penalty != 1.0:
            self.seen[slot, torch.tensor(tokens, device=self._model.device)] = 1

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        graph = next(graph for graph in self._prefill_graphs if graph.num_tokens >= len(chunk))
        return graph.run(slot, chunk, begin, is_last)

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        graph = next(graph for graph in self._decode_graphs if graph.num_rows >= len(slots))
        return graph.run(slots)

    def run_model(self, tokens: torch.Tensor, positions: torch.Tensor, logits_of: int | torch.Tensor) -> torch.Tensor:
        return self._model.run_captured(tokens, positions, self.cache, logits_of)

    def sample(self, logits: torch.Tensor, rows: torch.Tensor, step: torch.Tensor, drawn: torch.Tensor) -> None:
        kernel = sampling_kernel_for(logits.dtype, self.vocabulary, logits.device)
        slots = SlotSamplingState(self.settings, self.seeds, self.seen, self.tokens, self.positions)
        if kernel:
            kernel(logits, rows, slots, step, drawn)
        else:
            triton_ops.sample_all(logits, self.scratch, rows, slots, step, drawn)


class _Step(ABC):
    """One step that can be run plainly, captured, and from then on replayed: `compute` works from GPU memory alone."""

    replay: Callable[[], None]
    # Where a replay leaves the logits of its rows.
    logits: torch.Tensor

    def __init__(self, steps: GraphSteps) -> None:
        self._steps = steps

    @abstractmethod
    def compute(self) -> torch.Tensor:
        """Run the step, kernel by kernel; its logits."""

    def capture(self, pool: Any) -> None:
        """Record the step."""
        self.replay, self.logits = self._steps.recorder.record(self.compute, pool)


class DecodeGraph(_Step):
    """The next token of up to `num_rows` slots."""

    def __init__(self, steps: GraphSteps, num_rows: int) -> None:
        super().__init__(steps)
        self.num_rows = num_rows
        device = steps.tokens.device
        self._padding_slot = steps.num_slots
        self._now: list[int] = []
        self._rows = torch.full((num_rows,), self._padding_slot, dtype=torch.long, device=device)
        self._drawn = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._one = torch.ones(1, dtype=torch.long, device=device)

    def compute(self) -> torch.Tensor:
        steps = self._steps
        tokens, positions, columns, ends = triton_ops.gather_slots(
            self._rows, steps.tokens, steps.positions, self._padding_slot
        )
        steps.cache.set_targets(self._rows, columns.unsqueeze(1), ends)
        logits = steps.run_model(tokens.unsqueeze(1), positions.unsqueeze(1), 1)
        steps.sample(logits, self._rows, self._one, self._drawn)
        return logits

    def load_inputs(self, slots: Sequence[int]) -> None:
        now = [*slots, *[self._padding_slot] * (self.num_rows - len(slots))]
        if now != self._now:
            self._rows.copy_(torch.tensor(now))
            self._now = now

    def run(self, slots: Sequence[int]) -> PendingTokens:
        self.load_inputs(slots)
        self.replay()
        return self._steps.recorder.copy(self._drawn[: len(slots)])


class PrefillGraph(_Step):
    """Up to `num_tokens` tokens of one slot's prompt."""

    def __init__(self, steps: GraphSteps, num_tokens: int) -> None:
        super().__init__(steps)
        self.num_tokens = num_tokens
        device = steps.tokens.device
        self._padding_slot = torch.tensor([steps.num_slots], device=device)
        # The slot, the chunk's first position, its tokens, whether it is the last; then the tokens themselves.
        self._what = torch.tensor([0, 0, 1, 0, *[0] * num_tokens], device=device)
        self._places = torch.arange(num_tokens, device=device)
        self._drawn = torch.zeros(1, dtype=torch.long, device=device)

    def compute(self) -> torch.Tensor:
        steps = self._steps
        slot, begin, count, is_last = (self._what[place : place + 1] for place in range(4))
        positions = begin + self._places
        steps.cache.set_targets(slot, torch.where(self._places < count, positions, -1).unsqueeze(0), begin)
        logits = steps.run_model(self._what[4:].unsqueeze(0), positions.unsqueeze(0), count - 1)
        rows = torch.where(is_last > 0, slot, self._padding_slot)
        steps.sample(logits, rows, begin + count - steps.positions[rows], self._drawn)
        return logits

    def load_inputs(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> None:
        rest = [0] * (self.num_tokens - len(chunk))
        self._what.copy_(torch.tensor([slot, begin, len(chunk), int(is_last), *chunk, *rest]))

    def run(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        self.load_inputs(slot, chunk, begin, is_last)
        self.replay()
        return self._steps.recorder.copy(self._drawn) if is_last else None
