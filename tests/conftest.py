"""What several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright

from core.engine.runner import Runner
from core.starter import build as starter
from tests.support import gpu_session
from tests.support.api_server import loaded_runner
from tests.support.dashboard import CHROMIUM, FLAGS

# The same examples in every run, none kept on disk, and no time limits: a busy machine is no counterexample.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
settings.load_profile("same")
GPU_SESSION = pytest.StashKey[gpu_session.GpuSession | None]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_session.order(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        session.stash[GPU_SESSION] = gpu_session.begin(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (begun := session.stash.get(GPU_SESSION, None)) is not None:
        begun.end()


@pytest.fixture(scope="session")
def gpu_tests(request: pytest.FixtureRequest) -> gpu_session.GpuSession:
    begun = request.session.stash[GPU_SESSION]
    assert begun is not None
    return begun


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The real starter model in the cache, made when it is missing: to read, not to change."""
    return starter.ensure_cached(lambda stage, fraction: None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def api_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a server of the API, with room for its models and data."""
    home = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMADECK_MODELS", str(home / "models"))
        patch.setenv("LLAMADECK_DATA", str(home / "data"))
        yield home


@pytest.fixture(scope="module")
def api_runner(api_home: Path) -> Iterator[Runner]:
    """The stand-in worker behind it, loaded."""
    with loaded_runner(api_home / "models") as runner:
        yield runner
