"""Reading a checkpoint without its weights: every layout of the wild, and a sentence for every broken one."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.headers import MAX_CONFIG_BYTES, MAX_HEADER_BYTES, TensorInfo, read_header, read_json
from core.checkpoint.quantization import BITS
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError
from tests.support.checkpoints import Recipe, make_checkpoint, split_into_shards

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=1))
    return tmp_path / "model"


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    return caught.value


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; `...` takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_quantization(folder: Path, **changes: Any) -> None:
    found = json.loads((folder / "config.json").read_text())["quantization_config"] | changes
    change_config(folder, quantization_config={name: value for name, value in found.items() if value is not ...})


# What is there ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_with_every_tensor_and_no_weight(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    stored = load_file(folder / WEIGHTS)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }
    assert checkpoint.size_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert (checkpoint.name, checkpoint.architecture) == ("model", "LlamaForCausalLM")
    assert checkpoint.max_context_tokens == 256
    quantization = checkpoint.quantization
    assert (quantization.bits, quantization.group_size, quantization.is_permuted) == (4, 32, False)
    assert (quantization.is_symmetric, quantization.packing) == (True, "gptq")
    assert quantization.label == "4 bit, group 32"


def test_a_tensors_place_in_its_file_is_where_its_bytes_lie(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    data = (folder / WEIGHTS).read_bytes()
    for name, tensor in load_file(folder / WEIGHTS).items():
        info = checkpoint.tensors[name]
        assert data[info.begin : info.end] == tensor.tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_every_bit_width_and_act_order_is_read(tmp_path: Path, bits: int) -> None:
    make_checkpoint(tmp_path / "m", Recipe(bits=bits, group_size=-1, act_order=True, symmetric=False, num_layers=1))
    quantization = read_checkpoint(tmp_path / "m").quantization
    assert quantization.label == f"{bits} bit, no groups, act-order"
    assert not quantization.is_symmetric


def test_the_layout_of_2023_is_read(tmp_path: Path) -> None:
    """TheBloke's older branches: gptq_model-4bit-32g.safetensors, and quantize_config.json alone."""
    make_checkpoint(tmp_path / "old", Recipe(old_layout=True, act_order=True))
    assert not (tmp_path / "old" / WEIGHTS).exists()
    checkpoint = read_checkpoint(tmp_path / "old")
    assert checkpoint.quantization.label == "4 bit, group 32, act-order"
    assert {tensor.file for tensor in checkpoint.tensors.values()} == {"gptq_model-4bit-32g.safetensors"}


def test_a_quantize_config_as_auto_gptq_wrote_it_is_enough(folder: Path) -> None:
    change_config(folder, quantization_config=...)
    old = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "static_groups": False, "sym": True,
           "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model"}  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(old))
    assert read_checkpoint(folder).quantization.label == "4 bit, group 32"


@pytest.mark.parametrize("empty", [None, {}, ...])
def test_an_empty_quantization_in_config_gives_way_to_the_older_file(folder: Path, empty: Any) -> None:
    change_config(folder, quantization_config=empty)
    (folder / "quantize_config.json").write_text('{"bits": 8, "group_size": -1, "desc_act": true}')
    # Bits and groups are those of the tensors.
    assert read_checkpoint(folder).quantization.label == "4 bit, group 32, act-order"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"quant_method": "GPTQ"}, "gptq"),
        ({"quant_method": None}, "gptq"),
        ({"checkpoint_format": "gptq_v2"}, "gptq_v2"),
        ({"checkpoint_format": None, "format": "gptq_v2"}, "gptq_v2"),
        ({"checkpoint_format": "gptq", "format": "gptq_v2"}, "gptq"),
    ],
)
def test_the_formats_name_is_read_as_each_quantizer_writes_it(folder: Path, changes: dict, wanted: str) -> None:
    change_quantization(folder, **changes)
    assert read_checkpoint(folder).quantization.packing == wanted


@pytest.mark.parametrize("sym", [False, None, "false", 0])
def test_only_a_plain_true_counts_as_symmetric(folder: Path, sym: Any) -> None:
    """The text "false" once counted as true; a kernel for symmetric zeros would have computed nonsense."""
    change_quantization(folder, sym=sym)
    assert read_checkpoint(folder).quantization.is_symmetric is False


def test_shards_are_found_by_their_index(folder: Path) -> None:
    whole = read_checkpoint(folder)
    weight_map = split_into_shards(folder)
    checkpoint = read_checkpoint(folder)
    assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == weight_map
    assert checkpoint.size_bytes == whole.size_bytes


def test_other_weights_beside_an_index_are_none_of_the_model(folder: Path) -> None:
    split_into_shards(folder)
    save_file({"other": np.zeros(3, np.float16)}, folder / "consolidated.safetensors")
    assert "other" not in read_checkpoint(folder).tensors


def test_files_may_be_links_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    folder.rename(blobs)
    folder.mkdir()
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(blob)
    assert read_checkpoint(folder).quantization.bits == 4


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"architectures": ["MistralForCausalLM", "Other"]}, "MistralForCausalLM"),
        ({"architectures": None}, "llama"),
        ({"architectures": []}, "llama"),
        ({"architectures": {"a": 1}}, "llama"),
        ({"architectures": 5, "model_type": ...}, "?"),
        ({"architectures": "LlamaForCausalLM"}, "llama"),
        ({"architectures": [None]}, "null"),
    ],
)
def test_the_architecture_has_a_name_whatever_the_config_says(folder: Path, changes: dict, wanted: str) -> None:
    """A dictionary or a number here once ended the page that lists the models, with a traceback."""
    change_config(folder, **changes)
    assert read_checkpoint(folder).architecture == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"max_position_embeddings": 32768}, 32768),
        ({"max_position_embeddings": ...}, 2048),
        ({"max_position_embeddings": "4096"}, 2048),
        ({"max_position_embeddings": True}, 2048),
        ({"max_position_embeddings": -1}, 2048),
        ({"max_position_embeddings": ..., "n_positions": 1024}, 1024),
        ({"max_position_embeddings": ..., "max_seq_len": 8192}, 8192),
        ({"max_position_embeddings": ..., "text_config": {"max_position_embeddings": 512}}, 512),
        ({"text_config": "none"}, 256),
        ({"text_config": [1]}, 256),
    ],
)
def test_the_longest_context_is_a_positive_number_whatever_the_config_says(
    folder: Path, changes: dict, wanted: int
) -> None:
    change_config(folder, **changes)
    assert read_checkpoint(folder).max_context_tokens == wanted


# What is wrong with it ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file", "x" * 300, "nul\0"):
        assert refusal(tmp_path / name).key == "no_folder"


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert refusal(tmp_path).key == "no_config"


def test_a_folder_of_gguf_files_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "llama-2-7b-chat.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path).key == "no_config"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"text"', b"null", b"4", b"\xff\xfe{}", b"\x00", b"[" * 100_000, b'{"a": ' * 100_000,
     b"<!DOCTYPE html>", b"9" * 10_000, b"version https://git-lfs.github.com/spec/v1"],
    ids=lambda content: content[:12].decode("latin-1"),
)  # fmt: skip
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert refusal(folder).key == "bad_json"


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    assert refusal(folder).key == "config_too_large"


def test_an_index_has_a_line_for_every_tensor_of_a_mixture_of_experts(folder: Path) -> None:
    """That of Qwen3-235B has 14 MB, which was once more than any file could have."""
    weight_map = split_into_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}) + " " * MAX_CONFIG_BYTES)
    assert read_json(index) == json.loads(index.read_text())
    index.write_text(index.read_text() + " " * MAX_HEADER_BYTES)
    with pytest.raises(CheckpointError):
        read_json(index)


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json", WEIGHTS])
def test_a_directory_in_a_files_place_is_unreadable(folder: Path, name: str) -> None:
    change_config(folder, quantization_config=None)
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    (folder / name).unlink()
    (folder / name).mkdir()
    error = refusal(folder)
    assert error.key == "unreadable"
    assert name in str(error.params["file"])


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_pipe_in_a_files_place_is_not_waited_for(folder: Path, name: str) -> None:
    """Opening a pipe that nobody writes to waits for ever, and the page that lists the models with it."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder).key == "unreadable"


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_an_endless_device_in_a_files_place_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert refusal(folder).key == "unreadable"


def test_links_to_nowhere_and_in_a_circle_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone")
    assert refusal(folder).key == "unreadable"
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert refusal(folder).key == "unreadable"


def test_a_folder_whose_name_is_no_text_is_refused_in_words_that_can_be_shown(folder: Path) -> None:
    """Such a name cannot be sent to a browser: one folder in models/ would have taken the whole page with it."""
    other = folder.parent / os.fsdecode(b"mod\xffel")
    folder.rename(other)
    error = refusal(other)
    assert error.key == "folder_name"
    assert error.params["folder"] == "mod?el"


def test_file_names_that_are_no_text_are_quoted_in_words_that_can_be_shown(folder: Path) -> None:
    os.rename(folder / WEIGHTS, os.path.join(os.fsencode(folder), b"w\xff.safetensors"))
    assert read_checkpoint(folder).quantization.bits == 4
    shutil.copy(os.path.join(os.fsencode(folder), b"w\xff.safetensors"), folder / "z.safetensors")
    error = refusal(folder)
    assert error.params["first"] == "w?.safetensors"


@pytest.mark.parametrize(
    ("quantization", "key", "shown"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "other_quantization", "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "other_quantization", "bitsandbytes"),
        ({"quant_method": "exl2", "bits": 4.65}, "other_quantization", "exl2"),
        ({"quant_method": ["gptq"], "bits": 4}, "other_quantization", '["gptq"]'),
        ({"quant_method": "x" * 5000, "bits": 4}, "other_quantization", "x" * 60),
        ({"quant_method": "\ud800", "bits": 4}, "other_quantization", "?"),
        ({"bits": 5}, "bits", "5"),
        ({"bits": 16}, "bits", "16"),
        ({"bits": -4}, "bits", "-4"),
        ({"bits": "5"}, "bits", "5"),
        ({"bits": True}, "bits", "true"),
        ({"bits": 4.5}, "bits", "4.5"),
        ({"bits": [4]}, "bits", "[4]"),
        ({"bits": {}}, "bits", "{}"),
        ({"bits": 4, "group_size": 0}, "group_size", "0"),
        ({"bits": 4, "group_size": -2}, "group_size", "-2"),
        ({"bits": 4, "group_size": "all"}, "group_size", "all"),
        ({"bits": 4, "group_size": 128.5}, "group_size", "128.5"),
        ({"bits": 4, "group_size": True}, "group_size", "true"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "format", "marlin"),
        ({"bits": 4, "checkpoint_format": 2}, "format", "2"),
        (["gptq"], "not_quantized", None),
        ("gptq", "not_quantized", None),
    ],
)
def test_a_quantization_that_cannot_run_is_refused_with_its_value(
    folder: Path, quantization: Any, key: str, shown: str | None
) -> None:
    change_config(folder, quantization_config=quantization)
    error = refusal(folder)
    assert error.key == key
    assert shown is None or shown in error.params.values()


def test_a_deeply_nested_value_is_refused_and_not_quoted_whole(folder: Path) -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    change_quantization(folder, bits=deep)
    assert len(str(refusal(folder).params["bits"])) <= 60


def test_a_quantization_may_be_said_of_the_language_model_alone(folder: Path) -> None:
    """Of a model with pictures some programs say it there, and it was called not quantized."""
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    text = config | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert read_checkpoint(folder).quantization.bits == settings["bits"]
    text["quantization_config"] = {"quant_method": "exl2", "bits": 4.65}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert refusal(folder).params["method"] == "exl2"


@pytest.mark.parametrize("is_beside", [True, False])
def test_a_model_of_modelopt_is_called_what_it_is(folder: Path, is_beside: bool) -> None:
    """Its settings lie in a file of their own, and older ones in config.json named no method: it was called not
    quantized, or a format of compressed-tensors without a name."""
    producer = {"name": "modelopt", "version": "0.33.0"}
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}
    beside = {"producer": producer, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    own = {"config_groups": groups, "quant_algo": "FP8", "producer": producer}
    change_config(folder, quantization_config=... if is_beside else own)
    if is_beside:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    error = refusal(folder)
    assert (error.key, error.params["method"]) == ("other_quantization_vllm", "modelopt")


def test_an_old_folder_whose_quantization_is_broken_is_refused(folder: Path) -> None:
    change_config(folder, quantization_config=...)
    (folder / "quantize_config.json").write_text("{")
    assert refusal(folder).params["file"] == "quantize_config.json"


def test_a_folder_with_a_configuration_alone_is_incomplete(folder: Path) -> None:
    """It was once called not quantized, and to be downloaded again, which nobody had done."""
    change_config(folder, quantization_config=...)
    (folder / WEIGHTS).unlink()
    error = refusal(folder)
    assert error.key == "no_weights"
    assert "incomplete" in str(error) and "again" not in str(error)


@pytest.mark.parametrize(
    ("model_type", "key"), [("dbrx", "not_quantized_moe"), ("falcon_mamba", "not_quantized_family")]
)
def test_what_no_quantization_would_change_is_said_of_unquantized_weights(
    folder: Path, model_type: str, key: str
) -> None:
    """The GPTQ version would be the next one that does not run."""
    change_config(folder, quantization_config=..., model_type=model_type)
    save_file({"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.float16)}, folder / WEIGHTS)
    error = refusal(folder)
    assert (error.key, error.params["family"]) == (key, model_type)
    change_config(folder, quantization_config={"quant_method": "exl2", "bits": 4.65})
    assert refusal(folder).key.startswith("family_")


@pytest.mark.parametrize("on_disk", [True, False])
def test_files_are_fetched_again_only_where_they_were_fetched(folder: Path, on_disk: bool) -> None:
    change_config(folder, num_hidden_layers=3)
    found = read_checkpoint(folder)
    with pytest.raises(CheckpointError) as caught:
        _ = (found if on_disk else replace(found, path=None)).layers
    assert ("download it again" in str(caught.value)) is on_disk


def test_weights_that_are_not_quantized_are_refused(folder: Path) -> None:
    save_file({"model.norm.weight": np.ones(64, np.float16)}, folder / WEIGHTS)
    assert refusal(folder).key == "no_quantized_weights"


def test_marlins_own_packing_is_refused(folder: Path) -> None:
    """auto-gptq could store a matrix repacked as B and s: there is no qweight to read."""
    save_file({"model.layers.0.mlp.up_proj.B": np.ones((4, 4), np.int32)}, folder / WEIGHTS)
    assert refusal(folder).key == "no_quantized_weights"


@pytest.mark.parametrize(
    ("name", "key"),
    [("pytorch_model.bin", "only_pickled"), ("llama-7b-4bit.pt", "only_pickled"), ("model.gguf", "no_weights")],
)
def test_a_folder_without_safetensors_is_refused(folder: Path, name: str, key: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    assert refusal(folder).key == key


def test_a_missing_shard_is_named(folder: Path) -> None:
    split_into_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    error = refusal(folder)
    assert error.key == "missing_shard"
    assert (error.params["file"], error.params["count"]) == ("model-00002-of-00002.safetensors", 1)


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [("model.safetensors", True), ("模型.safetensors", True), ("a b", True), ("..", False), ("a/b", False)],
)
def test_plain_names_stay_in_their_folder(name: str, is_plain: bool) -> None:
    assert is_plain_name(name) is is_plain


# Safetensors files --------------------------------------------------------------------------------------------------


def write_raw(path: Path, header: bytes, body: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def can_be_opened(path: Path) -> bool:
    """Whether the safetensors library itself reads the file, which is what a load does."""
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                file.get_tensor(name)
        return True
    except SafetensorError:
        return False


def test_a_file_cut_off_anywhere_is_refused(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    cuts = {*range(12), header_end - 1, header_end, header_end + 1, *range(12, len(data), 997), len(data) - 1}
    for cut in cuts:
        (folder / WEIGHTS).write_bytes(data[:cut])
        error = refusal(folder)
        assert error.key == ("corrupt_weights" if cut < header_end else "truncated"), cut
    assert error.params["expected"] == len(data)


def test_a_file_with_something_behind_its_tensors_is_refused(folder: Path) -> None:
    """The library that reads the weights refuses it too, but only once the load has begun."""
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert not can_be_opened(folder / WEIGHTS)
    assert refusal(folder).key == "corrupt_weights"


@pytest.mark.parametrize("length", [0, 1, 10**6, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path, length: int) -> None:
    header = json.dumps({"a": entry([4], 0, 4)}).encode()
    path = write_raw(tmp_path / "x.safetensors", header, b"abcd", length)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.key == "corrupt_weights"


def test_one_file_may_hold_the_experts_of_every_layer(tmp_path: Path) -> None:
    """A model of 48 layers with 512 experts each, in one file, was told to be damaged: its header had more values than
    a configuration may have."""
    count = 130_000
    header = {f"a.{number}": entry([1], number, number + 1) for number in range(count)}
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(count))
    assert len(read_header(path)) == count


BODY = b"abcd"
GOOD = {
    "one tensor": {"a": entry([4], 0, 4)},
    "a number alone": {"a": entry([], 0, 1), "b": entry([3], 1, 4)},
    "metadata": {"__metadata__": {"format": "pt"}, "a": entry([4], 0, 4)},
    "metadata null": {"__metadata__": None, "a": entry([4], 0, 4)},
    "another order": {"b": entry([2], 2, 4), "a": entry([2], 0, 2)},
    "an empty tensor": {"a": entry([0, 7], 0, 0), "b": entry([4], 0, 4), "c": entry([0], 4, 4)},
    "half precision": {"a": entry([1, 2], 0, 4, "F16")},
}
BAD = {
    "a gap": {"a": entry([1], 0, 1), "b": entry([2], 2, 4)},
    "a gap in front": {"a": entry([3], 1, 4)},
    "an overlap": {"a": entry([4], 0, 4), "b": entry([2], 2, 4)},
    "the same bytes twice": {"a": entry([4], 0, 4), "b": entry([4], 0, 4)},
    "an empty tensor inside another": {"a": entry([4], 0, 4), "b": entry([0], 2, 2)},
    "negative shape": {"a": entry([-2, -2], 0, 4)},
    "negative offsets": {"a": entry([4], -8, -4)},
    "offsets backwards": {"a": entry([4], 4, 0)},
    "shape as a fraction": {"a": entry([4.0], 0, 4)},
    "shape as true": {"a": entry([True, 4], 0, 4)},
    "shape as text": {"a": entry("4", 0, 4)},
    "shape null": {"a": entry(None, 0, 4)},
    "shape of other bytes": {"a": entry([5], 0, 4)},
    "offset as a fraction": {"a": entry([4], 0.0, 4.0)},
    "offset as text": {"a": entry([4], "0", "4")},
    "three offsets": {"a": entry([4], 0, 4) | {"data_offsets": [0, 4, 4]}},
    "offsets null": {"a": entry([4], 0, 4) | {"data_offsets": None}},
    "type unknown": {"a": entry([4], 0, 4, "Q4")},
    "type null": {"a": entry([4], 0, 4, None)},
    "type a list": {"a": entry([4], 0, 4, ["U8"])},
    "no type": {"a": {"shape": [4], "data_offsets": [0, 4]}},
    "entry a list": {"a": [1]},
    "entry null": {"a": None},
    "metadata a number": {"__metadata__": {"x": 1}, "a": entry([4], 0, 4)},
    "metadata a list": {"__metadata__": [1], "a": entry([4], 0, 4)},
    "a list": [entry([4], 0, 4)],
    "null": None,
}


@pytest.mark.parametrize("header", GOOD.values(), ids=GOOD.keys())
def test_a_header_that_the_library_reads_is_read_the_same(tmp_path: Path, header: dict) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), BODY)
    with safe_open(path, framework="np") as file:
        wanted = {name: file.get_slice(name).get_shape() for name in file.keys()}
    assert {name: list(info.shape) for name, info in read_header(path).items()} == wanted


@pytest.mark.parametrize("header", BAD.values(), ids=BAD.keys())
def test_a_header_that_the_library_refuses_is_refused(tmp_path: Path, header: Any) -> None:
    """Gaps, overlaps and negative sizes once passed here, so that a model looked whole until it was loaded."""
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), BODY)
    assert not can_be_opened(path)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.key == "corrupt_weights"


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode() + b"\0\0",
        lambda text: text.encode().replace(b"a", b"\xff"),
        lambda text: text.encode()[:-1],
    ],
    ids=["utf-16", "byte order mark", "padded with zeros", "no utf-8", "unclosed"],
)
def test_a_header_in_another_encoding_is_refused(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    path = write_raw(tmp_path / "x.safetensors", encode(json.dumps({"a": entry([4], 0, 4)})), BODY)
    assert not can_be_opened(path)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_a_header_padded_with_spaces_is_read(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": entry([4], 0, 4)}).encode() + b"   ", BODY)
    begin = path.stat().st_size - 4
    assert read_header(path) == {"a": TensorInfo("x.safetensors", "U8", (4,), begin, begin + 4)}


def test_a_name_listed_twice_counts_once_as_for_the_library(tmp_path: Path) -> None:
    one = json.dumps(entry([4], 0, 4))
    path = write_raw(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), BODY)
    assert can_be_opened(path)
    assert list(read_header(path)) == ["a"]


def test_absurd_shapes_are_refused_without_multiplying_them_out(tmp_path: Path) -> None:
    """A product of a hundred thousand numbers of a thousand digits takes hours."""
    shape = [10**1000] * 3000
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": entry(shape, 0, 4)}).encode(), BODY)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_a_json_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "generation_config.json") is None


def test_a_checkpoints_config_is_left_as_it_was_read(folder: Path) -> None:
    checkpoint: Checkpoint = read_checkpoint(folder)
    assert checkpoint.config == json.loads((folder / "config.json").read_text())
