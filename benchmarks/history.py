"""How long the chat history takes: to open chats of 500 and of 10,000 messages, to add one, to search, to fit a prompt.

Run as `python -m benchmarks.history [--folder DIR] [--json]`. It writes a history of its own into a temporary folder,
below DIR if given: what an fsync takes is the disk's. Each figure is the median and the longest of its runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core.chat.modes import PromptStyle
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.store import ChatStore
from core.chat.template import ChatTemplate, read_template
from core.chat.template_messages import Turn
from core.chat.tokens import TokenCounter, read_counter
from core.chat.truncation import PromptParts, fit_to_context
from core.chat.turn_rendering import Names
from core.common.errors import DeckError
from core.library.scan import scan

LONG_MESSAGES, LONGEST_MESSAGES, NUM_CHATS, CHAT_MESSAGES = 500, 10_000, 95, 100
WORDS = "river stone lamp window answer morning quiet garden letter silver 今天 天气 回答 模型 the a of and is".split()
MESSAGE_WORDS = 80
RUNS = 30
CONTEXT_TOKENS, ANSWER_TOKENS = 4096, 512


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the history is written for the time of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder) / "chats.sqlite3")
    if options.json:
        print(json.dumps(figures))
    else:
        for name, (middle, longest) in figures.items():
            print(f"{name:<44} {middle:8.1f} ms, longest {longest:.1f}")
    return 0


def measure(path: Path) -> dict[str, tuple[float, float]]:
    """Median and longest in milliseconds, by what was done."""
    chance = random.Random(1)
    store = ChatStore(path)
    for _ in range(NUM_CHATS):
        store.add(a_chat(chance, CHAT_MESSAGES))
    long = store.add(a_chat(chance, LONG_MESSAGES))
    figures = {
        f"open a chat of {LONG_MESSAGES} messages": timed(lambda: store.read(long)),
        "list the first 50 chats": timed(store.chats),
        "search 10,000 messages, rare word": timed(lambda: store.search("needle")),
        "search 10,000 messages, two Chinese characters": timed(lambda: store.search("天气")),
    }
    figures |= answering(store, long, LONG_MESSAGES)
    longest = store.add(a_chat(chance, LONGEST_MESSAGES))
    figures[f"open a chat of {LONGEST_MESSAGES:,} messages"] = timed(lambda: store.read(longest))
    figures |= answering(store, longest, LONGEST_MESSAGES)
    store.close()
    opened: list[ChatStore] = []
    figures["open the history"] = timed(lambda: opened.append(ChatStore(path)))
    for one in opened:
        one.close()
    return figures


def answering(store: ChatStore, chat: int, num_messages: int) -> dict[str, tuple[float, float]]:
    messages = store.read(chat).messages
    last = [messages[-1].id]
    added = timed(lambda: last.append(store.append_user(chat, "What else?", last[-1])))
    answer = store.begin_answer(chat, last[-1])
    figures = {
        f"add a message to {num_messages:,}": added,
        f"write an answer below {num_messages:,} as it grows": timed(lambda: store.grow_answer(answer, "word " * 500)),
    }
    turns = [Turn(role="user" if one.role == "user" else "assistant", content=one.text) for one in messages]
    return figures | fitting(turns)


def fitting(turns: list[Turn]) -> dict[str, tuple[float, float]]:
    """With the first model that is on this machine, each time with another question."""
    template, counter = a_model()
    style = PromptStyle("instruct" if template.source else "chat", template, Names("You", "Assistant"), counter.opening)
    numbers = itertools.count()

    def once() -> object:
        asked = Turn(role="user", content=f"Question {next(numbers)}?")
        parts = PromptParts((*turns, asked), "You are a helpful assistant.")
        return fit_to_context(parts, style.render, counter.count, CONTEXT_TOKENS, ANSWER_TOKENS)

    first = timed(once, runs=1)
    return {f"fit {len(turns)} messages, first time": first, f"fit {len(turns)} messages, a new last one": timed(once)}


def a_model() -> tuple[ChatTemplate, TokenCounter]:
    folders = [entry.checkpoint.folder for entry in scan() if entry.checkpoint is not None]
    if not folders:
        return ChatTemplate(None, "<s>", "</s>"), TokenCounter(None)
    try:
        return read_template(folders[0]), read_counter(folders[0])
    except DeckError:
        return ChatTemplate(None, "<s>", "</s>"), TokenCounter(None)


def a_chat(chance: random.Random, num_messages: int) -> CopiedChat:
    return CopiedChat(
        tuple(
            CopiedMessage(
                place - 1 if place else None,
                "assistant" if place % 2 else "user",
                " ".join(chance.choices(WORDS, k=chance.randint(1, 2 * MESSAGE_WORDS))),
                time.time(),
                stats={"model": "model", "tokens": 80, "tokens_per_s": 66.0} if place % 2 else {},
            )
            for place in range(num_messages)
        ),
        title="A chat",
    )


def timed(work: Callable[[], object], runs: int = RUNS) -> tuple[float, float]:
    """Median and longest of `runs`, in milliseconds."""
    took = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        took.append((time.perf_counter() - begin) * 1000)
    return round(statistics.median(took), 2), round(max(took), 2)


if __name__ == "__main__":
    raise SystemExit(main())
