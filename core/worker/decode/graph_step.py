"""Steps that run kernel by kernel until they are recorded as CUDA graphs: decoding, and the reading of prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import PendingTokens
from core.worker.kernels import step_ops

if TYPE_CHECKING:
    from core.worker.decode.cuda_graphs import GraphSteps


# No states are kept on the way.
NOTHING_KEPT = (0, 0)


class GraphStep(ABC):
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


def upload(values: Sequence[int], target: torch.Tensor) -> None:
    """Enqueue the copy of `values` to a GPU, without waiting for what it does meanwhile."""
    target.copy_(torch.tensor(values, pin_memory=target.is_cuda), non_blocking=True)


class DecodeGraph(GraphStep):
    """Decodes the next token of up to `num_rows` slots. The rows left over are the padding slot's."""

    def __init__(self, steps: GraphSteps, num_rows: int) -> None:
        super().__init__(steps)
        self.num_rows = num_rows
        self._padding_slot = steps.num_slots
        self._slots: list[int] = []
        # By GPU; the last one's are those that are drawn for.
        self._rows_on = [
            torch.full((num_rows,), self._padding_slot, dtype=torch.long, device=one) for one in steps.devices
        ]
        self._sampled = torch.zeros(num_rows, dtype=torch.long, device=steps.devices[-1])
        self._ends = self._sampled

    def __str__(self) -> str:
        return f"decode of {self.num_rows} rows"

    def compute(self) -> torch.Tensor:
        steps = self._steps
        tokens, positions = self._enter(0)
        logits = steps.run_model(tokens.unsqueeze(1), positions.unsqueeze(1), 1, self._enter)
        # The new token comes where the columns end.
        steps.sample(logits, self._rows_on[-1], self._ends, self._sampled)
        return logits

    def _enter(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' tokens and positions on GPU number `place`, whose layers come next."""
        rows = self._rows_on[place]
        tokens, positions, columns, self._ends = step_ops.gather_slots(
            rows, *self._steps.last_on(place), self._padding_slot
        )
        self._steps.cache.set_targets(rows, columns.unsqueeze(1), self._ends)
        return tokens, positions

    def load_inputs(self, slots: Sequence[int]) -> None:
        padded = [*slots, *[self._padding_slot] * (self.num_rows - len(slots))]
        if padded != self._slots:
            for rows in self._rows_on:
                upload(padded, rows)
            self._slots = padded

    def run(self, slots: Sequence[int]) -> PendingTokens:
        self._steps.draws.prepare(slots)
        self.load_inputs(slots)
        self.replay()
        return self._steps.draw(slots, self.logits, self._rows_on[-1], self._sampled)


class VerifyGraph(GraphStep):
    """Decodes up to `num_rows` tokens of one slot, each as if those before it had been decoded one by one."""

    def __init__(self, steps: GraphSteps, num_rows: int) -> None:
        super().__init__(steps)
        self.num_rows = num_rows
        # By GPU, of each row: slot, token, position, the column to write, and where the columns end that it sees.
        self._inputs_on = [torch.zeros((5, num_rows), dtype=torch.long, device=one) for one in steps.devices]
        self._sampled = torch.zeros(num_rows, dtype=torch.long, device=steps.devices[-1])
        self.load_inputs(steps.num_slots, [], 0)

    def compute(self) -> torch.Tensor:
        steps = self._steps
        steps.cache.is_one_text = True
        tokens, positions = self._enter(0)
        logits = steps.run_model(tokens.unsqueeze(1), positions.unsqueeze(1), 1, self._enter)
        steps.cache.is_one_text = False
        # Which of these tokens count is not known yet.
        steps.sample(logits, self._inputs_on[-1][0], self._inputs_on[-1][4], self._sampled, is_kept=False)
        return logits

    def _enter(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' tokens and positions on GPU number `place`, whose layers come next."""
        slots, tokens, positions, columns, ends = self._inputs_on[place]
        self._steps.cache.set_targets(slots, columns.unsqueeze(1), ends)
        return tokens, positions

    def load_inputs(self, slot: int, tokens: Sequence[int], begin: int) -> None:
        count, rest = len(tokens), self.num_rows - len(tokens)
        places = list(range(begin, begin + count))
        slots = [slot] * count + [self._steps.num_slots] * rest
        ends = [place + 1 for place in places]
        rows = [slots, [*tokens, *[0] * rest], places + [0] * rest, places + [-1] * rest, ends + [0] * rest]
        for inputs in self._inputs_on:
            upload([value for row in rows for value in row], inputs.view(-1))

    def run(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        self.load_inputs(slot, tokens, begin)
        self.replay()
        drawn = self._steps.recorder.copy(self._sampled[: len(tokens)])
        return VerifiedTokens(self._steps, slot, tokens, begin, drawn)


class VerifiedTokens:
    """Those of the tokens `drawn` that count: up to the first that is not the one of `tokens` after it."""

    def __init__(self, steps: GraphSteps, slot: int, tokens: Sequence[int], begin: int, drawn: PendingTokens) -> None:
        self._steps, self._slot, self._tokens, self._begin, self._drawn = steps, slot, tokens, begin, drawn
        self._num_counted = 0

    def draw_rest(self) -> None:
        """All are drawn: requests with a grammar have nothing verified."""

    def wait(self) -> list[int | None]:
        drawn = self._drawn.wait()
        pairs = zip(drawn, self._tokens[1:], strict=False)
        count = next((place for place, (one, following) in enumerate(pairs) if one != following), len(drawn) - 1) + 1
        self._steps.set_last(self._slot, drawn[count - 1] or 0, self._begin + count)
        self._num_counted = count
        return list(drawn[:count])

    def logprobs(self) -> list[None]:
        return [None] * self._num_counted


class PrefillGraph(GraphStep):
    """Prefills up to `num_tokens` tokens of the prompts of up to `max_chunks` slots."""

    def __init__(self, steps: GraphSteps, num_tokens: int) -> None:
        super().__init__(steps)
        self.num_tokens, self.max_chunks = num_tokens, steps.max_chunks
        # By GPU, of each chunk: slot, first position, tokens, first row; then each one's last row, the slot that a
        # token is drawn for, and that token's position; then what is kept on the way; then the tokens of all.
        size = 7 * self.max_chunks + 2 + num_tokens
        self._inputs_on = [torch.zeros(size, dtype=torch.long, device=one) for one in steps.devices]
        self._sampled = torch.zeros(self.max_chunks, dtype=torch.long, device=steps.devices[-1])
        self.load_inputs([PromptChunk(0, [0], 0, False)])

    def __str__(self) -> str:
        return f"prefill of {self.num_tokens} tokens"

    def compute(self) -> torch.Tensor:
        steps, count = self._steps, self.max_chunks
        last_rows, slots, ends = self._inputs_on[-1][4 * count : 7 * count].view(3, count)
        positions, tokens = self._enter(0), self._inputs_on[0][7 * count + 2 :]
        # Adapters go by the rows of the whole pass.
        steps.cache.rows_read = None if steps.has_adapters else last_rows
        logits = steps.run_model(tokens.unsqueeze(0), positions.unsqueeze(0), last_rows, self._enter)
        steps.cache.rows_read = None
        steps.sample(logits, slots, ends, self._sampled)
        return logits

    def compute_all(self, chunk: PromptChunk) -> torch.Tensor:
        """Prefill `chunk` kernel by kernel: the logits [chunk, vocabulary] after each of its tokens."""
        self.load_inputs([chunk])
        positions, tokens = self._enter(0), self._inputs_on[0][7 * self.max_chunks + 2 :]
        first = torch.arange(len(chunk.tokens), device=self._steps.devices[-1])
        return self._steps.run_model(tokens.unsqueeze(0), positions.unsqueeze(0), first, self._enter)

    def _enter(self, place: int) -> torch.Tensor:
        """The tokens' positions on GPU number `place`, whose layers come next."""
        chunks, end = self._inputs_on[place][: 4 * self.max_chunks].view(-1, 4), 7 * self.max_chunks
        slots, positions, columns = step_ops.place_chunks(chunks, self.num_tokens, self._steps.num_slots)
        self._steps.cache.set_chunks(chunks, slots, columns.unsqueeze(0), self._inputs_on[place][end : end + 2])
        return positions

    def load_inputs(self, chunks: Sequence[PromptChunk], kept: tuple[int, int] = NOTHING_KEPT) -> None:
        """kept: into which row of states goes what they are after how many of the only chunk's tokens."""
        places, tokens, last_rows = list[int](), list[int](), list[int]()
        for chunk in chunks:
            places += (chunk.slot, chunk.begin, len(chunk.tokens), len(tokens))
            tokens += chunk.tokens
            last_rows.append(len(tokens) - 1)
        rest = self.max_chunks - len(chunks)
        places += (0, 0, 0, len(tokens)) * rest
        slots = [chunk.slot if chunk.is_last else self._steps.num_slots for chunk in chunks]
        ends = [chunk.begin + len(chunk.tokens) for chunk in chunks]
        drawn = [*last_rows, *[0] * rest, *slots, *[self._steps.num_slots] * rest, *ends, *[0] * rest]
        for inputs in self._inputs_on:
            upload([*places, *drawn, *kept, *tokens, *[0] * (self.num_tokens - len(tokens))], inputs)

    def run(self, chunks: Sequence[PromptChunk], kept: tuple[int, int] = NOTHING_KEPT) -> PendingTokens | None:
        """The tokens that the last chunks of their prompts sample, in the order of `chunks`."""
        # Those draw from the first rows of the logits.
        ordered = sorted(chunks, key=lambda chunk: not chunk.is_last)
        slots = [chunk.slot for chunk in ordered if chunk.is_last]
        self._steps.draws.prepare(slots)
        self.load_inputs(ordered, kept)
        self.replay()
        if not slots:
            return None
        rows = self._inputs_on[-1][5 * self.max_chunks : 6 * self.max_chunks]
        pending = self._steps.draw(slots, self.logits, rows, self._sampled)
        # What comes before an answer's first token is known.
        pending.draw_rest()
        return pending
