"""The speed table of docs/benchmarks.md: models of random weights in real shapes, ours beside vLLM on the same card.

`python -m benchmarks.speed_table FOLDER` makes one model after another in FOLDER, measures it, and takes it away again.
With `--vllm SITE`, a folder that holds vLLM's packages, each is measured with vLLM too, once our engine has ended.
Beside the figures stands the ceiling: how often a second the card could read what one token of one chat reads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.engine import Engine
from benchmarks.measuring import (
    Extent,
    Measured,
    Rounds,
    Unable,
    bytes_a_token,
    fitting,
    measure_decoding,
    measure_first_tokens,
    spread,
)
from benchmarks.peer import Limits, Peer
from benchmarks.prompts import Prompts
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint

QWENS_OWN = ["--keep", "attn", "shared_expert"]
# What benchmarks.random_model makes of each.
CASES = {
    "Qwen3-30B-A3B": ["Qwen3-30B-A3B"],
    "Qwen3.5-27B, as published": ["Qwen3.5-27B", *QWENS_OWN],
    "Qwen3.5-27B, all in 4 bit": ["Qwen3.5-27B"],
    "Qwen3.5-35B-A3B, as published": ["Qwen3.5-35B-A3B", *QWENS_OWN],
    "Mixtral-8x7B": ["Mixtral-8x7B"],
}
EXTENT = Extent({512: 5, 4000: 3}, (1, 8, 32), prompt_tokens=512, new_tokens=256, rounds=3)
SPARE_TOKENS = 16
VLLM_LIMITS = Limits(start_s=900.0, answer_s=300.0)
# As vLLM wants to be started for this: one process, and nothing that is compiled for sampling.
VLLM_SETTINGS = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class Loadable(Measured, Protocol):
    """Our engine."""

    def load(self, folder: Path, context_tokens: int, num_chats: int, kernel: str | None = None) -> float: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Row:
    """One model. `ceiling`: tokens a second that the card's copy speed allows one chat."""

    name: str
    bytes_a_token: int
    ceiling: float
    ours: Rounds = field(default_factory=Rounds)
    vllm: Rounds = field(default_factory=Rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", choices=CASES, default=list(CASES), metavar="MODEL",
                        help="; ".join(CASES))  # fmt: skip
    parser.add_argument("--vllm", type=Path, metavar="SITE")
    parser.add_argument("--vllm-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep-models", action="store_true", help="leave the models that were made")
    options = parser.parse_args()
    copy_bytes_per_s = copy_speed()
    rows = []
    for name in options.models:
        folder = options.folder / name
        make(CASES[name], folder)
        row = measure(name, read_checkpoint(folder), copy_bytes_per_s, Engine, EXTENT)
        if options.vllm is not None:
            add_vllm(row, read_checkpoint(folder), options.vllm, options.vllm_python, EXTENT)
        rows.append(row)
        print(table(rows, EXTENT), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1, default=str))
        if not options.keep_models:
            shutil.rmtree(folder)
    return 1 if any(row.ours.failures for row in rows) else 0


def copy_speed() -> float:
    done = subprocess.run([sys.executable, "-m", "benchmarks.copy_speed"], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def make(arguments: Sequence[str], folder: Path) -> None:
    """A model that lies there already is not made again."""
    if not (folder / "config.json").is_file():
        shape, *more = arguments
        subprocess.run([sys.executable, "-m", "benchmarks.random_model", shape, str(folder), *more], check=True)


def measure(
    name: str,
    checkpoint: Checkpoint,
    copy_bytes_per_s: float,
    make_engine: Callable[[Prompts], Loadable],
    extent: Extent,
) -> Row:
    """Our own figures: one chat with room for the longest prompt, then several over one load for the most of them."""
    read = bytes_a_token(checkpoint)
    row, prompts = Row(name, read, copy_bytes_per_s / read), Prompts(checkpoint)
    extent = fitting(extent, checkpoint.max_context_tokens)
    engine = make_engine(prompts)
    try:
        engine.load(checkpoint.folder, max(context_for(extent), max(extent.lengths) + SPARE_TOKENS), 1)
        run("ours", engine, row.ours, extent, (1,))
        several = tuple(count for count in extent.chats if count > 1)
        if several:
            engine.load(checkpoint.folder, context_for(extent), max(several))
            run("ours", engine, row.ours, extent, several)
    finally:
        engine.close()
    return row


def context_for(extent: Extent) -> int:
    """How long a chat becomes that is written."""
    return extent.prompt_tokens + extent.new_tokens + SPARE_TOKENS


def add_vllm(row: Row, checkpoint: Checkpoint, site: Path, python: str, extent: Extent) -> None:
    """The same figures of vLLM; why there are none stands in the row's failures."""
    context_tokens = max(extent.lengths) + extent.new_tokens + SPARE_TOKENS
    arguments = [str(checkpoint.folder), str(context_tokens)]
    environment = {"PYTHONPATH": str(site), **VLLM_SETTINGS}
    try:
        peer = Peer("benchmarks.vllm_peer", arguments, Prompts(checkpoint), max(extent.chats), VLLM_LIMITS, (python,),
                    environment)  # fmt: skip
    except Unable as error:
        row.vllm.failures.append(error)
        return
    try:
        run("vLLM", peer, row.vllm, extent, extent.chats)
    finally:
        peer.close()


def run(name: str, engine: Measured, found: Rounds, extent: Extent, chats: Sequence[int]) -> None:
    """One chat waits for first tokens too."""

    def tell(_: str, asked: int, value: float) -> None:
        print(f"{name} {asked}: {value:.4g}", file=sys.stderr, flush=True)

    engines, into = {name: engine}, {name: found}
    if 1 in chats:
        measure_first_tokens(engines, into, extent.lengths, tell)
    for count in chats:
        measure_decoding(engines, into, count, extent, tell)


def table(rows: Sequence[Row], extent: Extent) -> str:
    """Markdown: each cell is ours, a slash, vLLM's; of one chat with the share of the ceiling that ours reaches."""
    titles = ["model", "GB a token", "ceiling", *(f"{count} chats" for count in extent.chats)]
    titles += [f"first of {length}, ms" for length in extent.lengths]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        cells = [row.name, f"{row.bytes_a_token / 1e9:.2f}", f"{row.ceiling:.0f}"]
        for count in extent.chats:
            pair = [rate(one.decoded.get(count, [])) for one in (row.ours, row.vllm)]
            share = f" ({pair[0] / row.ceiling:.0%})" if count == 1 and pair[0] is not None else ""
            cells.append(f"{text(pair[0])}{share} / {text(pair[1])}")
        for length in extent.lengths:
            cells.append(" / ".join(text(first_ms(one.first_token_s, length)) for one in (row.ours, row.vllm)))
        lines.append(cells)
    said = [f"{row.name}: {error}" for row in rows for one in (row.ours, row.vllm) for error in one.failures]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *said])


def rate(decoded: Sequence[object]) -> float | None:
    values = [one.tokens_per_s for one in decoded]  # type: ignore[attr-defined]
    return spread(values)["median"] if values else None


def first_ms(found: Mapping[int, list[float]], length: int) -> float | None:
    return spread([1000 * one for one in found[length]])["median"] if found.get(length) else None


def text(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
