"""Clients that others wrote, unmodified, over each language of the API: an answer, a stream, the call of a tool."""

from __future__ import annotations

import pytest

from tests.support.api_clients import (
    has_javascript_clients,
    has_python_clients,
    run_javascript_clients,
    run_python_clients,
)
from tests.support.api_server import MODEL

GOT = ["You said: hello ", "one two three four five one ", {"city": "Bern"}]


@pytest.mark.skipif(not has_python_clients(), reason="./llamadeck test installs the clients")
def test_langchain_and_pydantic_ai_work_unmodified(url: str) -> None:
    found = run_python_clients(url, MODEL)
    assert len(found) == 7 and found == dict.fromkeys(found, GOT)


@pytest.mark.skipif(not has_javascript_clients(), reason="./llamadeck test installs the clients where there is npm")
def test_the_clients_of_javascript_work_unmodified(url: str) -> None:
    found = run_javascript_clients(url, MODEL)
    assert len(found) == 6 and found == dict.fromkeys(found, GOT)
