"""Llamas in Meta's original format: converted to what they were made from, and refused where they are not whole."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core.common.errors import CheckpointError
from core.quantize.child import meta
from core.quantize.options import QuantizeOptions
from core.quantize.plan import plan_job
from core.quantize.source import META_VOCABULARY, read_plain
from core.quantize.target import folder_target
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import WEIGHTS, train_sentencepiece
from tests.support.plain_models import SIZES, make_plain

PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "norm_eps": 1e-6}
NAMES = {ours: (theirs, axis) for theirs, (ours, axis) in meta.NAMES.items()}


def ignore(fraction: float, **more: int) -> None:
    """Nobody is told."""


def back(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The heads in Meta's order."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write_meta(plain: Path, folder: Path, num_shards: int = 2, **params: Any) -> Path:
    """The model in `plain` as Meta would give it out, over several files."""
    folder.mkdir()
    shards: list[dict[str, torch.Tensor]] = [{"rope.freqs": torch.ones(8)} for _ in range(num_shards)]
    ends = {"model.embed_tokens": ("tok_embeddings", 1), "model.norm": ("norm", None), "lm_head": ("output", 0)}
    for name, value in load_file(plain / WEIGHTS).items():
        module = name.removesuffix(".weight")
        if module in ends:
            theirs, axis = ends[module]
        else:
            layer, _, own = module.removeprefix("model.layers.").partition(".")
            theirs, axis = NAMES[own]
            theirs = f"layers.{layer}.{theirs}"
            if own.endswith(("q_proj", "k_proj")):
                value = back(value, PARAMS["n_heads" if own.endswith("q_proj") else "n_kv_heads"])
        parts = [value] * num_shards if axis is None else value.chunk(num_shards, dim=axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[f"{theirs}.weight"] = part.clone()
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    train_sentencepiece(folder)
    (folder / "LICENSE.txt").write_text("a licence")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "model", rms_norm_eps=1e-6)


@pytest.fixture(scope="module")
def original(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meta(plain, tmp_path_factory.mktemp("meta") / "Llama-tiny")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_converted_model_is_the_one_that_it_was_made_from(plain: Path, tmp_path: Path, num_shards: int) -> None:
    """By its numbers: the heads' order, the joined shards and the rope all count."""
    source = write_meta(plain, tmp_path / "meta", num_shards)
    folder = meta.convert(source, tmp_path / "converted", ignore)
    read_plain(folder)
    tokens = torch.arange(3, 40)[None]
    wanted, found = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (plain, folder))
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, wanted(tokens).logits)
    assert read_tokenizer(folder).encode("Hello").ids == read_tokenizer(source).encode("Hello").ids
    assert (folder / "LICENSE.txt").is_file()


def test_what_params_json_leaves_out_follows_from_the_release() -> None:
    third = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "rope_theta": 5e5}
    config = meta.make_config(third | {"use_scaled_rope": True}, 128256, 14336, False)
    assert (config["max_position_embeddings"], config["rope_scaling"]["factor"]) == (131072, 8.0)
    assert meta.make_config(third, 128256, 14336, False)["max_position_embeddings"] == 8192
    assert meta.make_config(PARAMS, 32000, 128, False)["max_position_embeddings"] == 2048
    assert meta.make_config(PARAMS | {"norm_eps": 1e-5}, 32000, 128, False)["max_position_embeddings"] == 4096
    assert meta.make_config(PARAMS | {"norm_eps": 1e-5, "rope_theta": 1e6}, 32016, 128, False)[
        "max_position_embeddings"
    ] == 16384  # fmt: skip


def test_the_words_of_llama_3_become_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [bytes([number]) for number in range(256)] + [b"He", b"ll", b"Hell", b" w"]
    lines = [base64.b64encode(word) + b" " + str(number).encode() for number, word in enumerate(words)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "out").mkdir()
    meta.write_tokenizer(tmp_path, tmp_path / "out")
    tokenizer = read_tokenizer(tmp_path / "out")
    found = tokenizer.encode("Hello w")
    assert found.tokens == ["<|begin_of_text|>", "Hell", "o", "Ġw"]
    assert tokenizer.get_vocab_size() == len(words) + meta.NUM_SPECIALS
    assert tokenizer.token_to_id("<|eot_id|>") == len(words) + 9
    (tmp_path / "tokenizer.model").write_bytes(b"!!! 1\n")
    with pytest.raises(CheckpointError) as raised:
        meta.write_tokenizer(tmp_path, tmp_path / "out")
    assert raised.value.key == "meta_words"


class Harmful:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._path), "w"))


def a_program(folder: Path) -> None:
    torch.save({"x": Harmful(folder / "harmed")}, folder / "consolidated.00.pth")


def a_bare_program(folder: Path) -> None:
    with (folder / "consolidated.00.pth").open("wb") as file:
        pickle.dump({"x": Harmful(folder / "harmed")}, file)


def half_a_file(folder: Path) -> None:
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-3000])


def a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "consolidated.01.pth").unlink()
    (folder / "consolidated.01.pth").mkdir()


def more_layers(folder: Path) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | {"n_layers": 1}))


def heads_that_do_not_share_the_width(folder: Path) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | {"n_heads": 5}))


def other_numbers(folder: Path) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | {"n_kv_heads": 1}))


def a_file_too_many(folder: Path) -> None:
    shutil.copyfile(folder / "consolidated.01.pth", folder / "consolidated.02.pth")


def a_layer_less(folder: Path) -> None:
    for path in folder.glob("*.pth"):
        tensors = torch.load(path, weights_only=True)
        del tensors["layers.1.feed_forward.w2.weight"]
        torch.save(tensors, path)


def a_strange_tensor(folder: Path) -> None:
    for path in folder.glob("*.pth"):
        torch.save(torch.load(path, weights_only=True) | {"layers.0.attention.wx.weight": torch.ones(2)}, path)


def other_shards(folder: Path) -> None:
    torch.save({"norm.weight": torch.ones(64)}, folder / "consolidated.01.pth")


def no_tensors(folder: Path) -> None:
    torch.save([1, 2], folder / "consolidated.00.pth")


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (a_program, "meta_pickle"),
        (a_bare_program, "meta_weights"),
        (half_a_file, "meta_weights"),
        (a_file_that_cannot_be_read, "unreadable"),
        (more_layers, "meta_layers"),
        (heads_that_do_not_share_the_width, "meta_params"),
        (other_numbers, "meta_shapes"),
        (a_file_too_many, "meta_shapes"),
        (a_layer_less, "meta_layer"),
        (a_strange_tensor, "meta_tensor"),
        (other_shards, "meta_shards"),
        (no_tensors, "meta_pickle"),
    ],
)
def test_files_that_are_no_llama_leave_nothing(
    copy: Path, tmp_path: Path, damage: Callable[[Path], None], key: str
) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as raised:
        meta.convert(copy, tmp_path / "converted", ignore)
    assert raised.value.key == key
    # torch advised to read a program with weights_only=False, which runs it.
    assert "torch.load" not in str(raised.value) and "weights_only" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [copy] and not (copy / "harmed").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0}, {"n_layers": "2"}, {"n_layers": 10**9}, {"vocab_size": None}, {"n_kv_heads": "2"},
        {"n_kv_heads": -2}, {"rope_theta": "1e4"}, {"norm_eps": True},
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_before(copy: Path, change: dict[str, Any]) -> None:
    (copy / "params.json").write_text(json.dumps(PARAMS | change))
    with pytest.raises(CheckpointError) as raised:
        folder_target(copy)
    assert raised.value.key == "meta_params" and raised.value.params["setting"] in change


def test_numbers_that_are_null_have_their_defaults(copy: Path, tmp_path: Path) -> None:
    (copy / "params.json").write_text(json.dumps(PARAMS | {"rope_theta": None, "norm_eps": None}))
    folder_target(copy)
    config = json.loads((meta.convert(copy, tmp_path / "converted", ignore) / "config.json").read_text())
    assert (config["rope_theta"], config["rms_norm_eps"]) == (10000.0, 1e-5)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError) as raised:
        folder_target(copy)
    assert raised.value.params["file"] == "consolidated.00.pth"


def cut_along_its_words(tensors: dict[str, torch.Tensor], part: int) -> None:
    """As Llama 3 has the embedding in several files."""
    tensors["tok_embeddings.weight"] = torch.ones(SIZES["vocab_size"], PARAMS["dim"]).chunk(2)[part].clone()


@pytest.mark.parametrize("is_third", [False, True])
def test_files_that_are_missing_at_the_end_are_told_by_the_shapes(copy: Path, tmp_path: Path, is_third: bool) -> None:
    """Half a model was converted, and then refused for its groups: its down_proj had half of its inputs."""
    if is_third:
        (copy / "params.json").write_text(json.dumps(PARAMS | {"vocab_size": SIZES["vocab_size"]}))
        for part, path in enumerate(sorted(copy.glob("*.pth"))):
            tensors = torch.load(path, weights_only=True)
            cut_along_its_words(tensors, part)
            torch.save(tensors, path)
        assert meta.convert(copy, tmp_path / "whole", ignore).is_dir()
    (copy / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError) as raised:
        meta.convert(copy, tmp_path / "converted", ignore)
    assert raised.value.key == "meta_missing" and not (tmp_path / "converted").exists()
    said = raised.value.sentence("en")
    assert "1 of 2 files" in said and "consolidated.01.pth" in said and "has the shape [" in said


def test_the_plan_of_metas_format_is_near_that_of_the_converted_model(copy: Path, tmp_path: Path) -> None:
    """The MLP's width stands in the pickles alone; the plan guesses it from the files' bytes."""
    config = SIZES | {"hidden_size": 256, "intermediate_size": 640, "vocab_size": META_VOCABULARY}
    guess = folder_target(copy)
    assert guess.is_meta and guess.title == "copy"
    plain = make_plain(tmp_path / "large", **config)
    large = write_meta(plain, tmp_path / "meta", **{"dim": 256})
    found = folder_target(large).model
    assert found.matrices == read_plain(plain).matrices
    plan = plan_job(found, QuantizeOptions(), "cpu", is_meta=True)
    assert plan.resumes and plan.disk_bytes > found.size_bytes
