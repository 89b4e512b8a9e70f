"""The other baseline on a CPU: llama.cpp, through the package llama-cpp-python, on the starter's own Q4_1 file.

`python -m benchmarks.llama_cpp FILE CONTEXT`; speaks as benchmarks/peer_side.py says. One chat at a time.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peer_side import Answerer, serve
from core.common.paths import cache_dir
from core.starter import source as starter_source


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def find_model(report: Callable[[float], None]) -> Path:
    """The starter's source, downloaded into the cache where it is not there. Raises StarterError."""
    path = cache_dir() / "bench" / starter_source.GGUF_NAME
    if not path.is_file():
        unfinished = path.parent / f".partial-{os.getpid()}"
        unfinished.mkdir(parents=True)
        try:
            starter_source.fetch(unfinished, report).rename(path)
        finally:
            shutil.rmtree(unfinished)
    return path


def start(file: str, context_tokens: int) -> Answerer:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    cores = len(os.sched_getaffinity(0))
    model = Llama(file, n_ctx=context_tokens, n_threads=cores, n_threads_batch=cores, verbose=False)

    def answer(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        (prompt,) = prompts
        model.reset()
        times = [time.perf_counter()]
        for _ in itertools.islice(model.generate(prompt, top_k=1, temp=0.0), new_tokens):
            times.append(time.perf_counter())
        return {"first_token_s": times[1] - times[0], "decode_s": times[-1] - times[1], "num_tokens": len(times) - 1}

    answer([[5] * 8], 4)
    return answer


if __name__ == "__main__":
    serve(lambda: start(sys.argv[1], int(sys.argv[2])))
