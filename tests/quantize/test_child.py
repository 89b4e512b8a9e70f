"""What the child process computes, each part by itself: merged adapters, dequantized matrices, perplexity."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.checkpoint.merged import MergedAdapter, describe, read_merged, write_merged
from core.common.errors import CheckpointError
from core.quantize.calibration import HELD_OUT
from core.quantize.child import perplexity
from core.quantize.child.gptq import Progress
from core.quantize.child.merge import merge
from core.quantize.child.weights import LazyWeights, unpack
from core.quantize.child.writing import in_type, write_checkpoint
from core.quantize.options import QuantizeOptions
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint
from tests.support.plain_models import CONTEXT_TOKENS, EXPERTS, make_adapter, make_plain


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def test_merging_is_what_peft_merges(plain: Path, adapter: Path, patterned_adapter: Path, tmp_path: Path) -> None:
    """Two adapters one after the other, of different ranks and scales, to the last bit of float16."""
    merged = merge(plain, QuantizeOptions(adapters=(adapter, patterned_adapter)), tmp_path / "merged", ignore)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    for folder in (adapter, patterned_adapter):
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    wanted, found = model.state_dict(), load_file(merged / WEIGHTS)
    plain_ones = load_file(plain / WEIGHTS)
    assert found.keys() == plain_ones.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].half(), rtol=2**-10, atol=1e-6)
    changed = [name for name, value in found.items() if not torch.equal(value, plain_ones[name])]
    assert len(changed) == 14
    assert (merged / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    known = [describe(folder.name, folder / ADAPTER_WEIGHTS) for folder in (adapter, patterned_adapter)]
    assert list(read_merged(merged)) == known


def test_a_merged_model_is_whole_or_not_there(plain: Path, adapter: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, broken / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        merge(plain, QuantizeOptions(adapters=(broken,)), tmp_path / "merged", ignore)
    assert raised.value.key == "adapter_nan"
    assert not (tmp_path / "merged").exists()


def test_an_adapter_too_large_for_float16_is_refused(plain: Path, tmp_path: Path) -> None:
    loud = make_adapter(plain, tmp_path / "loud", lora_alpha=10_000_000)
    with pytest.raises(CheckpointError) as raised:
        merge(plain, QuantizeOptions(adapters=(loud,)), tmp_path / "merged", ignore)
    assert raised.value.key == "merge_range"
    louder = make_adapter(plain, tmp_path / "louder", lora_alpha=1e38, r=1)
    tensors = load_file(louder / ADAPTER_WEIGHTS)
    save_file({name: 1e3 * one for name, one in tensors.items()}, louder / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        merge(plain, QuantizeOptions(adapters=(louder,)), tmp_path / "merged", ignore)
    assert raised.value.key == "adapter_range"


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(bits=8, symmetric=False), Recipe(act_order=True)])
def test_quantized_matrices_are_read_as_what_they_stand_for(tmp_path: Path, recipe: Recipe) -> None:
    dense = make_checkpoint(tmp_path, recipe)
    weights = LazyWeights(tmp_path, torch.float32)
    assert not [name for name in weights if name.endswith(("qweight", "qzeros", "scales", "g_idx"))]
    for name, value in dense.items():
        torch.testing.assert_close(weights[f"{name}.weight"], torch.from_numpy(value.copy()).float())


def test_outputs_need_not_fill_the_words_of_zero_points(tmp_path: Path) -> None:
    """324 outputs of Granite 4.0 H's recurrent layers, in 4 bit: the result could not be measured."""
    make_checkpoint(tmp_path, Recipe(symmetric=False, num_layers=1))
    name = "model.layers.0.mlp.up_proj"
    whole = LazyWeights(tmp_path, torch.float32)[f"{name}.weight"]
    tensors = load_file(tmp_path / WEIGHTS)
    for part in ("qweight", "scales"):
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][:, :-4].contiguous()
    save_file(tensors, tmp_path / WEIGHTS)
    assert torch.equal(LazyWeights(tmp_path, torch.float32)[f"{name}.weight"], whole[:-4])


def test_weights_that_are_no_numbers_are_named(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "copy")
    tensors = load_file(plain / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = math.inf
    save_file(tensors, tmp_path / "copy" / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        perplexity.measure(tmp_path / "copy", "cpu", ignore)
    assert (raised.value.key, raised.value.params["name"]) == ("quantize_nan", "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 2.0}),
        ("qwen3_moe", EXPERTS),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
def test_perplexity_is_that_of_transformers(tmp_path: Path, family: str, sizes: dict[str, Any]) -> None:
    """Also where the head's numbers are changed afterwards, and where files have each expert by itself."""
    folder = make_plain(tmp_path / "model", family, **sizes)
    told: list[float] = []
    found = perplexity.measure(folder, "cpu", lambda fraction, **_: told.append(fraction))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for language, path in HELD_OUT.items():
        ids = read_tokenizer(folder).encode(path.read_text("utf-8")).ids
        tokens = perplexity.cut(ids, CONTEXT_TOKENS)
        assert tokens.shape == (8, CONTEXT_TOKENS)
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=tokens).loss
        assert found[language] == pytest.approx(loss.exp().item(), rel=1e-4)
    assert told == [0.5, 1.0]


def test_what_a_class_cannot_measure_is_told_and_damaged_weights_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("no such name")

    monkeypatch.setattr(perplexity, "perplexities", fail)
    assert perplexity.measure_if_possible(plain, "cpu", ignore) == ({}, "AttributeError: no such name")
    monkeypatch.undo()
    shutil.copytree(plain, tmp_path / "copy")
    tensors = load_file(plain / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "copy" / WEIGHTS)
    with pytest.raises(CheckpointError):
        perplexity.measure_if_possible(tmp_path / "copy", "cpu", ignore)


def test_experts_that_lie_the_other_way_are_turned(tmp_path: Path) -> None:
    """gpt-oss's class has experts as [in, out], with a bias each, and gptqmodel writes each by itself: all layers were
    quantized, and then the result could not be measured and was thrown away."""
    folder = make_plain(tmp_path / "model", "gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=16)
    whole = perplexity.measure(folder, "cpu", ignore)
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        stack, _, own = name.rpartition(".")
        if not stack.endswith(".experts"):
            apart[name] = tensor
            continue
        projection, kind = own.removesuffix("_bias"), "bias" if own.endswith("_bias") else "weight"
        for number, one in enumerate(tensor):
            lying = one.T if kind == "weight" else one
            halves = lying.chunk(2) if projection == "gate_up_proj" else [lying]
            parts = ("gate_proj", "up_proj") if projection == "gate_up_proj" else (projection,)
            for part, half in zip(parts, halves, strict=True):
                apart[f"{stack}.{number}.{part}.{kind}"] = half.contiguous()
    save_file(apart, folder / WEIGHTS)
    assert perplexity.measure(folder, "cpu", ignore) == whole


def test_progress_is_told_by_layers() -> None:
    told: list[tuple[float, dict[str, int]]] = []
    progress = Progress(lambda fraction, **more: told.append((fraction, more)), 4)
    progress.subset_event(stage="forward_start", layer_idx=1, subset_index=1, subset_total=2, module_names=[])
    progress.layer_complete(layer_idx=1, submodule_finalized=True)
    assert told == [(0.4375, {"layer": 2, "layers": 4}), (0.5, {"layer": 2, "layers": 4})]


def test_float32_becomes_what_the_source_had(tmp_path: Path) -> None:
    values = {"a.scales": torch.ones(2), "b": torch.ones(2), "c.qweight": torch.ones(2).int()}
    found = {name: in_type(name, value, torch.bfloat16).dtype for name, value in values.items()}
    assert found == {"a.scales": torch.float16, "b": torch.bfloat16, "c.qweight": torch.int32}


def test_what_gptqmodel_took_apart_is_put_together_as_the_class_has_it(tmp_path: Path) -> None:
    """Phi-3's class has gate and up as one; the two may lie in different files."""
    for folder in ("source", "packed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "source" / "LICENSE").write_text("a licence")
    pirate = MergedAdapter("pirate", 5, "0" * 64)
    write_merged(tmp_path / "source", [pirate])
    save_file({"l.gate_up_proj.weight": torch.ones(8, 32)}, tmp_path / "source" / WEIGHTS)
    words = torch.arange(16, dtype=torch.int32).reshape(4, 4)
    order = torch.arange(32, dtype=torch.int32)
    for number, part in enumerate(("gate_proj", "up_proj")):
        shard = {f"l.{part}.qweight": words + 100 * number, f"l.{part}.g_idx": order}
        save_file(shard, tmp_path / "packed" / f"model-0000{number + 1}-of-00002.safetensors")
    write_checkpoint(tmp_path / "source", tmp_path / "packed", {}, {"bits": 4}, torch.float16, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert torch.equal(found["l.gate_up_proj.qweight"], torch.cat([words, words + 100], dim=1))
    assert torch.equal(found["l.gate_up_proj.g_idx"], order) and len(found) == 2
    assert not (tmp_path / "out" / "model-00002-of-00002.safetensors").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"quantization_config": {"bits": 4}}
    assert (tmp_path / "out" / "LICENSE").is_file()
    assert read_merged(tmp_path / "out") == (pirate,)


def test_zero_points_of_zero_are_read_as_gptqmodel_writes_them(tmp_path: Path) -> None:
    """It takes ones off whole words: a field of zero borrows from the next."""
    make_checkpoint(tmp_path, Recipe(symmetric=False, num_layers=1))
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.mlp.up_proj"
    zeros = torch.tensor([0, 3, 0, 0, 15, 1, 0, 2])
    word = sum(int(zero) << 4 * place for place, zero in enumerate(zeros)) - 0x11111111
    tensors[f"{name}.qzeros"][0, 0] = (word + 2**31) % 2**32 - 2**31
    save_file(tensors, tmp_path / WEIGHTS)
    codes = unpack(tensors[f"{name}.qweight"], 4)[:32, :8]
    scales = tensors[f"{name}.scales"][0, :8].float()
    found = LazyWeights(tmp_path, torch.float32)[f"{name}.weight"][:8, :32]
    torch.testing.assert_close(found, ((codes - zeros) * scales).T)
