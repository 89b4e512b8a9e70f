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
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 10.0),
    "dry_allowed_length": (1, 1000),
    "dry_range": (0, 1_000_000),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 20.0),
    "mirostat_eta": (0.0, 1.0),
}
WHOLE_SETTINGS = ("top_k", "max_new_tokens", "dry_allowed_length", "dry_range", "mirostat")
# More than any program sends; a text is looked through for each of them.
MAX_STOP_STRINGS = 256
MAX_BREAKERS, MAX_BREAKER_CHARS = 32, 100
# SillyTavern's and koboldcpp's own.
DRY_BREAKERS = ("\n", ":", '"', "*")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 always takes the likeliest; `top_k` 0 and `top_p` 1 cut nothing.

    core/worker/decode/sampling.py says in which order, slow_samplers.py what those from `typical_p` on do. `dry_range`
    is how many of the last tokens DRY looks at, 0 all of them. With `mirostat` 1 or 2 that takes the place of the cuts.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    dry_sequence_breakers: tuple[str, ...] = DRY_BREAKERS
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            _check_range(name, getattr(self, name), low, high, name in WHOLE_SETTINGS)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, MAX_SEED, is_whole=True)
        if len(self.stop) > MAX_STOP_STRINGS or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError("stop_strings", count=len(self.stop), limit=MAX_STOP_STRINGS)
        breakers = self.dry_sequence_breakers
        if len(breakers) > MAX_BREAKERS or not all(
            isinstance(text, str) and 0 < len(text) <= MAX_BREAKER_CHARS for text in breakers
        ):
            raise InputError("dry_breakers", count=len(breakers), limit=MAX_BREAKERS)

    @property
    def is_slow(self) -> bool:
        """Whether the draw needs more than the captured steps compute."""
        has_xtc = self.xtc_probability > 0.0 and self.xtc_threshold <= 0.5
        return self.typical_p < 1.0 or has_xtc or self.dry_multiplier > 0.0 or self.mirostat > 0

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


def _check_range(name: str, value: object, low: float, high: float, is_whole: bool) -> None:
    kinds = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        key = "setting_whole" if is_whole else "setting_range"
        raise InputError(key, name=name, value=str(value), low=low, high=high)
