"""LoRA adapters read as data: what PEFT writes is understood, all else is refused in words."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.adapter_folders import find_adapter, list_adapters
from core.checkpoint.adapters import MAX_BASE_CHARS, WEIGHTS, is_other_base, match_base, read_adapter
from core.checkpoint.headers import MAX_CONFIG_BYTES
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.common.errors import CheckpointError, InputError
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain
from tests.support.plain_models import change_json


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


def test_an_adapter_of_all_matrices_is_read(adapter: Path) -> None:
    found = read_adapter(adapter)
    assert (len(found.matrices), found.rank) == (14, 8)
    down = found.matrices["model.layers.1.mlp.down_proj"]
    assert (down.in_features, down.out_features, down.rank, down.scale) == (128, 64, 8, 2.0)


def test_ranks_and_scales_by_pattern_are_pefts(patterned_adapter: Path) -> None:
    found = read_adapter(patterned_adapter).matrices
    assert found["model.layers.0.self_attn.q_proj"].rank == 2
    assert found["model.layers.0.self_attn.q_proj"].scale == pytest.approx(3 / math.sqrt(2))
    assert found["model.layers.1.mlp.down_proj"].scale == pytest.approx(16 / math.sqrt(6))
    assert found["model.layers.0.mlp.down_proj"].rank == 8


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"use_dora": True}, "adapter_variant"),
        ({"modules_to_save": ["lm_head"]}, "adapter_variant"),
        ({"bias": "all"}, "adapter_variant"),
        ({"peft_type": "IA3"}, "adapter_kind"),
        ({"init_lora_weights": "pissa_niter_4"}, "adapter_changed_base"),
        ({"r": 0}, "adapter_rank"),
        ({"r": 4}, "adapter_rank"),
        ({"r": True}, "adapter_rank"),
        ({"r": "8"}, None),
        ({"r": 8.0}, None),
        ({"r": 8.5}, "adapter_rank"),
        ({"r": [8]}, "adapter_rank"),
        ({"rank_pattern": {"up_proj": 8.0, "q_proj": "8"}}, None),
        ({"lora_alpha": "16"}, None),
        ({"lora_alpha": "much"}, "adapter_alpha"),
        ({"lora_alpha": float("nan")}, "adapter_alpha"),
        ({"lora_alpha": 1e308}, "adapter_alpha"),
        ({"lora_alpha": -(10**400)}, "adapter_alpha"),
        ({"alpha_pattern": {"up_proj": 1e39}}, "adapter_alpha"),
        ({"use_rslora": "yes"}, "adapter_setting"),
        ({"bias": None}, None),
        ({"rank_pattern": {"(a+)+$": 8}}, None),
        ({"rank_pattern": {"(?=x)": 8}}, "adapter_pattern"),
        ({"rank_pattern": {r"(x)\1": 8}}, "adapter_pattern"),
        ({"rank_pattern": {"(": 8}}, "adapter_pattern"),
        ({"alpha_pattern": {f"a|{number}": 8 for number in range(500)}}, "adapter_patterns"),
        ({"alpha_pattern": []}, None),
        ({"alpha_pattern": ["x"]}, "adapter_setting"),
        ({"rank_pattern": 4}, "adapter_setting"),
    ],
)
def test_settings_that_are_no_plain_lora_are_refused(copy: Path, changes: dict[str, Any], key: str | None) -> None:
    change_json(copy / ADAPTER_CONFIG, **changes)
    if key is None:
        assert read_adapter(copy).rank == 8
        return
    with pytest.raises(CheckpointError) as raised:
        read_adapter(copy)
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_rslora": "yes"}, 'has "yes" in use_rslora, which is of another kind'),
        ({"rank_pattern": [1, 2]}, "has [1, 2] in rank_pattern"),
        ({"r": 4.0}, "says rank 4.0 for model.layers.0.mlp.down_proj in r, and its matrices have 8"),
        ({"rank_pattern": {"up_proj": 4}}, "Correct rank_pattern in its adapter_config.json"),
        ({"lora_alpha": "much"}, 'has "much" in lora_alpha for'),
        ({"alpha_pattern": {"up_proj": "much"}}, 'has "much" in alpha_pattern for model.layers.0.mlp.up_proj'),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_says(copy: Path, changes: dict[str, Any], words: str) -> None:
    change_json(copy / ADAPTER_CONFIG, **changes)
    with pytest.raises(CheckpointError) as raised:
        read_adapter(copy)
    assert words in str(raised.value)


def test_numbers_as_texts_are_those_numbers(copy: Path, adapter: Path) -> None:
    change_json(copy / ADAPTER_CONFIG, r="8", lora_alpha=" 16 ", rank_pattern={"q_proj": "8"}, alpha_pattern={"k": 3.0})
    assert read_adapter(copy).matrices == read_adapter(adapter).matrices


def a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).unlink()


def half_a_pair(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, folder / WEIGHTS)


def a_magnitude(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"] = np.ones(3, np.float32)
    save_file(tensors, folder / WEIGHTS)


def nothing(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)


def other_sides(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] = np.ones((128, 7), np.float32)
    save_file(tensors, folder / WEIGHTS)


def nothing_gathered(folder: Path) -> None:
    save_file(dict.fromkeys(load_file(folder / WEIGHTS), np.ones(0, np.float32)), folder / WEIGHTS)


def retype(folder: Path, part: str, dtype: type[np.generic]) -> None:
    """Of every matrix whose name holds `part`."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: one.astype(dtype) if part in name else one for name, one in tensors.items()}, folder / WEIGHTS)


def codes(folder: Path) -> None:
    retype(folder, "lora_", np.int8)


def codes_for_b(folder: Path) -> None:
    retype(folder, "lora_B", np.int8)


def truths(folder: Path) -> None:
    retype(folder, "lora_", np.bool_)


def a_cut_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def an_empty_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def three_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"abc")


def half_a_config(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text('{"r": 4,', "utf-8")


def a_list_for_a_config(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text("[]", "utf-8")


def a_vast_config(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text(" " * (MAX_CONFIG_BYTES + 1), "utf-8")


def a_config_without_end(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).unlink()
    (folder / ADAPTER_CONFIG).symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (a_pickle, "adapter_pickled"),
        (no_weights, "adapter_no_weights"),
        (no_config, "adapter_none"),
        (half_a_pair, "adapter_half"),
        (a_magnitude, "adapter_tensor"),
        (nothing, "adapter_empty"),
        (other_sides, "adapter_shapes"),
        (nothing_gathered, "adapter_not_gathered"),
        (codes, "adapter_dtype"),
        (codes_for_b, "adapter_dtype"),
        (truths, "adapter_dtype"),
        (a_cut_file, "adapter_truncated"),
        (an_empty_file, "adapter_corrupt_weights"),
        (three_bytes, "adapter_corrupt_weights"),
        (half_a_config, "adapter_bad_json"),
        (a_list_for_a_config, "adapter_bad_json"),
        (a_vast_config, "adapter_config_too_large"),
        (a_config_without_end, "adapter_unreadable"),
    ],
)
def test_files_that_are_no_adapter_are_refused(copy: Path, damage: Callable[[Path], None], key: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as raised:
        read_adapter(copy)
    assert raised.value.key == key and "model again" not in str(raised.value)


def test_an_adapter_meets_the_matrices_of_its_base(plain: Path, adapter: Path) -> None:
    (step,) = merge_steps(read_plain(plain), QuantizeOptions(adapters=(adapter,)))
    assert set(step.matrices) == set(read_plain(plain).matrices)


def test_numbers_that_are_none_are_told_before_a_job(plain: Path, copy: Path) -> None:
    """The plan promised a job that failed in its first minutes."""
    tensors = load_file(copy / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[name][5, 3] = np.nan
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        merge_steps(read_plain(plain), QuantizeOptions(adapters=(copy,)))
    assert raised.value.key == "adapter_nan" and raised.value.params["module"] == "model.layers.1.mlp.up_proj"


def test_names_may_begin_in_another_way(adapter: Path) -> None:
    found = read_adapter(adapter)
    sizes = {f"language_{name}": (one.in_features, one.out_features) for name, one in found.matrices.items()}
    assert set(match_base(found, "x", sizes)) == set(sizes)


def test_a_wrong_base_is_noticed_by_shapes_and_by_name(adapter: Path) -> None:
    found = read_adapter(adapter)
    sizes = {name: (one.in_features, one.out_features) for name, one in found.matrices.items()}
    with pytest.raises(CheckpointError) as raised:
        match_base(found, "x", sizes | {"model.layers.1.mlp.down_proj": (256, 64)})
    assert raised.value.key == "adapter_base_shape"
    del sizes["model.layers.1.mlp.down_proj"]
    with pytest.raises(CheckpointError) as raised:
        match_base(found, "x", sizes)
    assert raised.value.key == "adapter_base_matrix"


@pytest.mark.parametrize(
    ("trained_on", "name", "is_other"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct-GPTQ-Int4", False),
        ("/data/models/Qwen2.5-7B-Instruct/", "Qwen_Qwen2.5-7B-Instruct", False),
        ("meta-llama/Llama-2-7b-hf", "Qwen2.5-7B-Instruct", True),
        ("", "Qwen2.5-7B-Instruct", False),
        # As trainers write it: the base's own form, a quantized copy of it, a path on their machine, a cache.
        ("meta-llama/Llama-2-7b-chat-hf", "TheBloke_Llama-2-7B-Chat-GPTQ", False),
        ("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "Qwen2.5-7B-Instruct-GPTQ-Int4", False),
        ("TheBloke/Llama-2-7B-Chat-GPTQ", "Llama-2-7B-Chat-AWQ", False),
        ("C:\\Users\\me\\models\\Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct-GPTQ-Int4", False),
        ("/cache/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0123abcd", "Qwen2.5-7B-Instruct-GPTQ", False),
        ("unsloth/Qwen2.5-3B-Instruct-bnb-4bit", "Qwen2.5-7B-Instruct-GPTQ-Int4", True),
        ("/cache/hub/models--Qwen--Qwen2.5-3B-Instruct/snapshots/0123abcd", "Qwen2.5-7B-Instruct-GPTQ", True),
        ("x" * 10_000 + "/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct-GPTQ-Int4", False),
    ],
)
def test_the_name_of_the_base_is_a_hint(copy: Path, trained_on: str, name: str, is_other: bool) -> None:
    change_json(copy / ADAPTER_CONFIG, base_model_name_or_path=trained_on or None)
    assert is_other_base(read_adapter(copy), (name,)) is is_other


def test_a_base_of_any_length_is_one_line_and_kept_by_its_end(copy: Path) -> None:
    change_json(copy / ADAPTER_CONFIG, base_model_name_or_path="x" * 10_000 + "/Qwen2.5-7B")
    assert read_adapter(copy).base_name == "x" * (MAX_BASE_CHARS - 11) + "/Qwen2.5-7B"
    change_json(copy / ADAPTER_CONFIG, base_model_name_or_path=" Qwen\n\n# 7B\t")
    assert read_adapter(copy).base_name == "Qwen # 7B"
    change_json(copy / ADAPTER_CONFIG, base_model_name_or_path="\x1b[2J\u202eB7-newQ/你好")
    assert read_adapter(copy).base_name == "\ufffd[2J\ufffdB7-newQ/你好"


def test_adapters_are_found_by_path_and_by_name(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_ADAPTERS", str(tmp_path / "adapters"))
    shutil.copytree(adapter, tmp_path / "adapters" / "one")
    shutil.copytree(adapter, tmp_path / "base" / "two")
    (tmp_path / "adapters" / "none").mkdir()
    assert [path.name for path in list_adapters(tmp_path / "base")] == ["one", "two"]
    assert find_adapter("one") == tmp_path / "adapters" / "one"
    assert find_adapter("two", tmp_path / "base") == tmp_path / "base" / "two"
    assert find_adapter(str(adapter)) == adapter
    for text in ("none", "~nobody-of-this-name/x", "x" * 5000, "x\0"):
        with pytest.raises(InputError):
            find_adapter(text)


def test_an_endless_name_in_a_config_is_no_pattern(copy: Path) -> None:
    patterns = {"q_proj." * 100: 8}
    (copy / ADAPTER_CONFIG).write_text(
        json.dumps(json.loads((copy / ADAPTER_CONFIG).read_text()) | {"rank_pattern": patterns})
    )
    with pytest.raises(CheckpointError) as raised:
        read_adapter(copy)
    assert raised.value.key == "adapter_pattern"


def test_patterns_that_would_take_minutes_are_not_held_against_the_modules(copy: Path) -> None:
    """A page reads each adapter whenever it is drawn, and once stood still over thousands of patterns and modules."""
    tensors = {
        f"base_model.model.model.layers.{layer}.q.lora_{part}.weight": np.zeros((1, 1), np.float16)
        for layer in range(3000)
        for part in "AB"
    }
    save_file(tensors, copy / WEIGHTS)
    change_json(copy / ADAPTER_CONFIG, r=1, rank_pattern={f"layers.{layer}.k": 1 for layer in range(3000)})
    with pytest.raises(CheckpointError) as raised:
        read_adapter(copy)
    assert raised.value.key == "adapter_patterns" and raised.value.params["modules"] == 3000
    change_json(copy / ADAPTER_CONFIG, rank_pattern={"q": 1})
    assert len(read_adapter(copy).matrices) == 3000
