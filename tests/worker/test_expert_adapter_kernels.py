"""The numbers of LoRA adapters in the kernels of experts, by their sources run on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.expert_adapter_tests import *  # noqa: F403
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with kernels_on_cpu():
        yield
