"""What LoRA adapters cost: a model of random weights that writes with adapters and without, beside vLLM with the same.

`python -m benchmarks.adapter_speed FOLDER` makes the model and its adapters, of all matrices of its layers, in FOLDER
where they are not there yet. Each chat uses one of the adapters, in turns. With `--vllm SITE`, a folder that holds
vLLM's packages, vLLM is measured with `enable_lora` and without, once our engine has ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.engine import Engine
from benchmarks.measuring import Extent, Measured, Rounds, Unable
from benchmarks.peer import Peer
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES
from benchmarks.speed_table import VLLM_LIMITS, VLLM_SETTINGS, context_for, make, rate, run, text
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.engine.request_options import AdapterUse
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from tests.support.adapters import write_adapter

# No first tokens: prompts are read once, and are not what this is about.
EXTENT = Extent({}, (1, 8), prompt_tokens=512, new_tokens=256, rounds=3)
# Small, so that hidden values stay as large as they are without.
SPREAD = 0.01


class Loadable(Measured, Protocol):
    """Our engine."""

    adapters: Sequence[AdapterUse]

    def load(
        self,
        folder: Path,
        context_tokens: int,
        num_chats: int,
        kernel: str | None = None,
        adapters: AdapterRoom = NO_ROOM,
    ) -> float: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Pair:
    """One engine's figures, without adapters and with them."""

    name: str
    without: Rounds = field(default_factory=Rounds)
    with_adapters: Rounds = field(default_factory=Rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--shape", choices=SHAPES, default="7B", metavar="SHAPE", help="a model of benchmarks/shapes.json"
    )
    parser.add_argument("--adapters", type=int, default=4, metavar="N")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--vllm", type=Path, metavar="SITE")
    parser.add_argument("--vllm-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    folder = options.folder / options.shape
    make([options.shape], folder)
    checkpoint = read_checkpoint(folder)
    uses = make_adapters(options.folder / f"adapters-{options.shape}", folder, options.adapters, options.rank)
    pairs = [measure(checkpoint, uses, options.rank, Engine, EXTENT)]
    if options.vllm is not None:
        pairs.append(measure_vllm(checkpoint, uses, options.vllm, options.vllm_python, EXTENT))
    print(table(pairs, EXTENT))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in pairs], indent=1, default=str))
    return 1 if pairs[0].without.failures or pairs[0].with_adapters.failures else 0


def make_adapters(folder: Path, model: Path, count: int, rank: int) -> list[AdapterUse]:
    """Random adapters of all quantized matrices; those that lie there already are not made again."""
    uses = []
    for number in range(count):
        name = f"rank{rank}-{number}"
        if not (folder / name / "adapter_config.json").is_file():
            write_adapter(folder / name, model, rank, ending="", spread=SPREAD, seed=number)
        uses.append(AdapterUse(name, folder / name))
    return uses


def measure(
    checkpoint: Checkpoint,
    uses: Sequence[AdapterUse],
    rank: int,
    make_engine: Callable[[Prompts], Loadable],
    extent: Extent,
) -> Pair:
    """Our own figures: over a load without room for adapters, then over one with room for all of them."""
    pair, engine = Pair("LlamaDeck"), make_engine(Prompts(checkpoint))
    try:
        for room, used, into in (
            (NO_ROOM, (), pair.without),
            (AdapterRoom(len(uses), rank), tuple(uses), pair.with_adapters),
        ):
            engine.load(checkpoint.folder, context_for(extent), max(extent.chats), adapters=room)
            engine.adapters = used
            run("with adapters" if used else "without", engine, into, extent, extent.chats)
    finally:
        engine.close()
    return pair


def measure_vllm(checkpoint: Checkpoint, uses: Sequence[AdapterUse], site: Path, python: str, extent: Extent) -> Pair:
    """The same of vLLM; why there is none stands among the failures."""
    pair = Pair("vLLM")
    for used, into in (((), pair.without), (tuple(uses), pair.with_adapters)):
        arguments = [str(checkpoint.folder), str(context_for(extent)), *(str(one.folder.resolve()) for one in used)]
        environment = {"PYTHONPATH": str(site), **VLLM_SETTINGS}
        try:
            peer = Peer("benchmarks.vllm_peer", arguments, Prompts(checkpoint), max(extent.chats), VLLM_LIMITS,
                        (python,), environment)  # fmt: skip
        except Unable as error:
            into.failures.append(error)
            continue
        try:
            run("vLLM with adapters" if used else "vLLM", peer, into, extent, extent.chats)
        finally:
            peer.close()
    return pair


def table(pairs: Sequence[Pair], extent: Extent) -> str:
    """Markdown: tokens a second without adapters, with them, and the share that is left."""
    lines = [["engine", *(f"{count} chats: without / with" for count in extent.chats)]]
    lines.append(["---"] * len(lines[0]))
    for pair in pairs:
        cells = [pair.name]
        for count in extent.chats:
            without, used = (rate(one.decoded.get(count, [])) for one in (pair.without, pair.with_adapters))
            share = f" ({used / without:.0%})" if used is not None and without else ""
            cells.append(f"{text(without)} / {text(used)}{share}")
        lines.append(cells)
    said = [f"{one.name}: {error}" for one in pairs for error in (*one.without.failures, *one.with_adapters.failures)]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *said])


if __name__ == "__main__":
    sys.exit(main())
