"""What the tests of the worker share: engines on a GPU, and a tokenizer for schedulers over fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from core.worker.decode import fused_modules, steps
from core.worker.decode.cpu_threads import reserve_one_core
from tests.support.checkpoints import make_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tests.support.gpu_engines import Engines


class SteadyThreads:
    """As many threads all the time, whatever else the machine does."""

    def adapt(self) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def steady_threads() -> Iterator[None]:
    """Sums over more threads end in another last bit. Steps over the CPU take a thread away when another process wants
    the core, so that two answers of one test differed whenever other tests ran beside it."""
    reserve_one_core()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "AdaptiveThreads", SteadyThreads)
        yield


@pytest.fixture(autouse=True)
def rope_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fusing replaces the rotation in a model's module, for the whole process. Here each test gets it as it was: what
    one left once failed ten others, wherever they ran in one process."""
    fuse = fused_modules._fuse_rope

    def fuse_for_one_test(model: PreTrainedModel) -> bool:
        source = sys.modules[type(model).__module__]
        if hasattr(source, "apply_rotary_pos_emb"):
            monkeypatch.setattr(source, "apply_rotary_pos_emb", source.apply_rotary_pos_emb)
        return fuse(model)

    monkeypatch.setattr(fused_modules, "_fuse_rope", fuse_for_one_test)


@pytest.fixture
def engines() -> Iterator[Engines]:
    """Opens engines on a GPU, one after another."""
    from tests.support.gpu_engines import gpu_engines

    with gpu_engines() as engines:
        yield engines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """That of the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
