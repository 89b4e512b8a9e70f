"""A process that is killed while it writes loses nothing that the history has acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from core.chat.store import ChatStore
from core.common.paths import ROOT

KILLS = 50
LONGEST_S = 0.12


def write_until_killed(path: Path, seconds: float) -> list[list[str]]:
    """What a writing process acknowledged in `seconds` after its first message, until a kill -9."""
    command = [sys.executable, "-m", "tests.support.chat_kill", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        lines = [first, *process.stdout]
    return [line.rstrip("\n").split(" ", 2) for line in lines if line.endswith("\n")]


def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance = tmp_path / "chats.sqlite3", random.Random(20261123)
    said: dict[int, str] = {}
    num_in_writing = 0
    for _ in range(KILLS):
        grown: dict[int, str] = {}
        for kind, number, text in write_until_killed(path, chance.uniform(0, LONGEST_S)):
            (said if kind == "said" else grown)[int(number)] = text
        store = ChatStore(path)
        messages = {message.id: message for chat in store.chats(KILLS) for message in store.read(chat.id).messages}
        store.close()
        assert {number: messages[number].text for number in said} == said
        assert all(message.state != "writing" for message in messages.values())
        for number in grown.keys() - said.keys():
            # What was written and not yet said to be written may be there as well.
            num_in_writing += 1
            assert messages[number].text.startswith(grown[number]) or messages[number].text.startswith("answer")
    assert len(said) > KILLS and num_in_writing > 0
