"""The errors that people read: a key of the locale files, and its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from core.common.i18n import translate
from core.common.values import without_controls

MAX_PARAM_CHARS = 1000


class DeckError(Exception):
    """Something failed and a person should know what to do next.

    `key` names the sentence `error.<key>` in the locale files, `params` are the values that it quotes.
    Both are plain data, so an error crosses a process border and is shown in the reader's language there.
    """

    def __init__(self, key: str, **params: str | int | float) -> None:
        super().__init__(key)
        self.key = key
        self.params = {name: _shown(value) for name, value in params.items()}

    def __str__(self) -> str:
        return self.sentence("en")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.key, self.params))

    def sentence(self, language: str) -> str:
        """The error in `language` ("en" or "zh"): what failed, the value, what to do next."""
        return translate(language, f"error.{self.key}", **self.params)


class CheckpointError(DeckError):
    """A folder is no checkpoint that this program can load."""


class EngineError(DeckError):
    """A load or an answer failed in the engine."""


class GpuUseError(EngineError):
    """There is a GPU, and torch cannot use it: a load goes to the CPU by choice alone."""


class StarterError(DeckError):
    """The starter model could not be made."""


class InputError(DeckError):
    """What a person typed cannot be used; the command line ends with exit code 2."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on; each once, as an error can be raised from itself."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _shown(value: str | int | float) -> str | int | float:
    """A value as a page can show it: what a file or a library says may be endless, or no valid text."""
    if not isinstance(value, str):
        return value
    return without_controls(value.encode("utf-8", "replace").decode()[:MAX_PARAM_CHARS])


def _rebuild(kind: type[DeckError], key: str, params: dict[str, str | int | float]) -> DeckError:
    return kind(key, **params)
