"""How the next token is drawn, and what each of its settings may be: for pages, presets, the API and the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from core.common.errors import InputError

# What each setting may be; the same ranges guard the page's widgets, the command line and the engine.
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.5, 5.0),
    "max_new_tokens": (1, 1_000_000),
}
WHOLE_SETTINGS = ("top_k", "max_new_tokens")
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 always takes the likeliest; `top_k` 0 and `top_p` 1 cut nothing."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            _check_range(name, getattr(self, name), low, high, name in WHOLE_SETTINGS)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, MAX_SEED, is_whole=True)
        if len(self.stop) > MAX_STOP_STRINGS or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError("stop_strings", count=len(self.stop), limit=MAX_STOP_STRINGS)

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


def _check_range(name: str, value: object, low: float, high: float, is_whole: bool) -> None:
    kinds = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        key = "setting_whole" if is_whole else "setting_range"
        raise InputError(key, name=name, value=str(value), low=low, high=high)
