"""What other servers take and this one cannot do: a field with a value that would change the answer is refused.

What is not named here changes nothing that a client sees (where a cache lies, who asks), or only matters beside a field
that is named. The order of the samplers is fixed, and a wish for another one is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.api.errors import ApiError

# Each with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "prompt_logprobs": (None,),
    "n_probs": (None, 0),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "chat_template": (None, ""),
    # Tokens that must not come, or must.
    "add_bos_token": (None, True),
    "skip_special_tokens": (None, True),
    "include_stop_str_in_output": (None, False),
    "stop_token_ids": (None, []),
    "allowed_token_ids": (None, []),
    "custom_token_bans": (None, [], ""),
    "banned_strings": (None, [], ""),
    "banned_tokens": (None, [], ""),
    "bad_words": (None, []),
    "truncate_prompt_tokens": (None,),
    "logits_processors": (None, []),
    # Samplers of text backends that are off with one value alone.
    "do_sample": (None, True),
    "use_beam_search": (None, False),
    "num_beams": (None, 0, 1),
    "tfs": (None, 1, 1.0),
    "tfs_z": (None, 1, 1.0),
    "guidance_scale": (None, 1, 1.0),
    "cfg_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "skew": (None, 0, 0.0),
    "dynamic_temperature": (None, False),
    "min_keep": (None, 0, 1),
}
# Those that are off with nothing and with any number up to 0.
OFF_BELOW = (
    "smoothing_factor",
    "top_a",
    "epsilon_cutoff",
    "eta_cutoff",
    "nsigma",
    "top_n_sigma",
    "dynatemp_range",
    "no_repeat_ngram_size",
    "penalty_alpha",
    "adaptive_target",
    "repetition_decay",
)
# How far back a penalty looks, which here is always all the way; without a penalty nobody looks.
RANGES = ("repeat_last_n", "repetition_penalty_range", "rep_pen_range")
ALL_THE_WAY = (None, 0, -1)
# Other servers' names for what can be done, each used where ours is not given.
OTHER_NAMES = {
    "thinking_token_budget": "thinking_budget",
    "thinking_budget_tokens": "thinking_budget",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_length": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "rep_pen": "repetition_penalty",
    "json_schema": "guided_json",
    "regex": "guided_regex",
    "grammar": "guided_grammar",
    "grammar_string": "guided_grammar",
    "ebnf": "guided_grammar",
    "presence_pen": "presence_penalty",
    "freq_pen": "frequency_penalty",
    "typical": "typical_p",
    "mirostat_mode": "mirostat",
    "min_length": "min_tokens",
    "ban_eos_token": "ignore_eos",
    "dry_penalty_last_n": "dry_range",
    "stop_sequences": "stop",
    "stop_sequence": "stop",
    "stopping_strings": "stop",
}


def with_our_names(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`, with what other servers call otherwise."""
    added = {
        ours: fields[theirs]
        for theirs, ours in reversed(OTHER_NAMES.items())
        if fields.get(theirs) not in (None, "") and fields.get(ours) is None
    }
    return fields | added


def name_sent(ours: str, fields: Mapping[str, Any]) -> str:
    """What `fields`, as they were sent, call the field that is `ours`."""
    if fields.get(ours) is not None:
        return ours
    return next(
        (theirs for theirs, one in OTHER_NAMES.items() if one == ours and fields.get(theirs) not in (None, "")), ours
    )


def check_supported(fields: Mapping[str, Any]) -> None:
    """Raises ApiError for the first field of a request that would change the answer and cannot be done."""
    for name, value in fields.items():
        if not _asks_nothing(name, value, fields):
            raise ApiError("api_refused", field=name)


def describe() -> dict[str, Any]:
    """The fields and what they may be, as JSON Schema."""
    note = "Not supported: only what asks for nothing is taken."
    by_value = {name: {"enum": list(values), "description": note} for name, values in NEUTRAL.items()}
    below = {"anyOf": [{"type": "null"}, {"type": "number", "maximum": 0}], "description": note}
    return {**by_value, **dict.fromkeys(OFF_BELOW, below)}


def _asks_nothing(name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    if name == "n_probs" and type(value) is int and "messages" not in fields and value == fields.get("logprobs"):
        # SillyTavern asks every server by both names; the answer is the other one's.
        return True
    if name in NEUTRAL:
        return any(type(value) is type(one) and value == one for one in NEUTRAL[name])
    if name in OFF_BELOW:
        return value is None or (type(value) in (int, float) and value <= 0)
    if name in RANGES:
        return value in ALL_THE_WAY or fields.get("repetition_penalty") in (None, 1)
    if name == "best_of":
        # Of a chat there is none; of a completion the schema checks it.
        return "messages" not in fields or value is None or (type(value) is int and value == (fields.get("n") or 1))
    if name == "suffix":
        return "messages" not in fields or not value
    if name == "logprobs" and "messages" not in fields:
        # As a chat's request has it.
        return not isinstance(value, bool) or not value
    if name == "add_generation_prompt":
        return value in (None, not fields.get("continue_final_message"))
    return True
