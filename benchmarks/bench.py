"""./llamadeck bench: the engine through the runner, as a chat uses it, beside transformers' generate() in one run.

Prints a table, with --json one object. Knows no page. Each figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import library
from core.chat.template import read_template
from core.engine.answer import Answer
from core.engine.messages import ModelFacts, Sampling
from core.engine.runner import Runner
from core.errors import EngineError, InputError
from core.settings import ROOT

QUESTION = "Tell me a long story about a fox who travels around the world and writes a diary."
NEW_TOKENS = 128
RUNS = 5
LOAD_S = 1800.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="llamadeck bench", description=__doc__)
    parser.add_argument("model", nargs="?", help="a folder's name in models/; the first one if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    folder = choose_model(options.model)
    prompt = read_template(folder).render([{"role": "user", "content": QUESTION}])
    result = measure_engine(folder, prompt) | measure_generate(folder, prompt)
    result["times_generate"] = round(result["decode_tokens_per_s"] / result["generate_tokens_per_s"], 2)
    print(json.dumps(result) if options.json else table(result))
    return 0


def choose_model(name: str | None) -> Path:
    if name is not None:
        return library.find(name).folder
    found = [entry.checkpoint.folder for entry in library.scan() if entry.checkpoint is not None]
    if not found:
        raise InputError("no_models")
    return found[0]


def measure_engine(folder: Path, prompt: str) -> dict[str, Any]:
    """Load through the runner and answer a few times, one chat at a time, greedily."""
    runner = Runner()
    runner.load(folder)
    state = runner.wait_while_loading(LOAD_S)
    if state.error is not None or state.facts is None:
        raise state.error or EngineError("nothing_loaded")
    try:
        return figures(state.facts, [ask(runner, f"{prompt}{' ' * run}") for run in range(RUNS)])
    finally:
        runner.unload()


def ask(runner: Runner, prompt: str) -> Answer:
    answer = runner.generate(prompt, Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS))
    answer.wait()
    if answer.error is not None:
        raise answer.error
    return answer


def figures(facts: ModelFacts, answers: list[Answer]) -> dict[str, Any]:
    stats = [answer.stats for answer in answers if answer.stats is not None]
    return {
        "model": facts.name,
        "device": facts.device,
        "kernel": facts.kernel,
        "load_s": round(facts.load_s, 2),
        "prompt_tokens": stats[0].prompt_tokens,
        "new_tokens": stats[0].num_tokens,
        "first_token_ms": round(stats[0].prefill_s * 1000, 1),
        "decode_tokens_per_s": round(statistics.median(one.decode_tokens_per_s for one in stats), 2),
    }


def measure_generate(folder: Path, prompt: str) -> dict[str, Any]:
    """The same model, prompt and length through transformers alone, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.generate", str(folder), str(NEW_TOKENS), str(RUNS)]
    done = subprocess.run(command, input=prompt, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise EngineError("bench_generate", why=(done.stderr.strip().splitlines() or ["?"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(result: dict[str, Any]) -> str:
    rows = {
        "model": result["model"],
        "device, kernel": f"{result['device']}, {result['kernel']}",
        "load": f"{result['load_s']} s",
        f"first token of {result['prompt_tokens']}": f"{result['first_token_ms']} ms",
        "decode, LlamaDeck": f"{result['decode_tokens_per_s']} tokens/s",
        "decode, generate()": f"{result['generate_tokens_per_s']} tokens/s",
        "ratio": f"{result['times_generate']}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
