"""What the tests of the worker share: engines on a GPU, and a tokenizer for schedulers over fakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from tests.support.checkpoints import make_checkpoint

if TYPE_CHECKING:
    from tests.support.gpu_engines import Engines


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
