"""The other side of benchmarks/peer.py: a program that calls `serve` is asked line by line.

It gets {"prompts": [[token, ...], ...], "new_tokens": n} and answers {"first_token_s": s, "decode_s": s, "num_tokens":
n of all answers}, or {"error": text}. It needs the standard library alone, since the program may run where nothing of
ours is installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Answerer = Callable[[list[list[int]], int], dict[str, Any]]


def serve(start: Callable[[], Answerer]) -> None:
    """Answer on standard output until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answerer = start()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = answerer(command["prompts"], command["new_tokens"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)
