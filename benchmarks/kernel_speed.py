"""How fast each matrix kernel writes, and reads a prompt: one model of random weights, loaded with one after another.

`python -m benchmarks.kernel_speed --bits 8` takes Llama-2 7B's shape, and prints a Markdown table, each row as soon as
it is known.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.engine import Engine
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES, Quantization, make_random_model
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError

KERNELS = ("llamadeck", "triton")
COLUMNS = ("kernel", "load s", "first token ms", "1 chat tokens/s", "{chats} chats tokens/s", "MiB")


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
    engine = Engine(Prompts(checkpoint))
    try:
        for kernel in options.kernels:
            try:
                row = measure(engine, folder, kernel, options)
            except DeckError as error:
                row = error.sentence("en")
            print(f"| {kernel} | {row} |", flush=True)
    finally:
        engine.close()


def measure(engine: Engine, folder: Path, kernel: str, options: argparse.Namespace) -> str:
    """The row's figures: the median of the rounds, after one that is not counted. Raises DeckError."""
    context_tokens = options.prompt_tokens + options.new_tokens + 16
    load_s = engine.load(folder, context_tokens, options.chats, kernel)
    engine.decode(options.chats, options.prompt_tokens, options.new_tokens)
    rounds = range(options.rounds)
    first_ms = [1000 * engine.first_token_s(options.prompt_tokens) for _ in rounds]
    one, several = (
        [engine.decode(chats, options.prompt_tokens, options.new_tokens).tokens_per_s for _ in rounds]
        for chats in (1, options.chats)
    )
    figures = (statistics.median(first_ms), statistics.median(one), statistics.median(several))
    return " | ".join([f"{load_s:.1f}", *(f"{figure:.1f}" for figure in figures), str(engine.memory_mib()[1])])


if __name__ == "__main__":
    main()
