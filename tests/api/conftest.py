"""A server of the API with an engine that has no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine.runner import Runner
from tests.support.api_server import api_server


@pytest.fixture(scope="module")
def url(api_home: Path, api_runner: Runner) -> Iterator[str]:
    with api_server(api_runner, api_home) as url:
        yield url
