"""Clients that others wrote, unmodified, over the starter, which knows neither tools nor schemas: forms make both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine.runner import Runner
from tests.support.api_clients import has_python_clients, run_lm_eval, run_structured_clients
from tests.support.api_server import LOAD_S, api_server

pytestmark = pytest.mark.skipif(not has_python_clients(), reason="./llamadeck test installs the clients")
# Of each of four clients: a hundred answers by a schema of six fields.
ANSWERS = 25


@pytest.fixture(scope="module")
def models(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("api_forms")
    (home / "models").mkdir()
    (home / "models" / "starter").symlink_to(starter_folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMADECK_MODELS", str(home / "models"))
        patch.setenv("LLAMADECK_DATA", str(home / "data"))
        yield home / "models"


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runner = Runner()
    runner.load(models / "starter", context_tokens=2048, num_slots=4)
    assert runner.wait_while_loading(LOAD_S).phase == "ready", runner.state
    with api_server(runner, tmp_path_factory.mktemp("api_keys")) as url:
        yield url
    runner.unload()


@pytest.mark.timeout(600)
def test_every_answer_has_the_schema_and_every_tool_that_has_to_be_called_is(url: str) -> None:
    found = run_structured_clients(url, "starter", ANSWERS)
    assert set(found) == {"litellm", "llama-index", "instructor", "guidance"}
    for name, one in found.items():
        assert one["valid"] == ANSWERS, (name, one["wrong"])
        assert set(one["call"]) == {"city", "unit"} and one["call"]["unit"] in ("C", "F"), (name, one["call"])


def test_lm_evaluation_harness_scores_choices(url: str, models: Path) -> None:
    """By the log-likelihoods of an echoed prompt. The starter knows most of it, where chance is one in four."""
    found = run_lm_eval(url, "starter", models / "starter")
    assert [count for _, count in found.values()] == [8, 8]
    assert found["deck_capitals"][0] >= 0.6 and found["deck_opposites"][0] >= 0.4, found
