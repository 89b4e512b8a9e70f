"""On a GPU: the fused attention of all kinds of heads. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.head_attention_tests import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs compute capability 8.0"
    ),
]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda", 0):
        yield
