"""Which files of a folder are the model: by an index, by numbers, by a name, by the tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import CheckpointError
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint, split_into_shards, write_index

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
OTHER = "gptq_model-4bit-128g.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=2))
    return tmp_path / "model"


def files_of(folder: Path) -> list[str]:
    """The files that were chosen, which hold every tensor of the model."""
    checkpoint = read_checkpoint(folder)
    assert len(checkpoint.tensors) == 4 * 14 + 7
    return sorted({tensor.file for tensor in checkpoint.tensors.values()})


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    for language in ("en", "zh"):
        sentence = caught.value.sentence(language)
        assert "elete" not in sentence and "删除" not in sentence and "Keep one" not in sentence
    return caught.value


def write_settings(folder: Path, **settings: Any) -> None:
    """The quantization as auto-gptq wrote it, beside config.json and not in it."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32} | settings))


def copy_weights(folder: Path, name: str, recipe: Recipe | None = None) -> None:
    """Another whole model in the folder: the same one, or one made by `recipe`."""
    if recipe is None:
        shutil.copy(folder / WEIGHTS, folder / name)
        return
    make_checkpoint(folder / "made", recipe)
    shutil.move(folder / "made" / WEIGHTS, folder / name)
    shutil.rmtree(folder / "made")


def rename_shards(folder: Path, name: Callable[[int], str]) -> list[str]:
    split_into_shards(folder)
    (folder / INDEX).unlink()
    return sorted((folder / shard).rename(folder / name(number)).name for number, shard in enumerate(SHARDS, 1))


@pytest.mark.parametrize(
    "name",
    [
        lambda number: f"model-0000{number}-of-00002.safetensors",
        lambda number: f"gptq_model-4bit-128g-0000{number}-of-00002.safetensors",
        lambda number: f"model-0000{number}-of-000002.safetensors",
        lambda number: f"model_0{number - 1}-of-02.safetensors",
        lambda number: f"part{number}.safetensors",
    ],
    ids=["as transformers", "as auto-gptq", "other digits", "from zero", "no count"],
)
def test_shards_are_one_model_without_an_index(folder: Path, name: Callable[[int], str]) -> None:
    """The advice to keep one of them would have destroyed the model."""
    renamed = rename_shards(folder, name)
    assert files_of(folder) == renamed


def test_a_shard_that_no_index_names_and_is_not_there_is_named(folder: Path) -> None:
    rename_shards(folder, lambda number: f"model-0000{number}-of-00003.safetensors")
    error = refusal(folder)
    assert (error.key, error.params["file"], error.params["count"]) == (
        "missing_shard",
        "model-00003-of-00003.safetensors",
        1,
    )


def test_a_missing_shard_of_an_index_is_named(folder: Path) -> None:
    split_into_shards(folder)
    (folder / SHARDS[1]).unlink()
    error = refusal(folder)
    assert (error.key, error.params["file"], error.params["count"]) == ("missing_shard", SHARDS[1], 1)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], "model.safetensors", {}, {"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": ".."}, {"a": "."},
     {"a": ""}, {"a": 5}, {"a": ["x"]}, {"a": "sub/model.safetensors"}, {"a": "model.safetensors/"},
     {"a": "nul\0"}, {"a": "\ud800"}, {"a": "line\nbreak"}, {"a": "config.json"}, {"a": "x" * 5000 + ".safetensors"},
     {"a": "model-00001-of-00009.safetensors"}],
)  # fmt: skip
def test_an_index_that_is_none_or_stale_gives_way_to_a_whole_file(folder: Path, weight_map: Any) -> None:
    write_index(folder, weight_map)
    assert files_of(folder) == [WEIGHTS]


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_an_index_that_is_no_json_gives_way_to_a_whole_file_and_is_refused_without_one(
    folder: Path, content: str
) -> None:
    (folder / INDEX).write_text(content)
    assert files_of(folder) == [WEIGHTS]
    (folder / WEIGHTS).unlink()
    assert refusal(folder).key == "bad_json"


def test_an_index_that_leads_elsewhere_is_refused_where_nothing_else_is_whole(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    write_index(folder, {"a": f"../{WEIGHTS}"})
    assert refusal(folder).key == "bad_json"


def test_an_index_that_names_a_part_of_numbered_shards_does_not_hide_the_others(folder: Path) -> None:
    weight_map = split_into_shards(folder)
    write_index(folder, {name: file for name, file in weight_map.items() if file == SHARDS[0]})
    assert files_of(folder) == SHARDS


def test_an_index_of_the_model_before_it_was_quantized_gives_way_to_the_quantized_file(folder: Path) -> None:
    """The index and the shards of the original were left beside the one file that auto-gptq wrote."""
    copy_weights(folder, OTHER)
    dense = {f"model.layers.{layer}.mlp.up_proj.weight": np.ones((128, 64), np.float16) for layer in (0, 1)}
    for shard, (name, tensor) in zip(SHARDS, dense.items(), strict=True):
        save_file({name: tensor}, folder / shard)
    (folder / WEIGHTS).unlink()
    write_index(folder, dict(zip(dense, SHARDS, strict=True)))
    assert files_of(folder) == [OTHER]
    (folder / INDEX).unlink()
    assert files_of(folder) == [OTHER]


def test_a_whole_file_goes_before_its_own_shards(folder: Path) -> None:
    copy_weights(folder, "whole")
    split_into_shards(folder)
    (folder / "whole").rename(folder / WEIGHTS)
    assert files_of(folder) == SHARDS, "the index says which"
    (folder / INDEX).unlink()
    assert files_of(folder) == [WEIGHTS]


@pytest.mark.parametrize(
    "settings",
    [
        {"model_file_base_name": "special"},
        {"model_basename": "special"},
        {"model_file_base_name": "special.safetensors"},
    ],
)
def test_the_settings_may_name_the_file(folder: Path, settings: dict) -> None:
    copy_weights(folder, "special.safetensors")
    copy_weights(folder, OTHER)
    write_settings(folder, **settings)
    assert files_of(folder) == ["special.safetensors"]


def test_auto_gptqs_own_file_may_name_the_weights_where_config_json_has_the_settings(folder: Path) -> None:
    copy_weights(folder, OTHER)
    (folder / "quantize_config.json").write_text(
        json.dumps({"model_file_base_name": OTHER.removesuffix(".safetensors")})
    )
    assert files_of(folder) == [OTHER]
    (folder / "quantize_config.json").write_text("{")
    assert refusal(folder).key == "several_weights"


def test_a_name_in_the_settings_that_no_file_has_is_no_hindrance(folder: Path) -> None:
    """TheBloke renamed files to model.safetensors and left gptq_model-4bit-128g in quantize_config.json."""
    write_settings(folder, model_file_base_name="gptq_model-4bit-128g")
    assert files_of(folder) == [WEIGHTS]


def test_the_files_of_several_branches_are_told_apart_by_the_settings(folder: Path) -> None:
    copy_weights(folder, "gptq_model-4bit-16g.safetensors", Recipe(group_size=16))
    copy_weights(folder, "gptq_model-8bit-32g.safetensors", Recipe(bits=8))
    assert files_of(folder) == [WEIGHTS]
    write_settings(folder, group_size=16)
    assert files_of(folder) == ["gptq_model-4bit-16g.safetensors"]


@pytest.mark.parametrize("is_permuted", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        (
            "wizardLM-7B-GPTQ-4bit-32g.latest.act-order.safetensors",
            "wizardLM-7B-GPTQ-4bit-32g.no-act-order.safetensors",
        ),
        ("gptq-4bit-32g-actorder_True.safetensors", "gptq-4bit-32g-actorder_False.safetensors"),
        ("4bit.act.order.safetensors", "4bit.no-act.order.safetensors"),
    ],
)
def test_names_that_tell_the_order_of_inputs_choose_where_the_settings_say_it(
    folder: Path, names: tuple[str, str], is_permuted: bool
) -> None:
    """Repositories of 2023 held one file for each of two programs."""
    for name in names:
        copy_weights(folder, name)
    (folder / WEIGHTS).unlink()
    write_settings(folder, desc_act=is_permuted)
    assert files_of(folder) == [names[0] if is_permuted else names[1]]


def test_two_models_that_nothing_tells_apart_are_refused_with_both_names(folder: Path) -> None:
    copy_weights(folder, OTHER)
    error = refusal(folder)
    assert (error.key, error.params["first"], error.params["second"]) == ("several_weights", OTHER, WEIGHTS)


def test_what_is_no_part_of_the_model_is_left_out(folder: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": np.ones((2, 2), np.float16)}, folder / "adapter_model.safetensors")
    save_file({"layers.0.wq.weight": np.ones((2, 2), np.float16)}, folder / "consolidated.safetensors")
    assert files_of(folder) == [WEIGHTS]


def test_a_part_without_a_quantized_matrix_is_kept(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    ends = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    save_file({name: tensor for name, tensor in tensors.items() if name in ends}, folder / "ends.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name not in ends}, folder / WEIGHTS)
    assert files_of(folder) == ["ends.safetensors", WEIGHTS]


@pytest.mark.parametrize("name", ["._model.safetensors", "._model.safetensors.index.json"])
def test_what_a_mac_leaves_beside_a_file_is_none_of_the_model(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\0\5\x16\7")
    assert files_of(folder) == [WEIGHTS]


def test_a_damaged_file_beside_whole_shards_is_left_out(folder: Path) -> None:
    renamed = rename_shards(folder, lambda number: f"model-0000{number}-of-00002.safetensors")
    (folder / WEIGHTS).write_bytes(b"")
    assert files_of(folder) == renamed
    for shard in renamed:
        (folder / shard).write_bytes(b"")
    assert refusal(folder).key == "corrupt_weights"
