"""The draws of captured steps, by slot: what lies in GPU memory, and those that the host has a part in.

The kernel of cuda/draw.cu draws by settings, offsets and masks. A step may run ahead of a grammar: its mask follows
from the token before, which the host reads and judges while the GPU computes the step; the slots of grammars are then
drawn by a launch of their own. What the kernel does not know (DRY, XTC, typical-p, mirostat) is drawn on the CPU from
the same logits, for its slot alone, and written back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from core.engine.sampling_params import Sampling
from core.memory.plan import SCORED_TOKENS
from core.worker.decode.draw_rules import DrawRules, TokenConstraint
from core.worker.decode.logit_offsets import banned_until, make_offsets
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.slot_draw import SlotDraw
from core.worker.decode.steps import PendingTokens
from core.worker.kernels.logprobs_kernel import logprobs_kernel_for, make_told, split_told
from core.worker.kernels.sampling_kernel import SAID, SEEN, SlotSamplingState, settings_row


class GraphDraws:
    """Keeps the state of `num_slots` slots. For the worker's main thread. on_written: hears of a slot whose token the
    host has written."""

    def __init__(
        self,
        state: SlotSamplingState,
        num_slots: int,
        vocabulary: int,
        on_written: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._state, self._vocabulary, self._on_written = state, vocabulary, on_written
        self._slots: list[SlotRules | None] = [None] * num_slots
        device = state.tokens.device
        # A row for each slot, which a copy may still read while another slot's is written.
        shape = (num_slots, state.masks.shape[1])
        self._masks = torch.empty(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._told = make_told(max(num_slots, SCORED_TOKENS), device)

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules) -> None:
        state, device = self._state, self._state.tokens.device
        answer = list(tokens[len(tokens) - rules.num_answer :])
        offsets = make_offsets(self._vocabulary, sampling, rules.options, answer)
        has_mask = rules.constraint is not None and not sampling.is_slow
        state.settings[slot].copy_(settings_row(sampling, offsets is not None, has_mask))
        state.seeds[slot] = seed
        state.seen[slot] = 0
        if sampling.repetition_penalty != 1.0:
            state.seen[slot, torch.tensor(tokens, device=device)] = SEEN
        if answer:
            state.seen[slot, torch.tensor(answer, device=device)] = SEEN | SAID
        own = SlotRules(rules, len(answer), banned_until(rules.options))
        if offsets is not None:
            ends = torch.tensor(sorted(end for end in rules.end_tokens if end < self._vocabulary), dtype=torch.long)
            own.ends, own.end_offsets = ends.to(device), offsets[ends].to(device)
            if own.num_drawn < own.banned_until:
                offsets[ends] = -torch.inf
            state.offsets[slot].copy_(offsets)
        if sampling.is_slow:
            generator = torch.Generator().manual_seed(seed)
            own.drawing = SlotDraw(sampling, generator, tokens, self._vocabulary, rules)
        self._slots[slot] = own

    def prepare(self, slots: Sequence[int]) -> None:
        """Before a step that draws for `slots`: an answer that is long enough may end from now on."""
        for slot in slots:
            own = self._slots[slot]
            if own is None:
                continue
            if own.num_drawn == own.banned_until and own.end_offsets is not None:
                self._state.offsets[slot, own.ends] = own.end_offsets
            own.num_drawn += 1

    def rules_of(self, slots: Sequence[int]) -> list[SlotRules | None]:
        return [self._slots[slot] for slot in slots]

    def draws_late(self, slots: Sequence[int]) -> bool:
        """Whether any of `slots` is drawn once the mask of its grammar is there."""
        return any(own is not None and own.draws_late for own in self.rules_of(slots))

    def write_masks(self, slots: Sequence[int], rules: Sequence[SlotRules | None]) -> list[int]:
        """Compute what may come by the grammars of `rules`, and bring it to the GPU. Of the rows those that are not to
        be drawn, since their slot has another request by now."""
        stale = [row for row, slot in enumerate(slots) if self._slots[slot] is not rules[row]]
        written = []
        for row, (slot, own) in enumerate(zip(slots, rules, strict=True)):
            if own is None or not own.draws_late or row in stale:
                continue
            assert own.constraint is not None
            is_open = not own.constraint.is_active
            if is_open and own.has_open_mask:
                continue
            # The last copy out of this row has ended: its token was waited for.
            masked = self._masks[slot]
            if is_open:
                masked.fill_(-1)
            else:
                allowed = own.constraint.allowed()
                masked.zero_()[: allowed.numel()] = allowed[: masked.numel()]
            own.has_open_mask = is_open
            written.append(slot)
        if written:
            # One copy for all: other slots' rows between them are as they were written last.
            part = slice(min(written), max(written) + 1)
            self._state.masks[part].copy_(self._masks[part], non_blocking=True)
        return stale

    def tell_logprobs(self, logits: torch.Tensor, sampled: torch.Tensor, num_top: int) -> torch.Tensor:
        """Log-probabilities of `sampled` [rows] and the `num_top` likeliest by `logits` [rows, vocabulary], on their
        way to the host, in the form of the kernel."""
        told = self._told[: logits.shape[0]]
        logprobs_kernel_for(logits.dtype, logits.device)(logits, sampled, told, num_top)
        return _to_host(told)

    def write_token(self, slot: int, token: int) -> None:
        self._state.tokens[slot] = token
        self._on_written(slot)

    def logprobs_of(self, logits: torch.Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs]:
        """Of each of `tokens` after its row of `logits` [tokens, vocabulary], waited for."""
        told = self.tell_logprobs(logits, torch.tensor(tokens, device=logits.device), num_top)
        if logits.device.type == "cuda":
            torch.cuda.current_stream(logits.device).synchronize()
        return list(read_logprobs(told, tokens, dict.fromkeys(range(len(tokens)), num_top)).values())


class SlotRules:
    """What a slot's request asks of its draws. `end_offsets`: what its end tokens' offsets are once they may come."""

    def __init__(self, rules: DrawRules, num_drawn: int, banned_until: float) -> None:
        self.num_drawn, self.banned_until = num_drawn, banned_until
        self.constraint: TokenConstraint | None = rules.constraint
        self.num_top = rules.options.logprobs
        self.ends: torch.Tensor | None = None
        self.end_offsets: torch.Tensor | None = None
        self.drawing: SlotDraw | None = None
        # Whether all may come by the mask on the GPU, as before a thought's end.
        self.has_open_mask = False

    @property
    def draws_late(self) -> bool:
        """Whether the kernel draws once the mask of its grammar is there."""
        return self.constraint is not None and self.drawing is None


class StepTokens:
    """The tokens of a step for `slots`, which has sampled [rows] from `logits` [rows, vocabulary] where no grammar has
    a part; some are drawn once their masks are there, some once the logits are on the host, of some log-probabilities
    are told. `draw_late` samples where there is a mask, all rows but some; `copy` brings tokens to the host.
    """

    def __init__(
        self,
        draws: GraphDraws,
        slots: Sequence[int],
        logits: torch.Tensor,
        sampled: torch.Tensor,
        draw_late: Callable[[Sequence[int]], None],
        copy: Callable[[torch.Tensor], PendingTokens],
    ) -> None:
        self._draws, self._slots, self._draw_late, self._copy = draws, list(slots), draw_late, copy
        self._logits, self._sampled = logits[: len(slots)], sampled[: len(slots)]
        self._rules = draws.rules_of(slots)
        self._is_late, self._is_drawn = draws.draws_late(slots), False
        self._told: torch.Tensor | None = None
        self._logprobs: list[TokenLogprobs | None] = [None] * len(slots)
        if not self._is_late:
            self.draw_rest()

    def draw_rest(self) -> None:
        if self._is_drawn:
            return
        self._is_drawn = True
        rules = dict(enumerate(self._rules))
        if self._is_late:
            self._draw_late(self._draws.write_masks(self._slots, self._rules))
        self._pending = self._copy(self._sampled)
        self._hosts = {row: own for row, own in rules.items() if own is not None and own.drawing is not None}
        # By row, of how many of the likeliest tokens log-probabilities are told.
        self._tops = {
            row: own.num_top
            for row, own in rules.items()
            if own is not None and own.num_top is not None and row not in self._hosts
        }
        # Copied now, in the stream's order: the next step writes its own there.
        self._host_logits = {row: _to_host(self._logits[row]) for row in self._hosts}
        if self._tops:
            rows = slice(0, max(self._tops) + 1)
            self._told = self._draws.tell_logprobs(self._logits[rows], self._sampled[rows], max(self._tops.values()))
        self._event: torch.cuda.Event | None = None
        if (self._hosts or self._tops) and self._logits.device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(torch.cuda.current_stream(self._logits.device))

    def wait(self) -> list[int | None]:
        self.draw_rest()
        tokens = list(self._pending.wait())
        if self._event is not None:
            self._event.synchronize()
        for row, own in self._hosts.items():
            assert own.drawing is not None
            tokens[row] = drawn = own.drawing.draw(self._host_logits[row])
            self._logprobs[row] = own.drawing.logprobs
            if drawn is not None:
                self._draws.write_token(self._slots[row], drawn)
        if self._told is not None:
            for row, told in read_logprobs(self._told, tokens, self._tops).items():
                self._logprobs[row] = told
        return tokens

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        return self._logprobs


def _to_host(values: torch.Tensor) -> torch.Tensor:
    is_cuda = values.device.type == "cuda"
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=is_cuda)
    copied.copy_(values, non_blocking=is_cuda)
    return copied


def read_logprobs(
    told: torch.Tensor, tokens: Sequence[int | None], tops: Mapping[int, int]
) -> dict[int, TokenLogprobs]:
    """What the kernel told, on the host, by row of `tops`: of its token, if there is one, with so many of the likeliest
    tokens."""
    values, ids = (part.tolist() for part in split_told(told))
    found = {}
    for row, num_top in tops.items():
        if (token := tokens[row]) is not None:
            top = tuple(zip(ids[row][:num_top], values[row][1 : 1 + num_top], strict=True))
            found[row] = TokenLogprobs(token, values[row][0], top)
    return found
