"""A request's settings as the engine takes them."""

from __future__ import annotations

from typing import Any

from core.api.length_fields import ALL_THERE_IS
from core.api.schema import Sampled
from core.api.served_model import ServedModel
from core.chat.presets import combine
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import MAX_SEED, SAMPLING_RANGES, Sampling

GIVEN = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_sequence_breakers",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
# Some write -1 where nothing is to be cut, or all of the text counts.
GIVEN_FROM_ZERO = ("top_k", "dry_range")


def read_sampling(request: Sampled, served: ServedModel, longest: int) -> Sampling:
    """The request's settings over those that the model recommends. Raises InputError."""
    values: dict[str, Any] = {name: getattr(request, name) for name in GIVEN if getattr(request, name) is not None}
    values |= {name: max(0, value) for name in GIVEN_FROM_ZERO if (value := getattr(request, name)) is not None}
    if request.seed is not None:
        values["seed"] = request.seed & MAX_SEED
    most = min(served.context_tokens, int(SAMPLING_RANGES["max_new_tokens"][1]))
    longest = most if longest == ALL_THERE_IS else min(longest, most)
    return combine(served.recommended, values, {"max_new_tokens": longest, "stop": request.stop})


def read_options(request: Sampled, served: ServedModel, logprobs: int | None) -> RequestOptions:
    """What this answer alone is asked for. Raises InputError."""
    return RequestOptions(
        logit_bias=request.logit_bias,
        min_tokens=max(0, request.min_tokens or 0),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        grammar=request.grammar,
        adapter=served.adapter,
    )
