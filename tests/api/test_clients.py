"""Clients that others wrote, unmodified, over each language of the API: an answer, a stream, the call of a tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine.runner import Runner
from tests.support.api_clients import (
    has_javascript_clients,
    has_python_clients,
    run_javascript_clients,
    run_python_clients,
)
from tests.support.api_server import MODEL, api_server

GOT = ["You said: hello ", "one two three four five one ", {"city": "Bern"}]


@pytest.fixture(scope="module")
def url(api_home: Path, api_runner: Runner) -> Iterator[str]:
    with api_server(api_runner, api_home) as url:
        yield url


@pytest.mark.skipif(not has_python_clients(), reason="./llamadeck test installs the clients")
def test_langchain_and_pydantic_ai_work_unmodified(url: str) -> None:
    found = run_python_clients(url, MODEL)
    assert len(found) == 7 and found == dict.fromkeys(found, GOT)


@pytest.mark.skipif(not has_javascript_clients(), reason="./llamadeck test installs the clients where there is npm")
def test_the_clients_of_javascript_work_unmodified(url: str) -> None:
    found = run_javascript_clients(url, MODEL)
    assert len(found) == 6 and found == dict.fromkeys(found, GOT)
