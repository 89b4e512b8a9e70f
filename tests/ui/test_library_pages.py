"""The models on disk as pages read them: whoever waits is told for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint
from ui.load import entries_cache


class Place:
    """Where a page says one thing at a time."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.is_empty = True

    def markdown(self, text: str) -> None:
        self.said.append(text)
        self.is_empty = False

    def empty(self) -> None:
        self.is_empty = True


@pytest.mark.parametrize(("after_s", "name"), [(0.0, "big \\[8B\\]"), (600.0, "")])
def test_what_is_being_read_is_said_to_who_waits_long(
    models: Path, monkeypatch: pytest.MonkeyPatch, after_s: float, name: str
) -> None:
    """Load model showed nothing for half a minute where many large models had to be read."""
    make_checkpoint(models / "big [8B]")
    place = Place()
    monkeypatch.setattr(entries_cache.st, "empty", lambda: place)
    monkeypatch.setattr(entries_cache, "TOLD_AFTER_S", after_s)
    found = [entry.name for entry in entries_cache.models()]
    assert "big [8B]" in found
    assert len(place.said) == (len(found) if name else 0)
    assert not name or f":shimmer[Reading the models on disk: {name}]" in place.said
    assert place.is_empty
