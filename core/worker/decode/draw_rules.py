"""What a request asks of its draws beside its settings. It needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.engine.request_options import PLAIN, RequestOptions

if TYPE_CHECKING:
    import torch


class TokenConstraint(Protocol):
    """What may come next by a request's grammar. For the worker's main thread."""

    is_active: bool

    def allowed(self) -> torch.Tensor:
        """int32 [ceil(vocabulary / 32)], one bit a token, the lowest first; at least one is set."""
        ...


def breaks_nothing(token: int) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class DrawRules:
    """What a request asks of its draws beside its settings.

    The last `num_answer` tokens of its prompt are the answer's already. `end_tokens` end an answer. DRY's repetitions
    end at a token that `breaks`.
    """

    options: RequestOptions = PLAIN
    num_answer: int = 0
    end_tokens: frozenset[int] = frozenset()
    constraint: TokenConstraint | None = None
    breaks: Callable[[int], bool] = breaks_nothing


NO_RULES = DrawRules()
