"""What several test files share."""

from pathlib import Path

import pytest

from core import starter


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The real starter model in the cache, made when it is missing: to read, not to change."""
    return starter.ensure_cached(lambda stage, fraction: None)
