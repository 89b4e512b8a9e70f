"""Stand-ins of well-known releases, with their tensors' real names, go from the verdict to an answer on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_model import SHAPES, Quantization, make_random_model
from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Generate, Load, TextChunk
from core.engine.sampling_params import Sampling
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.worker.load import load_engine
from core.worker.scheduler import Scheduler

CARD = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)
# A real shape with every size made small; what else a configuration says stays.
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
# Where Qwen3.5's text begins beside the part for pictures.
TEXT = "model.language_model.layers."
QWENS_OWN = ("attn", "shared_expert")
# The real shape, the modules that the release keeps in 16 bit, and names that its files have.
RELEASES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Qwen/Qwen3-30B-A3B-GPTQ-Int4": (
        "Qwen3-30B-A3B",
        (),
        ("model.layers.1.mlp.experts.3.gate_proj.qweight", "model.layers.0.mlp.gate.weight",
         "model.layers.0.self_attn.q_norm.weight"),
    ),
    "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ": (
        "Mixtral-8x7B",
        (),
        ("model.layers.1.block_sparse_moe.experts.3.w1.qweight", "model.layers.0.block_sparse_moe.gate.weight"),
    ),
    "Qwen/Qwen3.5-27B-GPTQ-Int4": (
        "Qwen3.5-27B",
        QWENS_OWN,
        (TEXT + "0.linear_attn.in_proj_qkv.weight", TEXT + "1.self_attn.q_proj.weight",
         TEXT + "1.mlp.gate_proj.qweight", TEXT + "0.linear_attn.A_log"),
    ),
    "a community version of Qwen3.5-27B": (
        "Qwen3.5-27B",
        (),
        (TEXT + "0.linear_attn.in_proj_qkv.qweight",
         TEXT + "1.self_attn.q_proj.qweight", TEXT + "0.linear_attn.in_proj_b.weight"),
    ),
    "Qwen/Qwen3.5-35B-A3B-GPTQ-Int4": (
        "Qwen3.5-35B-A3B",
        QWENS_OWN,
        (TEXT + "0.mlp.experts.3.down_proj.qweight", TEXT + "0.mlp.shared_expert.up_proj.weight",
         TEXT + "0.mlp.shared_expert_gate.weight"),
    ),
    "jart25/Qwen3-Next-80B-A3B-Instruct-Int4-GPTQ": (
        "Qwen3-Next-80B-A3B",
        (),
        ("model.layers.0.linear_attn.in_proj_qkvz.qweight", "model.layers.1.mlp.experts.0.up_proj.qweight"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def small(config: dict[str, Any]) -> dict[str, Any]:
    if "text_config" in config:
        return config | {"text_config": small(config["text_config"]), "vision_config": VISION}
    made = {name: SMALL.get(name, value) for name, value in config.items()} | {"head_dim": SMALL["head_dim"]}
    if "linear_num_key_heads" in config:
        made["layer_types"] = ["linear_attention", "full_attention"]
    if "mrope_section" in (rope := made.get("rope_parameters", {})):
        made["rope_parameters"] = rope | {"mrope_section": [2, 1, 1]}
    return made


@pytest.mark.parametrize(("shape", "kept", "names"), RELEASES.values(), ids=RELEASES.keys())
def test_a_release_fits_loads_and_answers(
    tmp_path: Path, shape: str, kept: tuple[str, ...], names: tuple[str, ...]
) -> None:
    make_random_model(tmp_path / "model", small(SHAPES[shape]), Quantization(group_size=32, kept=kept))
    checkpoint = read_checkpoint(tmp_path / "model")
    for name in names:
        # What the program itself calls them by is another matter.
        assert name.encode() in header(tmp_path / "model")
    assert check_fit(checkpoint, [CARD]).fits
    engine = load_engine(checkpoint, Load(checkpoint.folder, 0, 2, on_cpu=True), lambda *_: None)
    events: list[object] = []
    scheduler = Scheduler(engine.steps, engine.tokenizer, frozenset(), engine.chunk_tokens, events.append)
    for request in range(2):
        scheduler.submit(Generate(request, (5, 9, 2 + request), Sampling(temperature=0.0, max_new_tokens=4)))
    while not scheduler.is_idle:
        scheduler.step()
    assert {event.request for event in events if isinstance(event, TextChunk)} == {0, 1}


def header(folder: Path) -> bytes:
    with (folder / "model.safetensors").open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))
