"""How long each kernel of a model's steps takes on the first GPU.

`python -m benchmarks.step_profile FOLDER [--chats 1 32] [--prompts 512 4000] [--passes 512]` loads the checkpoint as a
worker does, without one. It prints how long a step of so many chats takes, and the reading of a prompt of so many
tokens, in the graphs that answers come from; and a Markdown table of the kernels of such a step, and of a pass over so
many tokens of a prompt, which run one by one for that.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from core.worker.main import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import torch
from torch.profiler import ProfilerActivity, profile

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.kernels.nvrtc import CudaKernel
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
    parser.add_argument("--passes", type=int, nargs="*", default=[512])
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
    assert isinstance(steps, GraphSteps)
    with torch.inference_mode():
        for slot in range(command.num_slots):
            read(steps, slot, options.written)
        for chats in options.chats:
            show(f"a step of {chats} chats", partial(decode, steps, chats))
        for tokens in options.prompts:
            show(f"a prompt of {tokens} tokens", partial(read, steps, 0, tokens))
        # What runs kernel by kernel is beside the graphs.
        torch.cuda.set_per_process_memory_fraction(1.0)
        for chats in options.chats:
            decoding = next(graph for graph in steps._decode_graphs if graph.num_rows >= chats)
            decoding.load_inputs(range(chats))
            show_kernels(f"a step of {chats} chats", decoding.compute)
        for tokens in options.passes:
            reading = next(graph for graph in steps._prefill_graphs if graph.num_tokens >= tokens)
            reading.load_inputs([PromptChunk(0, texts_of(steps, 0, tokens), 0, False)])
            show_kernels(f"a pass of {tokens} tokens", reading.compute)


def decode(steps: GraphSteps, num_chats: int) -> None:
    steps.decode(range(num_chats)).wait()


def read(steps: GraphSteps, slot: int, num_tokens: int) -> None:
    """A prompt, as the scheduler reads one."""
    texts = texts_of(steps, slot, num_tokens)
    steps.reset_slot(slot, SAMPLING, 0, texts)
    begin, pending = 0, None
    while begin < num_tokens:
        end = min(begin + max(steps.pass_sizes), num_tokens)
        is_last, near = end == num_tokens, before_turn(begin, end)
        kept_at = near if is_last and steps.keeps_states and near < end else 0
        chunk = PromptChunk(slot, texts[begin:end], begin, is_last, kept_at)
        pending = steps.prefill_chunks([chunk])
        begin = end
    if pending is not None:
        pending.wait()


def texts_of(steps: GraphSteps, slot: int, num_tokens: int) -> list[int]:
    return [(slot * 31 + place * 7) % steps.vocabulary for place in range(num_tokens)]


def show(what: str, run: Callable[[], object]) -> None:
    times_s = sorted(timed_s(run) for _ in range(TIMES))
    print(f"{what}: {times_s[TIMES // 2] * 1e3:.2f} ms", flush=True)


def timed_s(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin_s


@contextmanager
def one_by_one() -> Iterator[None]:
    """Inside the `with` block none of our kernels begins before the last one's end."""
    launch = CudaKernel.__call__

    def launch_late(kernel: CudaKernel, *arguments: Any, starts_early: bool = False) -> None:
        launch(kernel, *arguments, starts_early=False)

    CudaKernel.__call__ = launch_late  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        CudaKernel.__call__ = launch  # type: ignore[method-assign]


def show_kernels(what: str, run: Callable[[], object]) -> None:
    """Print each kernel's number and time. None of ours begins before the last one's end, as they do in graphs."""
    run()
    torch.cuda.synchronize()
    with one_by_one(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    counts, totals_us = Counter[str](), Counter[str]()
    for event in profiler.events():
        counts[event.name] += 1
        totals_us[event.name] += event.time_range.end - event.time_range.start
    print(f"\n{what}: its kernels take {sum(totals_us.values()) / 1e3:.2f} ms\n")
    print("| kernel | number | µs in all | µs each |\n|---|---:|---:|---:|")
    for name, total_us in totals_us.most_common(SHOWN):
        print(f"| {name[:NAME_CHARS]} | {counts[name]} | {total_us:.0f} | {total_us / counts[name]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
