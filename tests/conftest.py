"""What several test files share, and what each test needs beyond .venv."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.worker.main import ENVIRONMENT
from tests.support import gpu_session

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from core.engine.runner import Runner

GPU_SESSION = pytest.StashKey[gpu_session.GpuSession | None]()
# The markers of pyproject.toml, by where a test lies and by the fixtures that it asks for. "gpu" stands in the files.
PLACES = {
    "browser": ("tests/browser/",),
    "peers": ("tests/remote/test_llama_cpp", "tests/remote/test_vllm", "tests/api/test_clients"),
    "engine": (
        "tests/api/test_engine",
        "tests/engine/test_process",
        "tests/engine/test_runner",
        "tests/engine/test_warm_worker",
        "tests/gpu/test_torch_support.py::test_a_real_load",
        "tests/worker/test_c",
    ),
    "slow": (
        "tests/access/test_server",
        "tests/api/test_bad_input",
        "tests/api/test_bodies",
        "tests/api/test_dashboard",
        "tests/api/test_routes",
        "tests/api/test_schema",
        "tests/benchmarks/test_bench",
        "tests/benchmarks/test_form_speed",
        "tests/benchmarks/test_quantize_plan",
        "tests/benchmarks/test_random_model",
        "tests/benchmarks/test_scale_on_gpu",
        "tests/bootstrap/test_venv",
        "tests/chat/test_kill",
        "tests/chat/test_store.py::TestChanges",
        "tests/chat/test_template_limits",
        "tests/cli/test_download",
        "tests/cli/test_fit",
        "tests/cli/test_main",
        "tests/doctor/test_doctor.py::test_the_command",
        "tests/hub/test_downloads",
        "tests/remote/test_engine",
        "tests/remote/test_router",
        "tests/ui/",
        "tests/worker/test_engines_of_gpu_tests",
        "tests/worker/test_load_plan",
    ),
}
FIXTURES = {"browser": ("browser",), "engine": ("starter_folder",)}


def pytest_configure() -> None:
    """The same examples in every run, none kept on disk, and no short limits: a busy machine is no counterexample."""
    import httpx2
    from hypothesis import HealthCheck, settings

    # Engines that tests load in this process are held to plans that count what a worker's allocator and cuBLAS take.
    for name in ("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "PYTORCH_ALLOC_CONF"):
        os.environ[name] = ENVIRONMENT[name]
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Threads of one process wait for one another after each matrix, so those of two on as many cores wait for both.
        os.environ["OMP_NUM_THREADS"] = "1"
    # 5 s unless a test says otherwise: too little where the machine does much else.
    timeout = inspect.signature(httpx2.get).parameters["timeout"].default
    timeout.connect = timeout.read = timeout.write = timeout.pool = 60.0
    slow = [HealthCheck.too_slow]
    settings.register_profile("same", deadline=None, derandomize=True, database=None, suppress_health_check=slow)
    settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, places in PLACES.items():
            if item.nodeid.startswith(places) or {*FIXTURES.get(marker, ())} & {*getattr(item, "fixturenames", ())}:
                item.add_marker(marker)
    gpu_session.order(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        session.stash[GPU_SESSION] = gpu_session.begin(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (begun := session.stash.get(GPU_SESSION, None)) is not None:
        begun.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests/support/compile_ahead.py does not know yet."""
    session = terminalreporter._session
    begun = session.stash.get(GPU_SESSION, None) if session is not None else None
    if begun is not None and begun.compiled_in_line:
        terminalreporter.section("kernels that tests waited for")
        for line in begun.compiled_in_line:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def gpu_tests(request: pytest.FixtureRequest) -> gpu_session.GpuSession:
    begun = request.session.stash[GPU_SESSION]
    assert begun is not None
    return begun


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine that runs the tests knows nothing of its loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The real starter model in the cache, made when it is missing: to read, not to change."""
    from core.starter import build

    return build.ensure_cached(lambda stage, fraction: None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    from tests.support.dashboard import CHROMIUM, FLAGS

    # A machine may be busy: what comes at all comes within this.
    expect.set_options(timeout=60_000)

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
    from tests.support.api_server import loaded_runner

    with loaded_runner(api_home / "models") as runner:
        yield runner
