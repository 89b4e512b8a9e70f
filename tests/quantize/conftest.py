"""One tiny model before it is quantized and its adapters, made once: to read, not to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain_models import make_adapter, make_plain


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "Tiny-1M")


@pytest.fixture(scope="session")
def adapter(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On all matrices of all layers."""
    return make_adapter(plain, tmp_path_factory.mktemp("adapters") / "pirate")


@pytest.fixture(scope="session")
def patterned_adapter(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ranks and alphas of its own for some matrices, and rsLoRA's scale."""
    return make_adapter(
        plain,
        tmp_path_factory.mktemp("adapters") / "poet",
        target_modules=r".*\.(q_proj|down_proj)",
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        alpha_pattern={"q_proj": 3},
        use_rslora=True,
    )


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/ of the test's own."""
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"
