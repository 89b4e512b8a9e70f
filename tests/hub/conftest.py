"""What tests of downloads begin with: a stand-in of the Hub that serves one model."""

from __future__ import annotations

import pytest

from tests.support.hub_models import hub, origin

__all__ = ["hub", "origin"]


@pytest.fixture(autouse=True)
def no_proxy(no_proxy: None) -> None:
    """For every test here."""
