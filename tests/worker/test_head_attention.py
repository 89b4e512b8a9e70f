"""The fused attention of all kinds of heads, by the kernels' own source run on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from core.worker.kernels import decode_attention
from tests.support.head_attention_tests import *  # noqa: F403
from tests.support.ptx_on_cpu import CpuModule, Gpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True, scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    CpuModule.folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
        patch.setattr(decode_attention, "CudaModule", CpuModule)
        decode_attention.module_for.cache_clear()
        yield
        decode_attention.module_for.cache_clear()
