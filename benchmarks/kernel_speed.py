"""How fast each matrix kernel writes, and reads a prompt: one model of random weights, loaded with one after another.

`python -m benchmarks.kernel_speed --bits 8` takes Llama-2 7B's shape, and prints a Markdown table, each row as soon as
it is known.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.deadline import Deadline, add_limit
from benchmarks.engine import ONE_BY_ONE, Engine
from benchmarks.figures import Figures, add_results
from benchmarks.measuring import Unable
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES, Quantization, make_random_model
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError

KERNELS = ("llamadeck", "triton")
FIRST_COLUMNS = ("kernel", "load s", "first token ms", "first tokens of {chats} ms")
COLUMNS = (*FIRST_COLUMNS, "1 chat tokens/s", "{chats} chats tokens/s", "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7B")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the model is kept, and taken from where it is there")
    parser.add_argument("--kernels", nargs="*", choices=KERNELS, default=KERNELS)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        # The name tells the format of a chat.
        folder = options.folder or Path(made) / "Llama-2-chat-random"
        if not (folder / "config.json").exists():
            begin_s = time.perf_counter()
            config = SHAPES[options.shape]
            config = config | {"num_hidden_layers": options.layers or config["num_hidden_layers"]}
            make_random_model(folder, config, Quantization(options.bits, options.group_size, options.act_order))
            print(f"{folder} was made in {time.perf_counter() - begin_s:.0f} s", flush=True)
        print_table(folder, options)


def print_table(folder: Path, options: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(folder)
    print(f"{options.shape}, {checkpoint.quantization.label}, prompts of {options.prompt_tokens} tokens\n")
    print("| " + " | ".join(COLUMNS).format(chats=options.chats) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    name = f"{options.shape}, {checkpoint.quantization.label}"
    figures, deadline = Figures(f"Kernels for matrices: {name}", options.results), Deadline.after(options.limit_s)
    engine = Engine(Prompts(checkpoint))
    engine.asked = ONE_BY_ONE
    try:
        for kernel in options.kernels:
            try:
                deadline.require()
                row = measure(engine, folder, kernel, options, figures)
            except (DeckError, Unable) as error:
                row = str(error)
                figures.fail(kernel, "load", error)
            print(f"| {kernel} | {row} |", flush=True)
    finally:
        engine.close()


def measure(engine: Engine, folder: Path, kernel: str, options: argparse.Namespace, figures: Figures) -> str:
    """The row's figures: the median of the rounds, after one that is not counted. Raises DeckError."""
    context_tokens = options.prompt_tokens + options.new_tokens + 16
    load_s = engine.load(folder, context_tokens, options.chats, kernel)
    engine.decode(options.chats, options.prompt_tokens, options.new_tokens)
    chats, prompt_tokens, new_tokens = options.chats, options.prompt_tokens, options.new_tokens
    measures: list[Callable[[], float]] = [
        lambda: 1000 * engine.first_token_s(prompt_tokens),
        lambda: 1000 * engine.first_tokens_s(chats, prompt_tokens),
        lambda: engine.decode(1, prompt_tokens, new_tokens).tokens_per_s,
        lambda: engine.decode(chats, prompt_tokens, new_tokens).tokens_per_s,
    ]
    titles = [title.format(chats=chats) for title in COLUMNS]
    figures.add(kernel, titles[1], load_s)
    medians = []
    for title, one in zip(titles[2:6], measures, strict=True):
        values = [one() for _ in range(options.rounds)]
        for value in values:
            figures.add(kernel, title, value)
        medians.append(statistics.median(values))
    memory_mib = engine.memory_mib()[1]
    figures.add(kernel, titles[6], memory_mib)
    return " | ".join([f"{load_s:.1f}", *(f"{figure:.1f}" for figure in medians), str(memory_mib)])


if __name__ == "__main__":
    main()
