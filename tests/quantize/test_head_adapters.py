"""Adapters of a model's head, of which PEFT saves also a copy: merged as PEFT merges them, or refused in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.checkpoint.adapters import read_adapter
from core.common.errors import CheckpointError
from core.quantize.child.merge import merge
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain
from tests.support.checkpoints import WEIGHTS
from tests.support.plain_models import make_adapter, make_plain

COPY = "base_model.model.lm_head.base_layer.weight"
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.fixture(scope="module")
def head(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the head and of a matrix of each layer."""
    return make_adapter(plain, tmp_path_factory.mktemp("head") / "head", target_modules=["q_proj", "lm_head"])


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def check_as_peft(plain: Path, adapter: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Merged to the last bit of float16 as PEFT does it. Returns the merged tensors that differ from the model's."""
    found = load_file(merge(plain, QuantizeOptions(adapters=(adapter,)), folder, ignore) / WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].half(), rtol=2**-10, atol=1e-6)
    before = load_file(plain / WEIGHTS)
    return {name: value for name, value in found.items() if not torch.equal(value, before[name])}


def change_copy(adapter: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    save_file(tensors | {COPY: change(tensors[COPY])}, folder / ADAPTER_WEIGHTS)
    return folder


def test_an_adapter_of_the_head_is_merged_as_peft_does_it(plain: Path, head: Path, tmp_path: Path) -> None:
    assert COPY in load_file(head / ADAPTER_WEIGHTS)
    assert set(read_adapter(head).matrices) == {
        "lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
    }  # fmt: skip
    assert "lm_head.weight" in check_as_peft(plain, head, tmp_path / "merged")


def test_a_head_lies_as_others_do_where_layers_are_turned(tmp_path: Path) -> None:
    """GPT-2's layers are [in, out]; the settings that PEFT saves speak of the last module that it met, the head."""
    plain = make_plain(tmp_path / "gpt2", "gpt2", **GPT2, tie_word_embeddings=False)
    adapter = make_adapter(plain, tmp_path / "head", target_modules=["c_attn", "c_proj", "lm_head"])
    assert len(check_as_peft(plain, adapter, tmp_path / "merged")) == 7


def test_the_head_of_a_gpt_neox_has_an_older_name(tmp_path: Path) -> None:
    """Adapters from before transformers called it lm_head were told as another model's."""
    plain = make_plain(tmp_path / "neox", "gpt_neox")
    adapter = make_adapter(plain, tmp_path / "head", target_modules=["lm_head"])
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    renamed = {name.replace("lm_head", "embed_out"): value for name, value in tensors.items()}
    save_file(renamed, adapter / ADAPTER_WEIGHTS)
    (step,) = merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))
    assert set(step.matrices) == {"lm_head"}
    merged = merge(plain, QuantizeOptions(adapters=(adapter,)), tmp_path / "merged", ignore)
    before, after = load_file(plain / WEIGHTS), load_file(merged / WEIGHTS)
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["embed_out.weight"]


def in_float16(copy: torch.Tensor) -> torch.Tensor:
    return copy.half()


def in_bfloat16(copy: torch.Tensor) -> torch.Tensor:
    return copy.bfloat16()


def by_float16(copy: torch.Tensor) -> torch.Tensor:
    return copy.bfloat16().half().float()


@pytest.mark.parametrize("change", [in_float16, in_bfloat16, by_float16])
def test_a_copy_in_another_type_is_the_same_head(
    plain: Path, head: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    adapter = change_copy(head, tmp_path / "head", change)
    assert merge(plain, QuantizeOptions(adapters=(adapter,)), tmp_path / "merged", ignore).is_dir()


def one_step_off(copy: torch.Tensor) -> torch.Tensor:
    copy[3, 5] *= 1 + 2**-7
    return copy


def of_more_tokens(copy: torch.Tensor) -> torch.Tensor:
    return torch.cat([copy, copy[:8]])


@pytest.mark.parametrize("change", [one_step_off, of_more_tokens])
def test_a_head_that_was_changed_before_the_training_is_refused(
    plain: Path, head: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """What the adapter adds to that head is nothing for this one."""
    adapter = change_copy(head, tmp_path / "head", change)
    with pytest.raises(CheckpointError) as raised:
        merge(plain, QuantizeOptions(adapters=(adapter,)), tmp_path / "merged", ignore)
    assert raised.value.key == "adapter_base_copy" and "lm_head.weight" in str(raised.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.norm"])
def test_copies_that_peft_does_not_save_are_refused(plain: Path, head: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(head, tmp_path / "head")
    tensors = load_file(head / ADAPTER_WEIGHTS) | {f"base_model.model.{name}.base_layer.weight": torch.zeros(64, 64)}
    save_file(tensors, tmp_path / "head" / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        read_adapter(tmp_path / "head")
    assert raised.value.key == "adapter_tensor" and name in str(raised.value)


def test_a_head_that_is_the_embedding_is_told_as_that(tmp_path: Path) -> None:
    """Such files hold no head, which was once told as another model's."""
    plain = make_plain(tmp_path / "tied", tie_word_embeddings=True)
    adapter = make_adapter(plain, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(CheckpointError) as raised:
        merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))
    assert raised.value.key == "adapter_tied_head" and "exclude_modules" in str(raised.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("damage", "key"), [(cut, "adapter_corrupt_weights"), (remove, "adapter_unreadable")])
def test_a_file_that_is_damaged_after_its_header_was_read_is_told(
    plain: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], key: str
) -> None:
    adapter = Path(shutil.copytree(head, tmp_path / "head"))
    options = QuantizeOptions(adapters=(adapter,))
    steps = merge_steps(read_plain(plain), options)
    monkeypatch.setattr("core.quantize.child.merge.merge_steps", lambda *_: steps)
    damage(adapter / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        merge(plain, options, tmp_path / "merged", ignore)
    assert raised.value.key == key and "head" in str(raised.value)
