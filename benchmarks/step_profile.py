"""How long each kernel of a model's steps takes on the first GPU, in the graphs that answers come from.

`python -m benchmarks.step_profile FOLDER [--chats 1 32] [--prompts 512 4000]` loads the checkpoint as a worker does,
without one, and prints a Markdown table for a step of so many chats, and for the reading of a prompt of so many tokens:
each kernel's number, its time in all, and what is left of the step's own time, in which kernels wait for each other.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.worker.decode.steps import Steps
from core.worker.load import load_engine
from core.worker.plan_load import use_capturable_stream
from core.worker.prompt_reading import before_turn

TIMES, NAME_CHARS, SHOWN = 5, 60, 24
SAMPLING = Sampling(temperature=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chats", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4000])
    parser.add_argument("--context", type=int, default=4224)
    parser.add_argument("--written", type=int, default=640, help="tokens in the cache of each chat that goes on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    use_capturable_stream(torch.device("cuda", 0))
    command = Load(options.folder, options.context, max(options.chats, default=1))
    begin_s = time.perf_counter()
    engine = load_engine(read_checkpoint(options.folder), command, lambda stage, part: None)
    print(f"loaded in {time.perf_counter() - begin_s:.1f} s, captured: {engine.facts.captured}", flush=True)
    steps = engine.steps
    with torch.inference_mode():
        for slot in range(command.num_slots):
            read(steps, slot, options.written)
        for chats in options.chats:
            show(f"a step of {chats} chats", partial(decode, steps, chats))
        for tokens in options.prompts:
            show(f"a prompt of {tokens} tokens", partial(read, steps, 0, tokens))


def decode(steps: Steps, num_chats: int) -> None:
    steps.decode(range(num_chats)).wait()


def read(steps: Steps, slot: int, num_tokens: int) -> None:
    """A prompt of its own, as the scheduler reads one."""
    texts = [(slot * 31 + place * 7) % steps.vocabulary for place in range(num_tokens)]
    steps.reset_slot(slot, SAMPLING, 0, texts)
    begin, pending = 0, None
    while begin < num_tokens:
        end = min(begin + max(steps.pass_sizes), num_tokens)
        end = before_turn(begin, end) if steps.has_states and end == num_tokens else end
        pending = steps.prefill(slot, texts[begin:end], begin, end == num_tokens)
        begin = end
    if pending is not None:
        pending.wait()


def show(what: str, run: Callable[[], object]) -> None:
    """Print the medians of `run`'s own time, and of one run each kernel's."""
    times_s = [timed_s(run) for _ in range(TIMES)]
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    counts, totals_us = Counter[str](), Counter[str]()
    spans = list[tuple[float, float]]()
    for event in profiler.events():
        begin_us, end_us = event.time_range.start, event.time_range.end
        counts[event.name] += 1
        totals_us[event.name] += end_us - begin_us
        spans.append((begin_us, end_us))
    whole_ms = sorted(times_s)[TIMES // 2] * 1e3
    print(f"\n{what}: {whole_ms:.2f} ms; kernels, of which some overlap, are busy for {busy_us(spans) / 1e3:.2f} ms\n")
    print("| kernel | number | µs in all | µs each |\n|---|---:|---:|---:|")
    for name, total_us in totals_us.most_common(SHOWN):
        print(f"| {name[:NAME_CHARS]} | {counts[name]} | {total_us:.0f} | {total_us / counts[name]:.1f} |", flush=True)


def timed_s(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin_s


def busy_us(spans: Sequence[tuple[float, float]]) -> float:
    """For how long at least one of the spans lasts."""
    busy, until = 0.0, 0.0
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy


if __name__ == "__main__":
    main()
