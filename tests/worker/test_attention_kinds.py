"""Models of each kind of attention answer as transformers' class would, two chats at once, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.worker.load import LoadedEngine, load_engine
from tests.support.attention_kinds import KINDS, check_answers


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_it_answers_as_its_class_would(tmp_path: Path, config: dict[str, Any]) -> None:
    def load(folder: Path, command: Load) -> LoadedEngine:
        return load_engine(read_checkpoint(folder), replace(command, on_cpu=True), lambda *_: None)

    with torch.inference_mode():
        assert not check_answers(tmp_path / "model", config, load).captured
