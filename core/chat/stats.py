"""What is kept of an answer beside its words: how it ended, how fast it was."""

from __future__ import annotations

from typing import Any

from core.chat.records import State
from core.common.errors import DeckError
from core.common.i18n import LANGUAGES, catalogue
from core.engine.answer import Answer

# What an answer's template was given beside its messages.
VARIABLES = "template"


def state_of(answer: Answer) -> State:
    """How a message stands whose answer ended, or is left."""
    if answer.reason == "failed":
        return "failed"
    return "stopped" if answer.reason in (None, "cancelled") else "done"


def error_of(stats: dict[str, Any]) -> DeckError | None:
    """Why an answer failed, from its message's stats; None where they name no error that has a sentence."""
    found = stats.get("error")
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("key"), str)
        or not isinstance(found.get("params"), dict)
    ):
        return None
    if f"error.{found['key']}" not in catalogue("en"):
        return None
    if not all(isinstance(value, (str, int, float)) for value in found["params"].values()):
        return None
    try:
        error = DeckError(found["key"], **found["params"])
        return error if all(error.sentence(language) for language in LANGUAGES) else None
    except (LookupError, TypeError, ValueError, AttributeError):
        # It comes from a file, or an older version wrote it with other values.
        return None


def variables_of(stats: dict[str, Any]) -> dict[str, Any] | None:
    """The variables with which an answer was begun; None where that is not known."""
    found = stats.get(VARIABLES)
    return found if isinstance(found, dict) and all(isinstance(one, (str, bool)) for one in found.values()) else None


def stats_of(answer: Answer, model: str) -> dict[str, Any]:
    """What is worth keeping of an answer's figures, as JSON."""
    stats: dict[str, Any] = {"model": model, "reason": answer.reason, "tokens": answer.num_tokens}
    if answer.stats is not None:
        stats |= {
            "tokens": answer.stats.num_tokens,
            "tokens_per_s": round(answer.stats.decode_tokens_per_s, 2),
            "first_token_s": round(answer.stats.queued_s + answer.stats.prefill_s, 3),
            "prompt_tokens": answer.stats.prompt_tokens,
            "reused_tokens": answer.stats.reused_tokens,
            "seed": answer.stats.seed,
        }
    if answer.error is not None:
        stats["error"] = {"key": answer.error.key, "params": answer.error.params}
    return stats
