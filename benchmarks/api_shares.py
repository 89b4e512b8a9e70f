"""One client of the API asks for all that it can, a second for one answer after another: how long that one waits.

Whoever runs it looks at the pages meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from core.access.keys import KeyStore

# With the slots of the engine more than a share: some are refused, and ask again when they are told to.
NUM_GREEDY = 80
MAX_TOKENS = 32
TIMEOUT_S = 300.0
BODY = {"prompt": "sun, sun, sun, sun, sun,", "temperature": 0, "max_tokens": MAX_TOKENS, "stream": True}


@dataclass
class Seen:
    """What one client saw. `first_s` are seconds from asking to the first text, without those that were refused."""

    statuses: Counter[int] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)


class Crowd:
    """Both clients, in a thread with an event loop, each with a key of its own; `stop` waits for its end."""

    def __init__(self, url: str, data: Path) -> None:
        self.greedy, self.modest = Seen(), Seen()
        keys = KeyStore(data / "keys.json")
        self._url, self._keys = url, [keys.make(name) for name in ("greedy", "modest")]
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def start(self) -> None:
        self._thread.start()

    def begin_anew(self) -> None:
        """Forget what was seen: at first all slots were free."""
        for seen in (self.greedy, self.modest):
            seen.first_s.clear()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _run(self) -> None:
        greedy_key, modest_key = self._keys
        asking = [asyncio.create_task(self._ask_on(greedy_key, self.greedy)) for _ in range(NUM_GREEDY)]
        asking.append(asyncio.create_task(self._ask_on(modest_key, self.modest)))
        await self._closing.wait()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_on(self, key: str, seen: Seen) -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=self._url, headers=headers, timeout=TIMEOUT_S) as client:
            while True:
                begin_s = self._loop.time()
                async with client.stream("POST", "/v1/completions", json=BODY) as response:
                    seen.statuses[response.status_code] += 1
                    if response.status_code != 200:
                        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
                        continue
                    has_text = False
                    async for line in response.aiter_lines():
                        if not has_text and line.startswith("data: {") and _has_text(line):
                            has_text = True
                            seen.first_s.append(self._loop.time() - begin_s)


def _has_text(line: str) -> bool:
    return any(choice["text"] for choice in json.loads(line.removeprefix("data: ")).get("choices", []))
