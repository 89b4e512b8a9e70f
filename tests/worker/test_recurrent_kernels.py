"""The kernels of Gated DeltaNet layers without a GPU: they run on the CPU (tests/support/cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.recurrent_kernel_tests import *  # noqa: F403


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with cuda_on_cpu():
        yield
