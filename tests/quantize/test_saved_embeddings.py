"""What PEFT saves of the embedding and the head beside an adapter: passed over where it is the base's own, refused in
words where it is not. Such adapters were all refused as no plain LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint import same_numbers
from core.checkpoint.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError
from core.library.adapters import find_adapters, fitting_adapters
from core.memory.adapter_room import match_adapter
from core.quantize.child.merge import merge
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint, make_matrix
from tests.support.plain_models import make_adapter, make_plain

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "base_model.model."


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def saved(base: Path, folder: Path, change: Callable[[Any], object] = bool, **settings: Any) -> Path:
    """An adapter of q_proj, beside which PEFT saves the embedding and the head."""
    return make_adapter(base, folder, change, saves_ends=True, **({"target_modules": ["q_proj"]} | settings))


def train_embedding(model: Any) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[5] *= 1.5


def train_head(model: Any) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[-1, -1] += 0.5


def add_tokens(model: Any) -> None:
    model.resize_token_embeddings(392)


def reason(plain: Path, adapter: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))
    return raised.value


@pytest.fixture(scope="module")
def unchanged(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(plain, tmp_path_factory.mktemp("saved") / "pirate")


@pytest.fixture
def quantized(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPTQ model with the embedding and the head of `plain`, in a home of its own."""
    monkeypatch.setenv("LLAMADECK_ADAPTERS", str(tmp_path / "adapters"))
    make_checkpoint(tmp_path / "tiny")
    own = load_file(plain / WEIGHTS)
    tensors = load_file(tmp_path / "tiny" / WEIGHTS)
    save_file(tensors | {name: own[name] for name in (EMBEDDING, HEAD)}, tmp_path / "tiny" / WEIGHTS)
    return tmp_path / "tiny"


def test_an_unchanged_embedding_and_head_are_passed_over(plain: Path, unchanged: Path, tmp_path: Path) -> None:
    assert {PREFIX + EMBEDDING, PREFIX + HEAD} < set(load_file(unchanged / ADAPTER_WEIGHTS))
    assert [copy.own_name for copy in read_adapter(unchanged).copies] == [HEAD, EMBEDDING]
    found = load_file(merge(plain, QuantizeOptions(adapters=(unchanged,)), tmp_path / "merged", ignore) / WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, unchanged).merge_and_unload().state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].half(), rtol=2**-10, atol=1e-6)


def test_they_are_read_in_pieces(plain: Path, unchanged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_numbers, "PIECE_NUMBERS", 1000)
    copy = read_adapter(unchanged).copies[0]
    pieces = list(same_numbers.read_pieces(unchanged / ADAPTER_WEIGHTS, copy.tensor))
    assert (len(pieces), max(map(len, pieces))) == (25, 1000)
    own = read_plain(plain).tensors[copy.own_name]
    assert same_numbers.are_same(iter(pieces), same_numbers.read_pieces(plain / WEIGHTS, own))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_they_are_the_same_in_every_type(plain: Path, unchanged: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    (tmp_path / "a").mkdir()
    for file in unchanged.iterdir():
        (tmp_path / "a" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(unchanged / ADAPTER_WEIGHTS)
    ends = {PREFIX + name: tensors[PREFIX + name].to(dtype) for name in (EMBEDDING, HEAD)}
    save_file(tensors | ends, tmp_path / "a" / ADAPTER_WEIGHTS)
    assert merge_steps(read_plain(plain), QuantizeOptions(adapters=(tmp_path / "a",)))


@pytest.mark.parametrize(("change", "name"), [(train_embedding, EMBEDDING), (train_head, HEAD)])
def test_a_trained_one_is_refused_before_the_job(
    plain: Path, tmp_path: Path, change: Callable[[Any], object], name: str
) -> None:
    error = reason(plain, saved(plain, tmp_path / "a", change))
    assert error.key == "adapter_own_layer" and f"brings a {name} of its own" in str(error)


def test_one_with_more_tokens_is_refused_with_both_counts(plain: Path, tmp_path: Path) -> None:
    """PEFT saves a resized embedding without being asked."""
    error = reason(plain, make_adapter(plain, tmp_path / "a", add_tokens, target_modules=["q_proj"]))
    assert error.key == "adapter_resized" and "with 392 rows, and that of Tiny-1M has 384" in str(error)


@pytest.mark.parametrize(("change", "key"), [(bool, None), (train_embedding, "adapter_own_layer")])
def test_a_tied_head_is_held_against_the_embedding(
    tmp_path: Path, change: Callable[[Any], object], key: str | None
) -> None:
    plain = make_plain(tmp_path / "tied", tie_word_embeddings=True)
    adapter = saved(plain, tmp_path / "a", change)
    assert HEAD not in load_file(plain / WEIGHTS) and len(read_adapter(adapter).copies) == 2
    if key is None:
        assert merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))
    else:
        assert reason(plain, adapter).key == key


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "phi"])
def test_they_have_other_names_in_other_families(tmp_path: Path, family: str) -> None:
    """A head may have a bias, and GPT-2's embedding is called wte."""
    plain = make_plain(tmp_path / "plain", family, **({"n_embd": 64, "n_layer": 2} if family == "gpt2" else {}))
    adapter = saved(plain, tmp_path / "a", target_modules="all-linear")
    assert len(read_adapter(adapter).copies) == (3 if family == "phi" else 2)
    assert merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))


def test_beside_a_quantized_model_they_are_passed_over_too(plain: Path, quantized: Path, tmp_path: Path) -> None:
    saved(plain, tmp_path / "adapters" / "pirate")
    saved(plain, tmp_path / "adapters" / "poet", train_head)
    make_adapter(plain, tmp_path / "adapters" / "sailor", add_tokens, target_modules=["q_proj"])
    found = {one.name: one for one in find_adapters(read_checkpoint(quantized))}
    assert found["pirate"].error is None and [one.name for one in fitting_adapters(quantized)] == ["pirate"]
    keys = {name: one.error.key for name, one in found.items() if one.error is not None}
    assert keys == {"poet": "adapter_own_layer", "sailor": "adapter_resized"} and found["poet"].is_of_model


def test_one_that_is_quantized_cannot_be_compared(plain: Path, unchanged: Path, quantized: Path) -> None:
    tensors = load_file(quantized / WEIGHTS)
    parts, _ = make_matrix(np.random.default_rng(0), Recipe(), 64, 384)
    del tensors[HEAD]
    save_file(tensors | {f"lm_head.{part}": torch.from_numpy(one) for part, one in parts.items()}, quantized / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        match_adapter(read_adapter(unchanged), read_checkpoint(quantized))
    assert raised.value.key == "adapter_copy_unknown" and f"brings a {HEAD} of its own" in str(raised.value)
