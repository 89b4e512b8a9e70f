"""On a GPU: rows normed and multiplied with narrow matrices. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.narrow_product_tests import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="needs a GPU of compute capability 9.0",
    ),
]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda", 0):
        yield
