"""Holds the plan of quantizing against what it took: makes a model of random weights, quantizes it, and compares.

`python -m benchmarks.quantize_plan MODEL FOLDER [--layers N] [--cpu] [--json FILE]`: MODEL is a name of
benchmarks/shapes.json. It says the plan first. The perplexity of random weights tells nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.random_model import SHAPES, make_empty, with_layers
from core.checkpoint.layers import LAYER
from core.gpu.snapshot import read_snapshot
from core.memory.sizes import MIB
from core.quantize.options import QuantizeOptions
from core.quantize.plan import plan_job
from core.quantize.queue import QuantizeQueue
from core.quantize.target import folder_target
from tests.support.checkpoints import make_tokenizer

POLL_S = 0.2
# What a tokenizer of a few sentences can have; calibration needs no more.
TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path, help="where the row is added")
    arguments = parser.parse_args()
    source = arguments.folder / f"random-{arguments.model}-{arguments.layers or 'all'}"
    if not (source / "config.json").exists():
        make_plain(source, arguments.model, arguments.layers)
    device = "cpu" if arguments.cpu or read_snapshot().error is not None else "cuda:0"
    row = {"model": arguments.model, "layers": arguments.layers} | measure(source, arguments, device)
    print(json.dumps(row, indent=1))
    if arguments.json is not None:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def measure(source: Path, arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """The plan and what it took, in MiB and seconds; the disk is the most that a look each POLL_S saw."""
    os.environ["LLAMADECK_MODELS"] = str(arguments.folder / "models")
    target, options = folder_target(source), QuantizeOptions(arguments.bits, arguments.group_size)
    plan = plan_job(target.model, options, device)
    planned = {
        "time_s": round(plan.time_s),
        "ram_mib": plan.ram_bytes // MIB,
        "vram_mib": plan.vram_bytes // MIB,
        "disk_mib": plan.disk_bytes // MIB,
        "result_mib": plan.result_bytes // MIB,
    }
    print(f"planned: {planned}", file=sys.stderr)
    name = f"{source.name}-{arguments.bits}-{arguments.group_size}-{time.time_ns()}"
    begin_s = time.monotonic()
    queue = QuantizeQueue()
    job, most_bytes = queue.add(target, options, device, name), 0
    while not job.wait(POLL_S):
        most_bytes = max(most_bytes, used_bytes(arguments.folder / "models"))
        state = job.snapshot()
        print(f"\r{state.stage} {state.layer}/{state.layers} {state.left_s or 0:.0f} s left ", end="", file=sys.stderr)
    queue.close()
    state = job.snapshot()
    if state.error is not None:
        sys.exit(f"\n{state.error}")
    assert state.result is not None
    gpu = next(iter(read_snapshot().gpus), None)
    return {
        "device": (gpu.label if gpu else device) if device != "cpu" else "cpu",
        "options": options.label,
        "planned": planned,
        "taken": {
            "time_s": round(time.monotonic() - begin_s),
            "ram_mib": state.result["peak_ram_bytes"] // MIB,
            "vram_mib": state.result["peak_vram_bytes"] // MIB,
            "disk_mib": most_bytes // MIB,
            "result_mib": used_bytes(arguments.folder / "models" / name) // MIB,
        },
        "stages_s": state.result["took_s"],
    }


def used_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


def make_plain(folder: Path, model: str, num_layers: int | None = None) -> None:
    """A model of that shape in bfloat16 with random weights, one file a layer."""
    config = with_layers(SHAPES[model], num_layers)
    folder.mkdir(parents=True, exist_ok=True)
    layers: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, value in make_empty(config).state_dict().items():
        match = LAYER.match(name)
        layers[match[1] if match else "ends"][name] = tuple(value.shape)
    if config["tie_word_embeddings"]:
        layers["ends"].pop("lm_head.weight", None)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(layers.values()):
        file = f"model-{number + 1:05}-of-{len(layers):05}.safetensors"
        save_file({name: _random(shape) for name, shape in shapes.items()}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    make_tokenizer(folder, TOKENS)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16"}
    architecture = type(make_empty(config)).__name__
    (folder / "config.json").write_text(json.dumps(config | tokens | {"architectures": [architecture]}, indent=1))


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are ones; matrices keep the size of what goes through them."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape) / math.sqrt(shape[-1])).bfloat16()


if __name__ == "__main__":
    main()
