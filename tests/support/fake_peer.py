"""Another engine for the benchmark's tests: a second to the first token, the seconds of its argument for the rest."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from benchmarks.peer_side import Answerer, serve

MAX_CHATS = 2
DEADLY_TOKENS = 13
ENDLESS_TOKENS = 14


def start(decode_s: float) -> Answerer:
    def answer(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        if len(prompts) > MAX_CHATS:
            raise ValueError("too many chats")
        if new_tokens == DEADLY_TOKENS:
            os.kill(os.getpid(), signal.SIGSEGV)
        if new_tokens == ENDLESS_TOKENS:
            signal.pause()
        print("what a library says")
        return {"first_token_s": 1.0, "decode_s": decode_s, "num_tokens": len(prompts) * new_tokens}

    return answer


if __name__ == "__main__":
    serve(lambda: start(float(sys.argv[1])))
