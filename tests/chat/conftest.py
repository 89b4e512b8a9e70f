"""What several files of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.chat_desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    from tests.support.chat_desk import Desk

    desk = Desk(tmp_path / "chats.sqlite3")
    yield desk
    desk.recorder.close()
    desk.store.close()
