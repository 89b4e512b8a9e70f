"""Rows normed and multiplied with narrow matrices, by the kernel's own source run on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.narrow_product_tests import *  # noqa: F403
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True, scope="module")
def on_cpu() -> Iterator[None]:
    with kernels_on_cpu():
        yield
