"""The speed tables of docs/benchmarks.md: models of random weights in real shapes, ours beside vLLM on the same files.

`python -m benchmarks.speed_table FOLDER [--cases NAME ...] [--engines ours vllm]` makes the models in FOLDER where they
are not there, loads each once with each engine, and takes away what it made. With `--vllm SITE`, a folder that holds
vLLM's packages, each is measured with vLLM too, once our engine has ended. Beside the figures stands the ceiling: how
often a second the card could read what one token of one chat reads. A figure that cannot be had tells why.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.deadline import Deadline, add_limit
from benchmarks.engine import ONE_BY_ONE, Engine
from benchmarks.figures import OURS, VLLM, Figures, add_results, markdown
from benchmarks.measuring import Decoded, Unable, bytes_a_token
from benchmarks.peer import Limits, Peer
from benchmarks.prompts import Prompts
from benchmarks.turns import is_shared, turn
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import DeckError
from core.common.files import write_atomically
from core.engine.request_options import AdapterUse, RequestOptions
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheBits, CacheChoice

QWENS_OWN = ("--keep", "attn", "shared_expert")
# What benchmarks.random_model makes of each.
MODELS = {
    "Qwen3-30B-A3B": ("Qwen3-30B-A3B",),
    "Qwen3.5-27B, as published": ("Qwen3.5-27B", *QWENS_OWN),
    "Qwen3.5-27B, all in 4 bit": ("Qwen3.5-27B",),
    "Qwen3.5-35B-A3B, as published": ("Qwen3.5-35B-A3B", *QWENS_OWN),
    "Mixtral-8x7B": ("Mixtral-8x7B",),
    "7B": ("7B",),
    "13B": ("13B",),
    "70B": ("70B",),
    "Llama-3.1-8B": ("Llama-3.1-8B",),
}
GROUPED_HEADS = {"Qwen3-30B-A3B", "Mixtral-8x7B"}
SPARE_TOKENS = 16
VLLM_LIMITS = Limits(start_s=400.0, answer_s=120.0)
# Less than that is too little to start an engine and ask it.
LEAST_START_S = 20.0
# As vLLM wants to be started for this: one process, and nothing that is compiled for sampling.
VLLM_SETTINGS = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: of `chats` prompts of `tokens` at once the time to the last one's first token, ms, or how fast
    `new_tokens` of each are written, tokens a second of all together."""

    chats: int
    tokens: int = 512
    new_tokens: int = 0
    rounds: int = 3

    @property
    def column(self) -> str:
        at_once = f", {self.chats} at once" if self.chats > 1 else ""
        if not self.new_tokens:
            return f"first of {self.tokens}{at_once}, ms"
        after = "" if self.tokens == Cell(1).tokens else f" after {self.tokens}"
        return f"{self.chats} chat{'s' if self.chats > 1 else ''}{after}, tokens/s"

    @property
    def context_tokens(self) -> int:
        return self.tokens + max(1, self.new_tokens) + SPARE_TOKENS


def written(*chats: int) -> tuple[Cell, ...]:
    return tuple(Cell(count, new_tokens=256) for count in chats)


FIRST = Cell(1, rounds=5)
TODAYS = (FIRST, Cell(1, 4000), *written(1, 8, 32))
LLAMAS = (FIRST, *written(1, 8, 32, 64), Cell(8), Cell(32))
SHORT = (FIRST, *written(1, 8, 32), Cell(8), Cell(32))
LONG = (
    Cell(1, 32000),
    Cell(1, 32000, 256),
    Cell(1, 128000, 256, rounds=1),
    Cell(1, 128000, rounds=1),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what is measured of it, and how it is loaded; `num_gpus` are vLLM's, by tensor parallel."""

    model: str
    cells: tuple[Cell, ...]
    cache_bits: CacheBits = 16
    num_gpus: int = 1

    @property
    def context_tokens(self) -> int:
        return max(cell.context_tokens for cell in self.cells)

    @property
    def num_chats(self) -> int:
        return max(cell.chats for cell in self.cells)


TODAYS_MODELS = tuple(MODELS)[:5]
CASES = {
    **{name: Case(name, TODAYS) for name in TODAYS_MODELS},
    "7B": Case("7B", (*LLAMAS, *written(128))),
    "13B": Case("13B", LLAMAS),
    "70B": Case("70B", LLAMAS),
    "7B, 8-bit cache": Case("7B", LLAMAS, 8),
    "13B, 8-bit cache": Case("13B", LLAMAS, 8),
    "70B, 8-bit cache": Case("70B", LLAMAS, 8),
    "Llama-3.1-8B": Case("Llama-3.1-8B", LONG),
    "Llama-3.1-8B, 8-bit cache": Case("Llama-3.1-8B", LONG, 8),
    "7B, two GPUs": Case("7B", SHORT, num_gpus=2),
    "70B, two GPUs": Case("70B", SHORT, num_gpus=2),
}


def vllm_cache_gib(case: Case) -> int:
    """Where others share the card: enough for every chat; those without grouped heads and with states need the most."""
    return (8 if case.model in GROUPED_HEADS else 16) * max(1, case.num_chats // 32)


class Asked(Protocol):
    """An engine that is loaded."""

    def first_tokens_s(self, num_chats: int, num_tokens: int) -> float: ...

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded: ...

    def close(self) -> None: ...


class Loadable(Asked, Protocol):
    """Our engine."""

    adapters: Sequence[AdapterUse]
    asked: RequestOptions

    def load(
        self,
        folder: Path,
        context_tokens: int,
        num_chats: int,
        kernel: str | None = None,
        adapters: AdapterRoom = NO_ROOM,
        cache: CacheChoice = EVERY_CHAT_FULL,
    ) -> float: ...


@dataclass(frozen=True, slots=True)
class Vllm:
    """Where vLLM's packages lie, and the Python that runs them."""

    site: Path
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table that is to be filled: its name, the model's files, and the adapters of its chats."""

    name: str
    checkpoint: Checkpoint
    case: Case
    adapters: Sequence[AdapterUse] = ()
    rank: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(TODAYS_MODELS), metavar="NAME",
                        help="; ".join(CASES))  # fmt: skip
    parser.add_argument("--engines", nargs="*", choices=("ours", "vllm"), default=["ours", "vllm"])
    parser.add_argument("--keep-models", action="store_true", help="leave the models that were made")
    add_vllm(parser)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline, figures = Deadline.after(options.limit_s), Figures("Speed", options.results)
    for name in options.cases:
        case, folder = CASES[name], options.folder / CASES[name].model
        is_new = make(MODELS[case.model], folder)
        row = Row(name, read_checkpoint(folder), case)
        if "ours" in options.engines and case.num_gpus == 1:
            add_ceiling(row, copy_speed(options.folder), figures)
            fill_ours(row, Engine, figures, deadline)
            add_share(row, figures)
        if "vllm" in options.engines and options.vllm is not None:
            fill_vllm(row, Vllm(options.vllm, options.vllm_python), figures, deadline)
        print(markdown(figures.found), flush=True)
        if is_new and not options.keep_models:
            shutil.rmtree(folder)
    return 1 if any(one.engine == OURS for one in figures.failures) else 0


def add_vllm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vllm", type=Path, metavar="SITE")
    parser.add_argument("--vllm-python", default=sys.executable, metavar="PYTHON")


def copy_speed(folder: Path) -> float:
    """Bytes a second; measured once for a folder, since cards of one machine are alike."""
    path = folder / "copy-speed"
    if not path.is_file():
        command = [sys.executable, "-m", "benchmarks.copy_speed"]
        with turn():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        write_atomically(path, done.stdout.split()[-1])
    return float(path.read_text())


def make(arguments: Sequence[str], folder: Path) -> bool:
    """Whether it was made: a model that lies there already is not."""
    if (folder / "config.json").is_file():
        return False
    subprocess.run(make_command(arguments, folder), check=True)
    return True


def make_command(arguments: Sequence[str], folder: Path) -> list[str]:
    """What makes a model of random weights in `folder`."""
    shape, *more = arguments
    return [sys.executable, "-m", "benchmarks.random_model", shape, str(folder), *more]


def add_ceiling(row: Row, copy_bytes_per_s: float, figures: Figures) -> None:
    read = bytes_a_token(row.checkpoint)
    figures.add(row.name, "GB a token", read / 1e9)
    figures.add(row.name, "ceiling of one chat", copy_bytes_per_s / read)


def add_share(row: Row, figures: Figures) -> None:
    """How much of the ceiling one chat reaches, in percent."""
    rate, ceiling = (figures.median(row.name, name) for name in (written(1)[0].column, "ceiling of one chat"))
    if rate is not None and ceiling:
        figures.add(row.name, "% of the ceiling", 100 * rate / ceiling)


def fill_ours(row: Row, make_engine: Callable[[Prompts], Loadable], figures: Figures, deadline: Deadline) -> None:
    """Our own figures, over one load with room for the longest chat in every slot."""
    engine, case = make_engine(Prompts(row.checkpoint)), row.case
    engine.adapters, engine.asked = row.adapters, ONE_BY_ONE
    room = AdapterRoom(len(row.adapters), row.rank) if row.adapters else NO_ROOM
    try:
        with told(figures, row.name, "load", OURS):
            deadline.require(LEAST_START_S)
            cache = CacheChoice(bits=case.cache_bits)
            load_s = engine.load(row.checkpoint.folder, case.context_tokens, case.num_chats, adapters=room, cache=cache)
            figures.add(row.name, "load, s", load_s)
            with turn():
                fill(row, engine, OURS, figures, deadline)
    finally:
        engine.close()


def fill_vllm(row: Row, vllm: Vllm, figures: Figures, deadline: Deadline) -> None:
    """The same figures of vLLM."""
    case, folders = row.case, [str(one.folder.resolve()) for one in row.adapters]
    arguments = [str(row.checkpoint.folder), str(case.context_tokens), "--chats", str(case.num_chats)]
    arguments += ["--gpus", str(case.num_gpus), "--cache-bits", str(case.cache_bits)]
    arguments += ["--cache-gib", str(vllm_cache_gib(case))] if is_shared() else []
    arguments += ["--adapters", *folders] if folders else []
    with told(figures, row.name, "load", VLLM):
        left_s = deadline.require(LEAST_START_S)
        limits = Limits(min(VLLM_LIMITS.start_s, left_s), VLLM_LIMITS.answer_s, left_s)
        peer = Peer("benchmarks.vllm_peer", arguments, Prompts(row.checkpoint), case.num_chats, limits, (vllm.python,),
                    {"PYTHONPATH": str(vllm.site), **VLLM_SETTINGS})  # fmt: skip
        try:
            with turn():
                fill(row, peer, VLLM, figures, deadline)
        finally:
            peer.close()


def fill(row: Row, engine: Asked, name: str, figures: Figures, deadline: Deadline) -> None:
    """Every cell of the row, some rounds of each; one that fails leaves the others."""
    for cell in row.case.cells:
        with told(figures, row.name, cell.column, name):
            for _ in range(cell.rounds):
                deadline.require()
                figures.add(row.name, cell.column, measure(engine, cell), name)


def measure(engine: Asked, cell: Cell) -> float:
    if not cell.new_tokens:
        return 1000 * engine.first_tokens_s(cell.chats, cell.tokens)
    decoded = engine.decode(cell.chats, cell.tokens, cell.new_tokens)
    if not decoded.tokens_per_s:
        raise Unable("some answers ended before all had begun")
    return decoded.tokens_per_s


@contextmanager
def told(figures: Figures, row: str, column: str, engine: str) -> Iterator[None]:
    """Let the table tell of what an engine cannot do."""
    try:
        yield
    except (DeckError, Unable) as error:
        figures.fail(row, column, error, engine)


if __name__ == "__main__":
    sys.exit(main())
