"""What grammars and log-probabilities cost: a model of random weights that writes with them and without.

`python -m benchmarks.form_speed FOLDER` makes the model in FOLDER where it is not there yet, and a tokenizer of as many
tokens as its vocabulary has. One load serves all: one chat that is free, that writes JSON by a schema, and that tells
log-probabilities; then 32 free chats, and 32 of which 8 write JSON, where the speed of the other 24 counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.deadline import Deadline, add_limit
from benchmarks.engine import LOOK_S, ONE_BY_ONE, Engine, count, greedy, wait, watch_one
from benchmarks.figures import Figures, add_results
from benchmarks.measuring import Unable
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES
from benchmarks.speed_table import SPARE_TOKENS, make
from benchmarks.turns import turn
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import DeckError
from core.engine.request_options import Grammar, RequestOptions

# An object takes a dozen tokens at least, so that no answer comes to the array's end.
NOTE = {"type": "object", "properties": {"name": {"type": "string", "minLength": 3, "maxLength": 24},
        "age": {"type": "integer"}, "is_new": {"type": "boolean"}},
        "required": ["name", "age", "is_new"], "additionalProperties": False}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"notes": {"type": "array", "minItems": 64, "items": NOTE}},
          "required": ["notes"], "additionalProperties": False}  # fmt: skip
JSON = RequestOptions(grammar=Grammar("json", json.dumps(SCHEMA)))
FREE = "free"
ONE_CHAT = {FREE: ONE_BY_ONE, "JSON": JSON, "log-probabilities": RequestOptions(ignore_eos=True, logprobs=0),
            "5 likeliest": RequestOptions(ignore_eos=True, logprobs=5)}  # fmt: skip
# What is to be left of the free speed.
TARGETS = {"JSON": 0.90, "log-probabilities": 0.95, "5 likeliest": 0.95, "others": 0.95}


@dataclass(frozen=True, slots=True)
class Extent:
    """`num_forms` of `num_chats` write JSON. `rounds`: of one chat, of many."""

    prompt_tokens: int = 128
    one_tokens: int = 256
    many_tokens: int = 768
    num_chats: int = 32
    num_forms: int = 8
    rounds: tuple[int, int] = (3, 2)

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + max(self.one_tokens, self.many_tokens) + SPARE_TOKENS


@dataclass(slots=True)
class Found:
    """Tokens a second by what the chat writes; of many chats those of the ones that are free in both cases."""

    one: dict[str, list[float]] = field(default_factory=dict)
    many: dict[str, list[float]] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """What is left of the free speed, by the names of TARGETS. "others" is missing where chats ended before all had
        begun."""
        one = {name: statistics.median(rates) for name, rates in self.one.items()}
        many = {name: statistics.median(rates) for name, rates in self.many.items()}
        shares = {name: rate / one[FREE] for name, rate in one.items() if name != FREE}
        return shares | ({"others": many["others"] / many[FREE]} if many.get(FREE) and "others" in many else {})


class FormEngine(Engine):
    """An engine whose chats may write by a grammar."""

    def one_rate(self, options: RequestOptions, extent: Extent) -> float:
        prompt = self._prompts.take(extent.prompt_tokens)
        return watch_one(self._runner.generate(prompt, greedy(extent.one_tokens), options=options)).tokens_per_s

    def many_rates(self, num_forms: int, extent: Extent) -> tuple[float, float]:
        """Tokens a second of each chat on average, of those that never write by a grammar and of the first ones, of
        which `num_forms` do, from when the last one began until the first one ends."""
        answers = [
            self._runner.generate(
                self._prompts.take(extent.prompt_tokens),
                greedy(extent.many_tokens),
                options=JSON if chat < num_forms else ONE_BY_ONE,
            )
            for chat in range(extent.num_chats)
        ]
        first, others = answers[: extent.num_forms], answers[extent.num_forms :]
        while any(answer.phase in ("queued", "reading") for answer in answers):
            time.sleep(LOOK_S)
        begin_s, begin = time.perf_counter(), (count(others), count(first))
        while all(answer.is_running for answer in answers):
            time.sleep(LOOK_S)
        took_s, end = time.perf_counter() - begin_s, (count(others), count(first))
        for answer in answers:
            wait(answer)
        rates = [(after - before) / took_s for before, after in zip(begin, end, strict=True)]
        return rates[0] / len(others), rates[1] / len(first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--shape", choices=SHAPES, default="7B", metavar="SHAPE", help="a model of benchmarks/shapes.json"
    )
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline, figures = Deadline.after(options.limit_s), Figures("Forms", options.results)
    make([options.shape], options.folder / options.shape)
    folder = with_words(options.folder / options.shape, options.folder / f"{options.shape}-words")
    found = measure(read_checkpoint(folder), FormEngine, Extent(), figures, deadline)
    print(table(found))
    shares = found.shares()
    return 0 if all(shares.get(name, 0.0) >= wanted for name, wanted in TARGETS.items()) else 1


def with_words(model: Path, folder: Path) -> Path:
    """The checkpoint in `model` once more in `folder`, with a tokenizer as large as its vocabulary; its files are the
    same ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in model.iterdir():
        os.link(file, folder / file.name)
    (folder / "tokenizer.json").unlink()
    write_tokenizer(folder / "tokenizer.json", json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"])
    return folder


def write_tokenizer(path: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer of `vocabulary` tokens: every byte, then pairs of earlier ones by chance, as long as
    those that are trained. A mask takes as long as a real vocabulary's."""
    drawn, special = random.Random(0), ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [one for one in alphabet if one.isascii()]
    tokens, merges = dict.fromkeys([*special, *alphabet]), []
    pieces = letters[:]
    while len(tokens) < vocabulary:
        one, other = drawn.choice(pieces), drawn.choice(letters if len(pieces) < 4000 else pieces)
        if len(one + other) <= 12 and one + other not in tokens:
            tokens[one + other] = None
            pieces.append(one + other)
            merges.append((one, other))
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(path))


def measure(
    checkpoint: Checkpoint,
    make_engine: Callable[[Prompts], FormEngine],
    extent: Extent,
    figures: Figures,
    deadline: Deadline,
) -> Found:
    """All figures, in turns, over one load; those that there are where something fails or time is short."""
    found, engine = Found(), make_engine(Prompts(checkpoint))

    def note(into: dict[str, list[float]], kind: str, name: str, rate: float) -> None:
        into.setdefault(name, []).append(rate)
        figures.add(f"{kind}: {name}", "tokens/s of a chat", rate)

    def note_shares() -> None:
        for name, share in found.shares().items():
            kind = "many chats" if name == "others" else "one chat"
            figures.add(f"{kind}: {name}", "% of free", 100 * share)

    try:
        engine.load(checkpoint.folder, extent.context_tokens, extent.num_chats)
        for options in ONE_CHAT.values():
            # Grammars are compiled at their first use, and kernels at theirs.
            engine.one_rate(options, extent)
        with turn():
            for _ in range(extent.rounds[0]):
                for name, options in ONE_CHAT.items():
                    deadline.require()
                    note(found.one, "one chat", name, engine.one_rate(options, extent))
            for _ in range(extent.rounds[1]):
                deadline.require()
                note(found.many, "many chats", FREE, engine.many_rates(0, extent)[0])
                others, forms = engine.many_rates(extent.num_forms, extent)
                note(found.many, "many chats", "others", others)
                note(found.many, "many chats", "JSON", forms)
    except (DeckError, Unable) as error:
        figures.fail("all", "tokens/s of a chat", error)
    finally:
        engine.close()
        note_shares()
    return found


def table(found: Found) -> str:
    """Markdown: tokens a second of a chat, and the share of the free speed beside the one that is wanted."""
    shares = found.shares()
    lines: list[Sequence[str]] = [("what a chat writes", "tokens/s", "of free", "wanted"), ["---"] * 4]
    for name, rates in found.one.items():
        wanted = (f"{shares[name]:.1%}", f"{TARGETS[name]:.0%}") if name in shares else ("", "")
        lines.append((f"one chat: {name}", f"{statistics.median(rates):.1f}", *wanted))
    for name, rates in found.many.items():
        wanted = (f"{shares[name]:.1%}", f"{TARGETS[name]:.0%}") if name == "others" and name in shares else ("", "")
        lines.append((f"many chats: {name}", f"{statistics.median(rates):.1f}", *wanted))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
