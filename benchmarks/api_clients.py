"""Clients of the API that stream, and often leave in the middle; each notices what is wrong with what it gets."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import httpx2

# Each client's own word: the model goes on repeating it, so that an answer that went to somebody else is seen.
WORDS = ("sun", "river", "bread", "stone", "music", "winter", "paper", "horse")
LEAVE_SHARE = 0.3
MAX_TOKENS = (16, 96)
TIMEOUT_S = 120.0


@dataclass
class Tally:
    """What all clients saw. `first_s` are seconds to the first piece of text."""

    sent: int = 0
    finished: int = 0
    left: int = 0
    tokens: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)


async def ask_on(number: int, url: str, tally: Tally, closing: asyncio.Event) -> None:
    """Ask, one request after another, until `closing`."""
    draw, word = random.Random(number), WORDS[number % len(WORDS)]
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        while not closing.is_set():
            leave_after = draw.randrange(12) if draw.random() < LEAVE_SHARE else None
            body = {
                "prompt": f"{word}, " * draw.randint(10, 14) + f"{word},",
                "temperature": 0,
                "max_tokens": draw.randint(*MAX_TOKENS),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            tally.sent += 1
            try:
                await _ask(client, body, word, leave_after, tally)
            except httpx2.HTTPError as error:
                tally.problems[f"{type(error).__name__}: {error}"] += 1


async def _ask(client: httpx2.AsyncClient, body: dict[str, object], word: str, leave: int | None, tally: Tally) -> None:
    begin_s = asyncio.get_running_loop().time()
    text, num_pieces, usage, ended = "", 0, None, False
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            tally.problems[f"status {response.status_code}: {(await response.aread()).decode()[:200]}"] += 1
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                break
            if leave is not None and num_pieces >= leave:
                tally.left += 1
                return
            piece = json.loads(line.removeprefix("data: "))
            if "error" in piece:
                tally.problems[f"error in a stream: {piece['error']['message']}"] += 1
                return
            usage = piece["usage"] or usage
            new = "".join(choice["text"] for choice in piece["choices"])
            if new and not text:
                tally.first_s.append(asyncio.get_running_loop().time() - begin_s)
            text, num_pieces = text + new, num_pieces + 1
    _judge(text, word, usage, ended, tally)


def _judge(text: str, word: str, usage: dict[str, int] | None, ended: bool, tally: Tally) -> None:
    strangers = [other for other in WORDS if other != word and other in text]
    if strangers or word not in text:
        tally.problems[f"{word} got an answer of others: {text[:80]!r}"] += 1
    elif not ended or usage is None:
        tally.problems["a stream without its end"] += 1
    else:
        tally.finished += 1
        tally.tokens += usage["completion_tokens"]
