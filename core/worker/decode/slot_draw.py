"""One slot's draws on a CPU: everything that a request may ask of them, in one place and one order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.engine.sampling_params import Sampling
from core.worker.decode.draw_rules import DrawRules
from core.worker.decode.logit_offsets import banned_until, make_offsets, note_token
from core.worker.decode.logprobs import TokenLogprobs, logprobs_of
from core.worker.decode.sampling import MIN_TEMPERATURE, cut, penalize
from core.worker.decode.slow_samplers import Mirostat, dry_penalties, typical, without_top_choices


class SlotDraw:
    """Draws a slot's tokens one after the other. Raises IndexError for a bias of a token that is none."""

    def __init__(
        self, sampling: Sampling, generator: torch.Generator, tokens: Sequence[int], vocabulary: int, rules: DrawRules
    ) -> None:
        self._sampling, self._generator, self._rules = sampling, generator, rules
        answer = list(tokens[len(tokens) - rules.num_answer :])
        self._seen, self._said, self._num_said = set(tokens), set(answer), len(answer)
        self._history = list(tokens) if sampling.dry_multiplier > 0.0 else None
        self._offsets = make_offsets(vocabulary, sampling, rules.options, answer)
        ends = [token for token in rules.end_tokens if 0 <= token < vocabulary]
        self._ends = torch.tensor(sorted(ends), dtype=torch.long)
        self._banned_until = banned_until(rules.options)
        self._mirostat = (
            Mirostat(sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta) if sampling.mirostat else None
        )
        self.logprobs: TokenLogprobs | None = None

    def draw(self, logits: torch.Tensor) -> int | None:
        """The next token by `logits` [vocabulary]; None where one is NaN. `logprobs` are told of it where asked."""
        logits = logits.to(self._generator.device, torch.float32)
        if logits.max().isnan():  # The maximum is NaN where any logit is.
            return None
        token = self._draw(self._adjust(logits))
        wanted = self._rules.options.logprobs
        self.logprobs = None if wanted is None else logprobs_of(logits, token, wanted)
        self._note(token)
        return token

    def _adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """Penalties, biases, what the grammar and the answer's length forbid. At least one stays finite: where all that
        the grammar lets come is forbidden otherwise, such as by DRY's endless penalties, the grammar alone counts."""
        sampling, device, plain = self._sampling, logits.device, logits
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(self._seen), dtype=torch.long, device=device)
            logits = penalize(logits, seen, sampling.repetition_penalty)
        if self._history is not None and (dry := dry_penalties(self._history, sampling, self._rules.breaks)):
            places = torch.tensor(list(dry), dtype=torch.long, device=device)
            logits = logits.index_add(0, places, -torch.tensor(list(dry.values()), device=device))
        if self._offsets is not None:
            logits = logits + self._offsets.to(device)
        if self._num_said < self._banned_until:
            logits = logits.index_fill(0, self._ends.to(device), -torch.inf)
        constraint = self._rules.constraint
        if constraint is not None and constraint.is_active:
            forbidden = ~unpacked(constraint.allowed(), logits.numel()).to(device)
            logits = logits.masked_fill(forbidden, -torch.inf)
            if bool(logits.max() == -torch.inf):
                logits = plain.masked_fill(forbidden, -torch.inf)
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature < MIN_TEMPERATURE:
            return int(logits.max(dim=0).indices)  # On a CPU in a third of argmax's time; the first of equals, too.
        logits = logits / sampling.temperature
        if self._mirostat is not None:
            return self._mirostat.draw(logits, self._generator)
        scores, ids = cut(logits, sampling)
        if sampling.typical_p < 1.0:
            scores, ids = _kept(scores, ids, typical(scores, sampling.typical_p))
        if sampling.xtc_probability > 0.0 and sampling.xtc_threshold <= 0.5:
            chance = float(torch.rand(1, generator=self._generator, device=self._generator.device))
            if chance < sampling.xtc_probability:
                scores, ids = _kept(scores, ids, without_top_choices(scores, sampling.xtc_threshold))
        choice = torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator)
        return int(choice) if ids is None else int(ids[choice])

    def _note(self, token: int) -> None:
        if self._offsets is not None:
            note_token(self._offsets, token, self._sampling, token not in self._said)
        if self._history is not None:
            self._history.append(token)
        self._seen.add(token)
        self._said.add(token)
        self._num_said += 1


def _kept(
    scores: torch.Tensor, ids: torch.Tensor | None, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return scores[kept], kept.nonzero().flatten() if ids is None else ids[kept]


def unpacked(mask: torch.Tensor, size: int) -> torch.Tensor:
    """bool [size] of a mask of bits, int32 [ceil(size / 32)]. Tokens beyond the mask are not allowed."""
    bits = (mask.unsqueeze(1) >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
    flags = bits.flatten().bool()[:size]
    return torch.nn.functional.pad(flags, (0, size - flags.numel()))
