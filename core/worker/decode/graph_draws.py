"""The draws of captured steps, by slot: what lies in GPU memory, and those that the host has a part in.

The kernel of cuda/draw.cu draws by settings, offsets and masks. What it does not know (DRY, XTC, typical-p, mirostat,
and a grammar beside penalties) is drawn on the CPU from the same logits, for its slot alone, and written back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.engine.sampling_params import Sampling
from core.worker.decode.draw_rules import DrawRules, TokenConstraint
from core.worker.decode.logit_offsets import banned_until, make_offsets
from core.worker.decode.logprobs import TokenLogprobs, logprobs_of
from core.worker.decode.slot_draw import SlotDraw
from core.worker.decode.steps import PendingTokens
from core.worker.kernels.sampling_kernel import HAS_MASK, SAID, SEEN, SlotSamplingState, settings_row


class GraphDraws:
    """Keeps the state of `num_slots` slots. For the worker's main thread."""

    def __init__(self, state: SlotSamplingState, num_slots: int, vocabulary: int) -> None:
        self._state, self._vocabulary = state, vocabulary
        self._slots: list[_SlotRules | None] = [None] * num_slots
        device = state.tokens.device
        # A row for each slot, which a copy may still read while another slot's is written.
        shape = (num_slots, state.masks.shape[1])
        self._masks = torch.empty(shape, dtype=torch.int32, pin_memory=device.type == "cuda")

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: DrawRules) -> None:
        state, device = self._state, self._state.tokens.device
        answer = list(tokens[len(tokens) - rules.num_answer :])
        offsets = make_offsets(self._vocabulary, sampling, rules.options, answer)
        state.settings[slot].copy_(settings_row(sampling, offsets is not None))
        state.seeds[slot] = seed
        state.seen[slot] = 0
        if sampling.repetition_penalty != 1.0:
            state.seen[slot, torch.tensor(tokens, device=device)] = SEEN
        if answer:
            state.seen[slot, torch.tensor(answer, device=device)] = SEEN | SAID
        own = _SlotRules(rules, len(answer), banned_until(rules.options))
        if offsets is not None:
            ends = torch.tensor(sorted(end for end in rules.end_tokens if end < self._vocabulary), dtype=torch.long)
            own.ends, own.end_offsets = ends.to(device), offsets[ends].to(device)
            if own.num_drawn < own.banned_until:
                offsets[ends] = -torch.inf
            state.offsets[slot].copy_(offsets)
        if sampling.is_slow or (
            rules.constraint is not None and (offsets is not None or sampling.repetition_penalty != 1.0)
        ):
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

    def write_mask(self, slot: int) -> bool:
        """Compute what may come in a slot by its grammar. Whether the kernel has to draw again with it."""
        own = self._slots[slot]
        if own is None or own.drawing is not None or own.constraint is None:
            return False
        is_active = own.constraint.is_active
        if is_active:
            # The last copy has ended: its token was waited for.
            allowed = own.constraint.allowed()
            row = self._masks[slot].zero_()
            row[: allowed.numel()] = allowed[: row.numel()]
            self._state.masks[slot].copy_(row, non_blocking=True)
        if is_active != own.has_mask:
            self._state.settings[slot, HAS_MASK] = float(is_active)
            own.has_mask = is_active
        return is_active

    def late(self, slots: Sequence[int], logits: torch.Tensor, pending: PendingTokens) -> PendingTokens:
        """What `pending` brings, with what the host computes from `logits` [rows, vocabulary] of `slots`."""
        late = {row: own for row, slot in enumerate(slots) if (own := self._slots[slot]) and own.is_late}
        return LateTokens(self, slots, logits, pending, late) if late else pending

    def write_token(self, slot: int, token: int) -> None:
        self._state.tokens[slot] = token

    def logprobs_of(self, logits: torch.Tensor, token: int, num_top: int) -> TokenLogprobs:
        return logprobs_of(logits.cpu(), token, num_top)


class _SlotRules:
    """What a slot's request asks of its draws. `end_offsets`: what its end tokens' offsets are once they may come."""

    def __init__(self, rules: DrawRules, num_drawn: int, banned_until: float) -> None:
        self.num_drawn, self.banned_until = num_drawn, banned_until
        self.constraint: TokenConstraint | None = rules.constraint
        self.num_top = rules.options.logprobs
        self.ends: torch.Tensor | None = None
        self.end_offsets: torch.Tensor | None = None
        self.drawing: SlotDraw | None = None
        self.has_mask = False

    @property
    def is_late(self) -> bool:
        return self.drawing is not None or self.num_top is not None


class LateTokens:
    """A step's tokens; some are drawn, or their log-probabilities computed, once the logits are on the host."""

    def __init__(
        self,
        draws: GraphDraws,
        slots: Sequence[int],
        logits: torch.Tensor,
        pending: PendingTokens,
        late: dict[int, _SlotRules],
    ) -> None:
        self._draws, self._slots, self._pending, self._late = draws, slots, pending, late
        is_cuda = logits.device.type == "cuda"
        # Copied now, in the stream's order: the next step writes its own logits there.
        self._logits = {row: _to_host(logits[row], is_cuda) for row in late}
        self._event = torch.cuda.Event(blocking=True) if is_cuda else None
        if self._event is not None:
            self._event.record()
        self._logprobs: list[TokenLogprobs | None] = [None] * len(slots)

    def wait(self) -> list[int | None]:
        tokens = list(self._pending.wait())
        if self._event is not None:
            self._event.synchronize()
        for row, own in self._late.items():
            logits = self._logits[row]
            if own.drawing is not None:
                tokens[row] = token = own.drawing.draw(logits)
                self._logprobs[row] = own.drawing.logprobs
                if token is not None:
                    self._draws.write_token(self._slots[row], token)
            elif (token := tokens[row]) is not None and own.num_top is not None:
                self._logprobs[row] = logprobs_of(logits, token, own.num_top)
        return tokens

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        return self._logprobs


def _to_host(logits: torch.Tensor, is_cuda: bool) -> torch.Tensor:
    copied = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=is_cuda)
    copied.copy_(logits, non_blocking=is_cuda)
    return copied
