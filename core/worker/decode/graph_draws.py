"""The draws of captured steps, by slot: what lies in GPU memory, and those that the host has a part in.

The kernel of cuda/draw.cu draws by settings, offsets and masks. What it does not know (DRY, XTC, typical-p, mirostat,
and a grammar beside penalties) is drawn on the CPU from the same logits, for its slot alone, and written back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.engine.request_options import MAX_TOP_LOGPROBS
from core.engine.sampling_params import Sampling
from core.worker.decode.draw_rules import DrawRules, TokenConstraint
from core.worker.decode.logit_offsets import banned_until, make_offsets
from core.worker.decode.logprobs import TokenLogprobs
from core.worker.decode.slot_draw import SlotDraw
from core.worker.decode.steps import PendingTokens
from core.worker.kernels.logprobs_kernel import logprobs_kernel_for
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
        # What the kernel of cuda/logprobs.cu tells of each row.
        self._chosen = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self._top_values = torch.zeros((num_slots, MAX_TOP_LOGPROBS), dtype=torch.float32, device=device)
        self._top_tokens = torch.zeros((num_slots, MAX_TOP_LOGPROBS), dtype=torch.long, device=device)

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

    def late(
        self, slots: Sequence[int], logits: torch.Tensor, sampled: torch.Tensor, pending: PendingTokens
    ) -> PendingTokens:
        """What `pending` brings of a step that has `sampled` [rows] from `logits` [rows, vocabulary] for `slots`, with
        what the host draws, and with log-probabilities."""
        rules = [self._slots[slot] for slot in slots]
        hosts = {row: own for row, own in enumerate(rules) if own is not None and own.drawing is not None}
        told = {
            row: own.num_top
            for row, own in enumerate(rules)
            if own is not None and own.num_top is not None and row not in hosts
        }
        if not hosts and not told:
            return pending
        if told:
            rows = slice(0, max(told) + 1)
            kernel = logprobs_kernel_for(logits.dtype, logits.device)
            out = self._chosen[rows], self._top_values[rows], self._top_tokens[rows]
            kernel(logits[rows], sampled[rows], *out, max(told.values()))
        return LateTokens(self, slots, logits, pending, hosts, told)

    def told(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The kernel's log-probabilities of the first rows, on their way to the host."""
        return tuple(map(_to_host, (self._chosen[:num_rows], self._top_values[:num_rows], self._top_tokens[:num_rows])))

    def write_token(self, slot: int, token: int) -> None:
        self._state.tokens[slot] = token

    def logprobs_of(self, logits: torch.Tensor, token: int, num_top: int) -> TokenLogprobs:
        """Of one `token` after `logits` [vocabulary], waited for."""
        kernel = logprobs_kernel_for(logits.dtype, logits.device)
        wanted = torch.tensor([token], device=logits.device)
        kernel(logits.unsqueeze(0), wanted, self._chosen[:1], self._top_values[:1], self._top_tokens[:1], num_top)
        chosen, values, ids = self._chosen[:1].tolist(), self._top_values[0].tolist(), self._top_tokens[0].tolist()
        return TokenLogprobs(token, chosen[0], tuple(zip(ids[:num_top], values[:num_top], strict=True)))


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


class LateTokens:
    """A step's tokens; some are drawn once the logits are on the host, of some log-probabilities are told.

    hosts: by row, what the host draws. told: by row, of how many of the likeliest tokens.
    """

    def __init__(
        self,
        draws: GraphDraws,
        slots: Sequence[int],
        logits: torch.Tensor,
        pending: PendingTokens,
        hosts: dict[int, _SlotRules],
        told: dict[int, int],
    ) -> None:
        self._draws, self._slots, self._pending = draws, slots, pending
        self._hosts, self._told = hosts, told
        # Copied now, in the stream's order: the next step writes its own there.
        self._logits = {row: _to_host(logits[row]) for row in hosts}
        self._values = draws.told(max(told) + 1) if told else None
        self._event = torch.cuda.Event(blocking=True) if logits.device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._logprobs: list[TokenLogprobs | None] = [None] * len(slots)

    def wait(self) -> list[int | None]:
        tokens = list(self._pending.wait())
        if self._event is not None:
            self._event.synchronize()
        for row, own in self._hosts.items():
            assert own.drawing is not None
            tokens[row] = drawn = own.drawing.draw(self._logits[row])
            self._logprobs[row] = own.drawing.logprobs
            if drawn is not None:
                self._draws.write_token(self._slots[row], drawn)
        if self._values is not None:
            chosen, values, ids = (part.tolist() for part in self._values)
            for row, num_top in self._told.items():
                if (token := tokens[row]) is not None:
                    top = tuple(zip(ids[row][:num_top], values[row][:num_top], strict=True))
                    self._logprobs[row] = TokenLogprobs(token, chosen[row], top)
        return tokens

    def logprobs(self) -> Sequence[TokenLogprobs | None]:
        return self._logprobs


def _to_host(values: torch.Tensor) -> torch.Tensor:
    is_cuda = values.device.type == "cuda"
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=is_cuda)
    copied.copy_(values, non_blocking=is_cuda)
    return copied
