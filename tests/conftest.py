"""What several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright

from core import starter
from tests.dashboard import CHROMIUM, FLAGS

# The same examples in every run, none kept on disk, and no time limits: a busy machine is no counterexample.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
settings.load_profile("same")


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
