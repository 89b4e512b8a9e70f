"""Models of each kind of attention answer as transformers' class would, two chats at once, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.attention_kinds import KINDS, check_answers


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_it_answers_as_its_class_would(tmp_path: Path, config: dict[str, Any]) -> None:
    with torch.inference_mode():
        assert not check_answers(tmp_path / "model", config, on_cpu=True).captured
