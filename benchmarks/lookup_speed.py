"""How fast one chat is written with tokens that its own text proposes, and without: copied texts and others.

`python -m benchmarks.lookup_speed` makes a model of random weights in Llama-2 7B's shape, in the folder of `--make`
where it is not there yet, and prints a Markdown table. What comes out is forced by biases: one token over and over is a
text that is copied whole; of two tokens by chance each is what the lookup says half of the time; and nothing repeats
itself in all of the vocabulary by chance. With `--folder` of a real chat model it is also asked to repeat a text.
Proposals are left out by a request that asks for a least length, which none of these needs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.deadline import Deadline, add_limit
from benchmarks.engine import Engine
from benchmarks.figures import Figures, add_results
from benchmarks.measuring import Unable
from benchmarks.prompts import FILLER, Prompts, encode
from benchmarks.random_model import SHAPES
from benchmarks.speed_table import make
from benchmarks.turns import turn
from core.chat.template import read_template
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.memory.model_shape import read_shape
from core.tokenizer.read import read_tokenizer

BIAS = 100.0
# How many words of a text are to be repeated, and how many tokens they are at most, with the question.
COPIED_WORDS, COPIED_TOKENS = 150, 900
LOOK = "Repeat this text word for word, and say nothing else:\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a model that is there")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="where the model is made and left")
    parser.add_argument("--shape", choices=SHAPES, default="7B")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder
        if folder is None:
            folder = (options.make or Path(made)) / options.shape
            make([options.shape], folder)
        print_table(folder, options, is_real=options.folder is not None)


def print_table(folder: Path, options: argparse.Namespace, is_real: bool) -> None:
    checkpoint = read_checkpoint(folder)
    prompts, engine = Prompts(checkpoint), Engine(Prompts(checkpoint))
    figures, deadline = Figures("Lookup", options.results), Deadline.after(options.limit_s)
    length, ignored = options.new_tokens, RequestOptions(ignore_eos=True)
    cases: dict[str, tuple[Sampling, RequestOptions]] = {
        "one token": (Sampling(temperature=0.0, max_new_tokens=length), replace(ignored, logit_bias=((100, BIAS),))),
        "two by chance": (
            Sampling(temperature=5.0, top_p=1.0, max_new_tokens=length),
            replace(ignored, logit_bias=((100, BIAS), (101, BIAS))),
        ),
        "all by chance": (Sampling(temperature=5.0, top_p=1.0, max_new_tokens=length), ignored),
    }
    if is_real:
        cases["a text"] = Sampling(temperature=0.0, max_new_tokens=length), RequestOptions()
    print("| text | tokens/s without | with | with / without |\n|---|---|---|---|", flush=True)
    try:
        room = max(options.prompt_tokens, COPIED_TOKENS if is_real else 0) + length
        engine.load(folder, min(room + 64, checkpoint.max_context_tokens), 1)
        with turn():
            for name, (sampling, wishes) in cases.items():
                rates: dict[bool, list[float]] = {False: [], True: []}
                for number in range(2 * options.rounds + 2):
                    deadline.require()
                    is_plain = number % 2 == 0
                    prompt = copied(folder, number) if name == "a text" else prompts.take(options.prompt_tokens)
                    rate = engine.write(prompt, sampling, replace(wishes, min_tokens=1) if is_plain else wishes)
                    if number > 1:
                        rates[is_plain].append(rate)
                        figures.add(name, "without, tokens/s" if is_plain else "with, tokens/s", rate)
                without, with_lookup = statistics.median(rates[True]), statistics.median(rates[False])
                figures.add(name, "with / without", with_lookup / without)
                print(f"| {name} | {without:.0f} | {with_lookup:.0f} | {with_lookup / without:.2f} |", flush=True)
    except (DeckError, Unable) as error:
        figures.fail("all", "with / without", error)
    finally:
        engine.close()


def copied(folder: Path, number: int) -> tuple[int, ...]:
    """A question that asks to repeat a part of the filler, another one for each pair of numbers."""
    words = FILLER.read_text("utf-8").replace("%%", "").split()
    begin = number // 2 * COPIED_WORDS % (len(words) - COPIED_WORDS)
    question = LOOK + " ".join(words[begin : begin + COPIED_WORDS])
    template = read_template(folder)
    text = question if template.source is None else template.render([{"role": "user", "content": question}])
    return tuple(encode(read_tokenizer(folder), text, read_shape(read_checkpoint(folder)).vocabulary))


if __name__ == "__main__":
    main()
