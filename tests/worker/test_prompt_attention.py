"""Attention of prompts' chunks by the kernel of compute capability 9.0, on a CPU (tests/support/cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.prompt_attention_tests import *  # noqa: F403


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with cuda_on_cpu((9, 0)):
        yield
