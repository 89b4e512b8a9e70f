"""llama.cpp on a GPU, for the speed tables: its own tools on random weights in the same shapes, in its format Q4_0.

`python -m benchmarks.llama_cpp_gpu FOLDER --bin BIN [--cases NAME ...]` makes the files in FOLDER where they are not
there, and takes away what it made. One chat is llama-bench's, several are llama-batched-bench's, both with
FlashAttention and all layers on the GPU. Both take tokens at random and sample none: a step is a little less than ours.

BIN holds both tools and the libraries that they were built with. Their source is in llama-cpp-python's (`pip download
--no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36`), under vendor/llama.cpp:

    cmake -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real
        -DGGML_CUDA_NCCL=OFF -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF
        -DLLAMA_BUILD_APP=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN'
    ninja -C build llama-bench llama-batched-bench    # then BIN is build/bin

nvcc comes from CUDA's toolkit, or from the packages nvidia-cuda-nvcc, -crt, -cccl, -runtime, nvidia-nvvm and
nvidia-cublas; it needs no GPU. With GGML_BACKEND_DL the same tools also run where there is none (`--device none`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import Figures, add_results, markdown
from benchmarks.measuring import Unable
from benchmarks.random_gguf import FILE
from benchmarks.speed_table import LEAST_START_S, LLAMAS, Cell, told

LLAMA_CPP = "llama.cpp"
# What benchmarks.random_gguf makes of each, by the name of its folder, without a comma: llama-bench splits paths there.
GGUFS = {f"{shape} Q4_0": shape for shape in ("7B", "13B", "70B")}
ROUNDS = 3
# A prompt is read in one pass, and many prompts in passes of several.
COMMON = ("--flash-attn", "on", "--n-gpu-layers", "99", "--batch-size", "2048", "--ubatch-size", "2048")
# Written first, so that every kernel has been loaded; not told.
WARM_UP_TOKENS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bin", type=Path, required=True, metavar="BIN", help="the folder of llama.cpp's tools")
    parser.add_argument("--cases", nargs="*", choices=GGUFS.values(), default=list(GGUFS.values()), metavar="SHAPE",
                        help="; ".join(GGUFS.values()))  # fmt: skip
    parser.add_argument("--device", default="CUDA0", metavar="NAME", help="as llama.cpp names it; none: the processor")
    parser.add_argument("--keep-models", action="store_true", help="leave the models that were made")
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    deadline, figures = Deadline.after(options.limit_s), Figures("Speed", options.results)
    for name, shape in GGUFS.items():
        if shape not in options.cases:
            continue
        folder = options.folder / name
        is_new = not (folder / "config.json").is_file()
        if is_new:
            subprocess.run(make_gguf_command(name, options.folder), check=True)
        for tool in (one_chat(LLAMAS), many_chats(LLAMAS)):
            with told(figures, shape, tool[0], LLAMA_CPP):
                command = [str(options.bin.resolve() / tool[0]), "--model", str(folder / FILE), "--device",
                           options.device, *COMMON, *tool[1:]]  # fmt: skip
                for line in said_lines(command, deadline):
                    for cell, value in values_of(line, LLAMAS):
                        figures.add(shape, cell.column, value, LLAMA_CPP)
        print(markdown(figures.found), flush=True)
        if is_new and not options.keep_models:
            shutil.rmtree(folder)
    return 1 if figures.failures else 0


def make_gguf_command(name: str, folder: Path) -> list[str]:
    """What makes the model `name` of GGUFS in its folder."""
    return [sys.executable, "-m", "benchmarks.random_gguf", GGUFS[name], str(folder / name)]


def one_chat(cells: Sequence[Cell]) -> list[str]:
    """llama-bench with its arguments, for those of `cells` with one chat."""
    (first,) = (cell for cell in cells if cell.chats == 1 and not cell.new_tokens)
    (written,) = (cell for cell in cells if cell.chats == 1 and cell.new_tokens)
    # Each of both depths has both: it loads the model once.
    return ["llama-bench", "--n-prompt", f"{first.tokens}", "--n-gen", f"{written.new_tokens}", "--n-depth",
            f"0,{written.tokens}", "--repetitions", f"{ROUNDS}", "--output", "jsonl"]  # fmt: skip


def many_chats(cells: Sequence[Cell]) -> list[str]:
    """llama-batched-bench with its arguments, for those of `cells` with several chats."""
    written = [cell for cell in cells if cell.chats > 1 and cell.new_tokens]
    chats = ",".join(str(cell.chats) for cell in written)
    context_tokens = max(cell.chats * (cell.tokens + cell.new_tokens) for cell in written)
    (tokens,), (new_tokens,) = {cell.tokens for cell in written}, {cell.new_tokens for cell in written}
    return ["llama-batched-bench", "-npp", f"{tokens}", "-ntg", f"{WARM_UP_TOKENS},{new_tokens}", "-npl", chats,
            "--ctx-size", f"{context_tokens}", "--output-format", "jsonl"]  # fmt: skip


def values_of(line: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[tuple[Cell, float]]:
    """The figures of a line of either tool, in the units of their cells; what no cell asks for is left out."""
    for cell in cells:
        asked = cell.chats, cell.tokens, cell.new_tokens
        if "samples_ns" in line:
            if asked == (1, line["n_prompt"], 0) and line["n_depth"] == 0:
                yield from ((cell, ns / 1e6) for ns in line["samples_ns"])
            elif line["n_gen"] and asked == (1, line["n_depth"], line["n_gen"]):
                yield from ((cell, rate) for rate in line["samples_ts"])
        elif line["tg"] != WARM_UP_TOKENS:
            if asked == (line["pl"], line["pp"], 0):
                yield cell, 1000 * line["t_pp"]
            elif asked == (line["pl"], line["pp"], line["tg"]):
                yield cell, line["speed_tg"]


def said_lines(command: Sequence[str], deadline: Deadline) -> Iterator[dict[str, Any]]:
    """The JSON objects that a tool writes, each when it is known. Raises Unable where it fails or must be ended."""
    left_s = deadline.require(LEAST_START_S)
    folders = [*library_folders(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(folders)}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                       text=True, env=environment)  # fmt: skip
        except OSError as error:
            raise Unable(str(error)) from error
        ending = threading.Timer(left_s, process.kill)
        ending.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            code = process.wait()
        finally:
            ending.cancel()
            process.kill()
            process.wait()
        if code:
            deadline.require()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            print(*lines[-60:], sep="\n", file=sys.stderr, flush=True)
            # What follows an error may be how the tool is called.
            wrong = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {code}"]
            raise Unable(wrong[-1][:200])


def library_folders() -> list[str]:
    """Where packages of Python's have CUDA's libraries, which came with torch."""
    found = importlib.util.find_spec("nvidia")
    roots = [] if found is None else found.submodule_search_locations or []
    return [str(path) for root in roots for path in sorted(Path(root).glob("*/lib"))]


if __name__ == "__main__":
    sys.exit(main())
