"""Writes into a chat history until it is killed, and says on stdout what the store has acknowledged.

Run as `python -m tests.support.chat_kill FILE`. Lines: "said ID TEXT" for a message, "grown ID TEXT" for an answer.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from core.chat.store import ChatStore


def main(path: Path) -> None:
    store = ChatStore(path)
    chat = store.create("instruct")
    last: int | None = None
    for number in itertools.count():
        last = store.append_user(chat, f"question {number}", last)
        print("said", last, f"question {number}", flush=True)
        last = store.begin_answer(chat, last)
        for length in range(1, 6):
            store.grow_answer(last, "word " * length)
            print("grown", last, "word " * length, flush=True)
        store.finish_answer(last, f"answer {number}", "done", {"tokens": 5})
        print("said", last, f"answer {number}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
