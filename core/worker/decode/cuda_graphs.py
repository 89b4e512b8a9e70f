"""Decode and prefill as CUDA graphs: one graph a batch size, one a number of tokens that a pass reads of prompts.

Where there is no room for graphs, or a kernel cannot be captured, the same steps run kernel by kernel. A step reads
from GPU memory what changes: slots, positions, sampling settings. So a step can follow another before the host has read
the first one's tokens.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.common.errors import EngineError
from core.engine.sampling_params import Sampling
from core.memory.layer_state import DELTA_TOKENS
from core.memory.plan import SCORED_TOKENS, batch_sizes, chunk_sizes
from core.memory.step_sizes import StepSizes
from core.worker.decode.captured_check import tell_difference
from core.worker.decode.device_link import SlotMirrors
from core.worker.decode.draw_rules import NO_RULES, DrawRules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.graph_draws import GraphDraws, StepTokens
from core.worker.decode.graph_recorder import GraphRecorder
from core.worker.decode.graph_step import NOTHING_KEPT, DecodeGraph, GraphStep, PrefillGraph, VerifyGraph, upload
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import JoinedTokens, PendingTokens
from core.worker.kernels.sampling_kernel import make_slot_state, neutral_settings, sampling_kernel_for
from core.worker.model.model_runner import ModelRunner
from core.worker.model.paged_cache import PagedCache

if TYPE_CHECKING:
    from core.worker.decode.split_pass import SplitPass

log = logging.getLogger(__name__)
ATTENTION = "llamadeck_captured"
WARM_UPS = 2
# Over several GPUs so many chats write in as many parts, one behind the other: each reads all weights, but all GPUs
# compute at once. Fewer chats would gain less than the further copies take.
PIPELINED_CHATS = 4
# Of the chunk lengths, the one that stands for all where a part of the model is replaced: 128 tokens.
PREFILL_PROBE = 3
# The most prompts that a pass reads parts of. The head reads a row of each.
MAX_CHUNKS = 16
# In the time of how many steps of one token several are verified, where that is not measured; and what the host adds,
# which has to know a step's tokens before it can ask for the next.
VERIFY_STEPS, HOST_STEPS, TIMED_STEPS = 2.0, 0.2, 5


class GraphSteps:
    """Steps of `model` over our own attention, sampled on the GPU; as captured graphs, unless `is_recorded` is false.

    What captured ones need is allocated in __init__, and nothing later.
    """

    runs_ahead = True

    def __init__(
        self,
        model: ModelRunner,
        sizes: StepSizes,
        recorder: GraphRecorder | None = None,
        fuse: Callable[[GraphCache, Callable[[], object], Callable[[], object]], object] | None = None,
        is_recorded: bool = True,
        split: SplitPass | None = None,
    ) -> None:
        """model: with its cache in pages. fuse(cache, run_decode, run_prefill) may replace modules before capture.
        run_decode runs one decode step of 1 or 2 slots, run_prefill one prefill chunk. split: brings a pass from GPU to
        GPU, where there are several. Tokens are verified where there are no recurrent layers. Raises
        EngineError "captured_differs", NotImplementedError for a model whose head is not on the last GPU."""
        self._model, self._split = model, split
        self.recorder = recorder or GraphRecorder()
        self.is_recorded = is_recorded
        self.num_slots = model.cache.num_slots
        self.has_states = model.cache.has_states
        self.has_adapters = model.adapters is not None
        self.context_tokens = model.cache.context_tokens
        self.vocabulary = model.vocabulary
        assert isinstance(model.cache, PagedCache)
        self.page_tokens, self.num_pages = model.cache.page_tokens, model.cache.num_pages
        # A recurrent layer leads one state on at a time.
        self.max_chunks = 1 if self.has_states else min(MAX_CHUNKS, self.num_slots)
        self.pass_sizes: Sequence[int] = chunk_sizes(sizes.chunk_tokens)
        # The GPUs in the order of the layers; the last one draws.
        self.devices = split.devices if split else (model.device,)
        device = self.devices[-1]
        if model.logits_device != device:
            raise NotImplementedError(f"a head on {model.logits_device}, not on the last GPU")
        # The last slot is the padding slot, for rows without a request.
        self._last = torch.zeros((2, self.num_slots + 1), dtype=torch.long, device=device)
        self.tokens, self.positions = self._last
        state = make_slot_state(self.num_slots, self.vocabulary, device)
        self.state = state._replace(tokens=self.tokens, positions=self.positions)
        self.mirrors = SlotMirrors(self._last, self.devices[:-1])
        self._chunks: deque[torch.cuda.Event] = deque()
        self.draws = GraphDraws(self.state, self.num_slots, self.vocabulary, lambda slot: self.mirrors.send([slot]))
        # A state cannot go back to before a token that did not follow.
        sizes = sizes.without_verifying if self.has_states else sizes
        self.max_verified, num_rows = sizes.verified_tokens, sizes.rows(self.num_slots)
        self.scratch = torch.empty((num_rows, self.vocabulary), dtype=torch.float32, device=device)
        self.cache = GraphCache(model.cache, num_rows)
        self.cache.crossing = split
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, self.cache.attend)
        model.use_attention(ATTENTION)
        self._num_scored = min(SCORED_TOKENS, sizes.chunk_tokens)
        self._prefill_graphs = [PrefillGraph(self, tokens) for tokens in self.pass_sizes]
        self._decode_graphs = [DecodeGraph(self, rows) for rows in batch_sizes(self.num_slots)]
        self._verify_graphs = [VerifyGraph(self, self.max_verified)] if self.max_verified else []
        if fuse:
            fuse(self.cache, self._run_decode, self._run_prefill)
        self._capture()
        self.keeps_states = self.has_states and self.cache.keeps_states
        self.verify_steps = self._measure_verifying()
        self.state.settings.copy_(neutral_settings(self.num_slots + 1, device))
        self.state.seen.zero_()

    def _capture(self) -> None:
        """Record every step, the largest first; all share one memory pool, since they never run at the same time.

        Raises EngineError where a recorded step computes something else than the same step run kernel by kernel.
        """
        steps: list[GraphStep] = [*reversed(self._prefill_graphs), *reversed(self._decode_graphs)]
        steps += self._verify_graphs
        checked: list[GraphStep] = [self._prefill_graphs[-1], self._decode_graphs[-1]]
        # A step changes the slots' tokens, positions and recurrent states, which the next one reads. A chunk may have
        # filled a short context, behind whose end another slot's keys lie: each step writes the last column at most.
        tokens, positions = self.tokens.clone(), self.positions.clamp(max=self.context_tokens - 1)

        def restore() -> None:
            self.tokens.copy_(tokens)
            self.positions.copy_(positions)
            self._mirror()
            self._model.cache.clear_states()

        for step in steps:
            for _ in range(WARM_UPS):
                restore()
                step.compute()
        if not self.is_recorded:
            return
        wanted = []
        for step in checked:
            restore()
            wanted.append(step.compute().float())
        pool = self.recorder.new_pool()
        for step in steps:
            restore()
            step.capture(pool)
        for step, plain in zip(checked, wanted, strict=True):
            restore()
            step.replay()
            if difference := tell_difference(step.logits.float(), plain):
                log.warning("%s: %s", step, difference)
                raise EngineError("captured_differs")

    def _measure_verifying(self) -> float:
        """In the time of how many steps of one token several are verified: with experts it is much longer, since each
        token reads others. Over the padding page alone."""
        if not (self._verify_graphs and self.is_recorded and self.tokens.is_cuda):
            return VERIFY_STEPS
        self._decode_graphs[0].load_inputs([])
        texts = [place * 97 % self.vocabulary for place in range(self.max_verified)]
        self._verify_graphs[0].load_inputs(self.num_slots, texts, 0)
        times_s = []
        for step in (self._decode_graphs[0], self._verify_graphs[0]):
            torch.cuda.synchronize(self.tokens.device)
            begin_s = time.perf_counter()
            for _ in range(TIMED_STEPS):
                step.replay()
            torch.cuda.synchronize(self.tokens.device)
            times_s.append(time.perf_counter() - begin_s)
        decode_s, verify_s = times_s
        return verify_s / decode_s + HOST_STEPS

    def _run_decode(self) -> torch.Tensor:
        """Decode one token of up to two slots, after a short prefill, kernel by kernel; the logits."""
        slots, prefill = range(min(2, self.num_slots)), self._prefill_graphs[0]
        count = min(prefill.num_tokens, self.context_tokens - 1)
        for slot in slots:
            text = [(slot + 1) * place % self.vocabulary for place in range(count - slot)]
            prefill.load_inputs([PromptChunk(slot, text, 0, True)])
            prefill.compute()
        self._mirror()
        decode = next(graph for graph in self._decode_graphs if graph.num_rows >= len(slots))
        decode.load_inputs(slots)
        return decode.compute()

    def _mirror(self) -> None:
        """Let all GPUs have the slots' tokens and positions."""
        everyone = range(self.num_slots + 1)
        self.mirrors.send(everyone)
        self.mirrors.wait(everyone)

    def _run_prefill(self) -> torch.Tensor:
        """Prefill the second chunk of a prompt, kernel by kernel; the logits. In a short context a half is one."""
        graph = self._prefill_graphs[min(PREFILL_PROBE, len(self._prefill_graphs) - 1)]
        count = max(1, min(graph.num_tokens, self.context_tokens // 2))
        for begin in (0, count):
            text = [(begin + place) * 7 % self.vocabulary for place in range(count)]
            graph.load_inputs([PromptChunk(0, text, begin, True)])
            logits = graph.compute()
        return logits

    def set_pages(self, slot: int, pages: Sequence[int]) -> None:
        self._model.cache.set_pages(slot, pages)

    def reset_slot(
        self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules = NO_RULES
    ) -> None:
        self.draws.reset_slot(slot, sampling, seed, tokens, rules)

    def reusable_tokens(self, slot: int, num_tokens: int) -> int:
        return self._model.cache.reusable_tokens(slot, num_tokens)

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        self._model.cache.copy_tokens(source, target, num_tokens)

    def prefill(self, slot: int, chunk: Sequence[int], begin: int, is_last: bool) -> PendingTokens | None:
        return self.prefill_chunks([PromptChunk(slot, chunk, begin, is_last)])

    def prefill_chunks(self, chunks: Sequence[PromptChunk]) -> PendingTokens | None:
        kept = NOTHING_KEPT
        for chunk in chunks:
            if chunk.kept_at:
                tokens = chunk.kept_at - chunk.begin
                assert len(chunks) == 1 and 0 < tokens < len(chunk.tokens) and tokens % DELTA_TOKENS == 0
            row = self._model.cache.begin_prefill(chunk.slot, chunk.begin, len(chunk.tokens), chunk.kept_at)
            kept = kept if row is None else (row, chunk.kept_at - chunk.begin)
        num_tokens = sum(len(chunk.tokens) for chunk in chunks)
        pending = next(graph for graph in self._prefill_graphs if graph.num_tokens >= num_tokens).run(chunks, kept)
        self._limit_chunks()
        return pending

    def _limit_chunks(self) -> None:
        """Wait where more than a chunk a GPU is behind the newest one: what comes later, or ends a prompt, must not
        find a whole prompt before it."""
        if not self.tokens.is_cuda:
            return
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.tokens.device))
        self._chunks.append(event)
        if len(self._chunks) > len(self.devices):
            self._chunks.popleft().synchronize()

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        self._model.cache.begin_decode(slots)
        # What is drawn late needs its step's logits until then.
        parts = [slots] if self.draws.draws_late(slots) else pipeline_parts(slots, len(self.devices))
        pending = [self._decode(part) for part in parts]
        return pending[0] if len(pending) == 1 else JoinedTokens(pending)

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        return self._verify_graphs[0].run(slot, tokens, begin)

    def set_last(self, slot: int, token: int, position: int) -> None:
        """The slot's last token, which is not in the cache yet, and its position: for the steps from now on."""
        upload([token], self.tokens[slot : slot + 1])
        upload([position], self.positions[slot : slot + 1])
        self.mirrors.send([slot])

    def _decode(self, slots: Sequence[int]) -> PendingTokens:
        graph = next(graph for graph in self._decode_graphs if graph.num_rows >= len(slots))
        self.mirrors.wait(slots)
        return graph.run(slots)

    def last_on(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots' last tokens and their positions, [slots + 1] each, on GPU number `place`."""
        tokens, positions = self._last if place == len(self.devices) - 1 else self.mirrors.copies[place]
        return tokens, positions

    def run_model(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        logits_of: int | torch.Tensor,
        enter: Callable[[int], object],
    ) -> torch.Tensor:
        """enter: hears the number of each GPU but the first, once the pass has come to it."""
        adapters = self._model.adapters

        def enter_with_adapters(place: int) -> None:
            enter(place)
            if adapters is not None:
                adapters.select_captured(self.cache.slots, place)

        with self._split.running(enter_with_adapters) if self._split else nullcontext():
            return self._model.run_captured(tokens, positions, self.cache, logits_of)

    def score(
        self, slot: int, chunk: Sequence[int], begin: int, following: Sequence[int], num_top: int
    ) -> list[TokenLogprobs]:
        """Kernel by kernel, in the memory of a whole chunk: a captured prefill keeps the logits of few tokens."""
        scores: list[TokenLogprobs] = []
        for first in range(0, len(chunk), self._num_scored):
            part = chunk[first : first + self._num_scored]
            self._model.cache.begin_prefill(slot, begin + first, len(part))
            graph = next(graph for graph in self._prefill_graphs if graph.num_tokens >= len(part))
            logits = graph.compute_all(PromptChunk(slot, part, begin + first, False))
            scores += self.draws.logprobs_of(logits, following[first : first + len(part)], num_top)
        return scores

    def draw(self, slots: Sequence[int], logits: torch.Tensor, rows: torch.Tensor, sampled: torch.Tensor) -> StepTokens:
        """The tokens that a step has `sampled` [rows] from `logits` [rows, vocabulary] for `slots`, the first rows'.
        rows [rows]: the slots that were drawn for.

        Those of grammars are drawn by `draw_rest`; until then no other step may be enqueued.
        """
        self.mirrors.send(slots)

        def draw_late(left_out: Sequence[int]) -> None:
            drawn = rows
            if left_out:
                drawn = rows.index_fill(0, torch.tensor(left_out, device=rows.device), self.num_slots)
            # The step has left the tokens' positions there.
            self.sample(logits, drawn, self.positions[drawn], sampled, is_late=True)
            self.mirrors.send(slots)

        return StepTokens(self.draws, slots, logits, sampled, draw_late, self.recorder.copy)

    def sample(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        sampled: torch.Tensor,
        is_kept: bool = True,
        is_late: bool = False,
    ) -> None:
        kernel = sampling_kernel_for(logits.dtype, self.vocabulary, logits.device)
        kernel(logits, self.scratch, rows, self.state, positions, sampled, is_kept, is_late)


def pipeline_parts(slots: Sequence[int], num_devices: int) -> list[Sequence[int]]:
    """The slots of one step, in parts of which each GPU computes another one at a time where that is faster."""
    if num_devices == 1 or len(slots) < PIPELINED_CHATS:
        return [slots]
    size = -(-len(slots) // num_devices)
    return [slots[begin : begin + size] for begin in range(0, len(slots), size)]
