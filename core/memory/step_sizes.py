"""How much a step takes at once: tokens of prompts, and of one chat those that may follow its last one."""

from __future__ import annotations

from typing import NamedTuple

# How many tokens of one chat a step verifies: as many rows as the kernels of small batches take at once.
VERIFIED_TOKENS = 8
# How many tokens of prompts the engine reads at once on a GPU; the plan holds room for that many.
GPU_CHUNK_TOKENS = 512
# Where there is room for more: many prompts are read faster. Each pass reads all experts, so theirs gain by still more.
LARGE_CHUNK_TOKENS, EXPERT_CHUNK_TOKENS = (2048, 1024), (4096, 2048, 1024)
# Where there is no room for that, prompts are read more slowly, and no tokens are verified.
LEAN_CHUNK_TOKENS = 256


class StepSizes(NamedTuple):
    """chunk_tokens: of prompts. verified_tokens: of one chat, 0 where none are ever verified."""

    chunk_tokens: int
    verified_tokens: int = VERIFIED_TOKENS

    @property
    def without_verifying(self) -> StepSizes:
        return self._replace(verified_tokens=0)

    def rows(self, num_slots: int) -> int:
        """The most rows of a step that decodes: a token of each chat, or those of one that are verified."""
        return max(num_slots, self.verified_tokens)


USUAL_SIZES, LEAN_SIZES = StepSizes(GPU_CHUNK_TOKENS), StepSizes(LEAN_CHUNK_TOKENS, 0)


def smaller_sizes(sizes: StepSizes) -> list[StepSizes]:
    """Those that take less than `sizes`, the largest first."""
    everything = [*map(StepSizes, EXPERT_CHUNK_TOKENS), USUAL_SIZES, LEAN_SIZES]
    return [one for one in everything if one.chunk_tokens < sizes.chunk_tokens]
