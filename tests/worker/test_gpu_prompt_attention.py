"""On a GPU: attention of prompts' chunks. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.prompt_attention_tests import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda", 0):
        yield
