"""llama.cpp on a GPU: its own package reads the files that are written, and what its tools say becomes figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import llama_cpp_gpu, random_gguf
from benchmarks.deadline import Deadline
from benchmarks.figures import read_figures
from benchmarks.llama_cpp_gpu import LLAMA_CPP, many_chats, one_chat, said_lines, values_of
from benchmarks.measuring import Unable
from benchmarks.random_gguf import FILE, make_random_gguf
from benchmarks.random_model import SHAPES, with_layers
from benchmarks.speed_table import LLAMAS, Cell

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 512}  # fmt: skip
# As both tools write them, with what is read of it.
BENCH = """
{"build_commit": "0c1e570", "backends": "CUDA", "n_prompt": PP, "n_gen": TG, "n_depth": DEPTH, "avg_ts": 9.5,
 "samples_ns": [ 47000000, 46000000 ],"samples_ts": [ 341.5, 342.5 ]}
"""
BATCHED = """
{"n_kv_max": 49152, "flash_attn": 1, "is_pp_shared": 0, "pp": 512, "tg": TG, "pl": PL, "n_kv": 6144,
 "t_pp": 0.354000, "speed_pp": 11570.6, "t_tg": 1.587597, "speed_tg": 1290.000000, "t": 1.9, "speed": 3200.0}
"""
TOOL = """
import pathlib, sys
print("llama_load: not a figure")
text = pathlib.Path(sys.argv[0]).with_suffix(".txt").read_text()
print(text, flush=True)
sys.exit("error: no CUDA0\\nrun with -h" if "--fail" in sys.argv else 0)
"""


def said(text: str, **values: int) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return "".join(text.splitlines())


def test_a_file_is_what_llama_cpps_package_reads(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    make_random_gguf(tmp_path, with_layers(SHAPES["7B"] | SMALL, 2))
    reader = gguf.GGUFReader(tmp_path / FILE)
    assert (tmp_path / "config.json").is_file() and len(reader.tensors) == 2 * 9 + 3
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["output.weight"] == "Q6_K" and types["blk.1.ffn_norm.weight"] == "F32"
    assert types["token_embd.weight"] == types["blk.1.ffn_down.weight"] == "Q4_0"
    for tensor in reader.tensors:
        if tensor.tensor_type.name == "F32":
            assert (tensor.data == 1).all()
            continue
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        expected = random_gguf.DEVIATION / weights.shape[1] ** 0.5
        assert weights.shape == tuple(tensor.shape[::-1].tolist())
        assert np.isclose(weights.std(), expected, rtol=0.1) and abs(weights.mean()) < 0.2 * expected


def test_tools_are_asked_for_the_cells_of_the_table() -> None:
    chats = many_chats(LLAMAS)
    assert chats[chats.index("-npl") + 1] == "8,32,64" and chats[chats.index("--ctx-size") + 1] == str(64 * (512 + 256))
    chat = one_chat(LLAMAS)
    assert chat[chat.index("--n-prompt") + 1] == "512" and chat[chat.index("--n-depth") + 1] == "0,512"


def test_lines_become_figures_in_the_units_of_their_cells() -> None:
    first, written = Cell(1, rounds=5), Cell(1, new_tokens=256)
    assert [*values_of(json.loads(said(BENCH, PP=512, TG=0, DEPTH=0)), LLAMAS)] == [(first, 47.0), (first, 46.0)]
    assert [*values_of(json.loads(said(BENCH, PP=0, TG=256, DEPTH=512)), LLAMAS)] == [
        (written, 341.5),
        (written, 342.5),
    ]
    for others in ({"PP": 512, "TG": 0, "DEPTH": 512}, {"PP": 0, "TG": 256, "DEPTH": 0}):
        assert not [*values_of(json.loads(said(BENCH, **others)), LLAMAS)]
    found = dict(values_of(json.loads(said(BATCHED, TG=256, PL=8)), LLAMAS))
    assert found == {Cell(8): 354.0, Cell(8, new_tokens=256): 1290.0}
    # Of 64 prompts no first tokens are in the table; the first tokens that are written are not told.
    assert dict(values_of(json.loads(said(BATCHED, TG=256, PL=64)), LLAMAS)) == {Cell(64, new_tokens=256): 1290.0}
    assert not [*values_of(json.loads(said(BATCHED, TG=4, PL=8)), LLAMAS)]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    lines = {"llama-bench": said(BENCH, PP=512, TG=0, DEPTH=0), "llama-batched-bench": said(BATCHED, TG=256, PL=32)}
    for name, line in lines.items():
        (folder / f"{name}.txt").write_text(line)
        (folder / name).write_text(f"#!{sys.executable}\n{TOOL}")
        (folder / name).chmod(0o755)
    return folder


def test_figures_stand_beside_ours_and_a_tool_that_fails_tells_why(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "7B", with_layers(SHAPES["7B"] | SMALL, 1))
    make_random_gguf(tmp_path / "7B Q4_0", SHAPES["7B"])
    results = tmp_path / "figures.jsonl"
    arguments = ["llama_cpp_gpu", str(tmp_path), "--bin", str(tools), "--cases", "7B", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert llama_cpp_gpu.main() == 0
    found = read_figures(results)
    assert {(one.table, one.row, one.engine) for one in found} == {("Speed", "7B", LLAMA_CPP)}
    assert sorted((one.column, one.value or 0) for one in found) == sorted([
        (Cell(1).column, 47.0), (Cell(1).column, 46.0), (Cell(32).column, 354.0),
        (Cell(32, new_tokens=256).column, 1290.0),
    ])  # fmt: skip
    (tools / "llama-bench").unlink()
    assert llama_cpp_gpu.main() == 1
    assert (tmp_path / "7B Q4_0" / FILE).is_file()
    with pytest.raises(Unable, match="no CUDA0"):
        list(said_lines([str(tools / "llama-batched-bench"), "--fail"], Deadline.after(600)))
