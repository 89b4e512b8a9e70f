"""What is decided before weights are read: context, number type, tokenizer, and where an answer ends."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import CheckpointError, EngineError, InputError
from core.engine.sampling_params import Sampling
from core.memory.fit import DEFAULT_CONTEXT_TOKENS, checked_context
from core.memory.kernels.registry import kernel_named
from core.memory.kernels.spec import Device
from core.memory.load_plan import choose_dtype
from core.memory.model_shape import read_shape
from core.tokenizer.read import read_tokenizer
from core.worker.decode.draw_rules import DrawRules, TokenConstraint
from core.worker.decode.step_times import VERIFY_STEPS, StepTimes
from core.worker.decode.steps import EagerSteps, PendingTokens
from core.worker.end_tokens import TURN_ENDS, find_end_tokens
from core.worker.load import check_numbers
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.warm_up import SAMPLING_VARIANTS, AnyTokens, warm_up, warm_up_sampling, warm_up_verifying
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.scheduler_harness import FakeSteps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=1))
    return tmp_path / "model"


def with_config(folder: Path, **changes: Any) -> Checkpoint:
    """The checkpoint in `folder` with keys of its config.json set; `...` takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return read_checkpoint(folder)


# The context --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "wanted"), [(2048, 2048), (4096, 4096), (131072, DEFAULT_CONTEXT_TOKENS)])
def test_unless_asked_a_context_is_the_models_own_up_to_a_usual_size(folder: Path, limit: int, wanted: int) -> None:
    assert checked_context(with_config(folder, max_position_embeddings=limit), 0) == wanted


@pytest.mark.parametrize("asked", [1, 2048, 4096])
def test_any_context_that_the_model_was_made_for_can_be_asked_for(folder: Path, asked: int) -> None:
    assert checked_context(with_config(folder, max_position_embeddings=4096), asked) == asked


@pytest.mark.parametrize("asked", [-1, 4097, 10**12])
def test_a_context_beyond_that_is_refused_with_the_limit(folder: Path, asked: int) -> None:
    with pytest.raises(InputError) as caught:
        checked_context(with_config(folder, max_position_embeddings=4096), asked)
    assert caught.value.key == "context_range"
    assert caught.value.params == {"model": "model", "asked": asked, "limit": 4096}


# The number type ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "kernel", "device", "wanted"),
    [
        ("bfloat16", "aten_int4", Device("cpu"), "bfloat16"),
        ("float16", "dense", Device("cpu"), "bfloat16"),
        ("float16", "llamadeck", Device("cuda", (8, 6)), "float16"),
        ("bfloat16", "llamadeck", Device("cuda", (8, 6)), "bfloat16"),
        ("bfloat16", "triton", Device("cuda", (7, 5)), "float16"),
        ("float32", "triton", Device("cuda", (9, 0)), "float16"),
        (..., "triton", Device("cuda", (9, 0)), "float16"),
        (None, "torch", Device("cuda", (9, 0)), "float16"),
        (["bfloat16"], "torch", Device("cuda", (9, 0)), "float16"),
    ],
)
def test_the_number_type_is_the_models_where_gpu_and_kernel_have_it(
    folder: Path, named: Any, kernel: str, device: Device, wanted: torch.dtype
) -> None:
    assert choose_dtype(with_config(folder, torch_dtype=named), kernel_named(kernel), device) == wanted


def test_the_number_type_of_the_text_part_counts_where_the_whole_names_none(folder: Path) -> None:
    checkpoint = with_config(folder, torch_dtype=..., text_config={"model_type": "llama", "dtype": "bfloat16"})
    assert choose_dtype(checkpoint, kernel_named("triton"), Device("cuda", (9, 0))) == "bfloat16"


def test_the_newer_name_of_the_number_type_goes_first(folder: Path) -> None:
    checkpoint = with_config(folder, dtype="bfloat16", torch_dtype="float16")
    assert choose_dtype(checkpoint, kernel_named("triton"), Device("cuda", (9, 0))) == "bfloat16"


# The tokenizer ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_gives_back_what_it_is_given(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    text = "What is the capital of France? 你好 😀\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_special_tokens_that_are_written_out_are_one_token_each(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode("<s>[INST] Hi [/INST]", add_special_tokens=False).ids[0] == tokenizer.token_to_id("<s>")


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<unk>"}},
    ],
    ids=["truncation", "padding"],
)  # fmt: skip
def test_a_prompt_is_neither_cut_nor_filled_up(folder: Path, settings: dict) -> None:
    """A tokenizer.json keeps the settings of whoever saved it last, often those of a training run. With them a long
    chat lost its end in silence, or a short one got a tail of padding; transformers resets both before each use."""
    text = "What is the capital of France?"
    wanted = read_tokenizer(folder).encode(text, add_special_tokens=False).ids
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert read_tokenizer(folder).encode(text, add_special_tokens=False).ids == wanted


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b"null", b"\xff", b'{"version": "1.0"}', b'{"model": {"type": "Nonsense"}}',
     b"version https://git-lfs.github.com/spec/v1"],
)  # fmt: skip
def test_a_tokenizer_file_that_cannot_be_read_is_refused_in_words(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert caught.value.key == "tokenizer"
    assert caught.value.params["folder"] == "model"
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused_in_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert caught.value.key == "tokenizer_missing"


def test_code_that_comes_with_a_tokenizer_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError):
        read_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


# The end of an answer -----------------------------------------------------------------------------------------------


def ends(folder: Path, **changes: Any) -> set[int]:
    """What ends an answer beside </s>, which every tokenizer here has as token 2."""
    checkpoint = with_config(folder, **changes)
    found = find_end_tokens(checkpoint, read_tokenizer(folder))
    assert 2 in found
    return set(found) - {2}


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (7, {7}),
        ([7, 8], {7, 8}),
        ([7, None, "9"], {7}),
        (None, set()),
        (..., set()),
        ("7", set()),
        ({"a": 7}, set()),
        (-1, set()),
        (True, set()),
    ],
)
def test_the_configs_end_tokens_are_taken(folder: Path, named: Any, wanted: set[int]) -> None:
    assert ends(folder, eos_token_id=named) == wanted


def test_the_generation_settings_end_tokens_are_taken_as_well(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [11, 12]}')
    assert ends(folder, eos_token_id=7) == {7, 11, 12}


@pytest.mark.parametrize("name", sorted(set(TURN_ENDS) - {"</s>"}))
def test_a_turns_end_that_the_vocabulary_has_ends_the_answer(folder: Path, name: str) -> None:
    """A model trained on ChatML over Llama names </s> as its end in config.json, and says <|im_end|>."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert ends(folder) == {tokenizer.token_to_id(name)}


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_broken_generation_settings_are_left_out_with_a_line_in_the_log(
    folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some repositories have a file of no bytes there, which once refused the load."""
    (folder / "generation_config.json").write_text(content)
    assert ends(folder, eos_token_id=7) == {7}
    assert "generation_config.json" in caplog.text


def test_a_token_that_only_the_map_of_special_tokens_names_ends_the_answer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|over|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|over|>"}}')
    assert ends(folder) == {tokenizer.token_to_id("<|over|>")}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@torch.inference_mode()
def test_weights_that_compute_no_numbers_refuse_the_load(folder: Path, broken: float) -> None:
    checkpoint = read_checkpoint(folder)
    model = load_model(
        checkpoint,
        read_shape(checkpoint),
        kernel_named("dense"),
        DeviceMap((torch.device("cpu"),)),
        torch.float32,
        64,
        lambda _: None,
    )
    slots = ModelRunner(model, num_slots=2, context_tokens=32)
    check_numbers(slots, "tiny")
    warm_up(EagerSteps(slots), 8, "tiny")
    model.get_output_embeddings().weight[7] = broken
    with pytest.raises(EngineError, match="no usable numbers"):
        check_numbers(slots, "tiny")
    model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(EngineError, match="no usable numbers"):
        warm_up(EagerSteps(slots), 8, "tiny")


class WatchedSteps(FakeSteps):
    """Notes how many tokens it verified, and the grammars of its requests."""

    def __init__(self, max_verified: int = 8, context_tokens: int = 128) -> None:
        super().__init__(context_tokens=context_tokens)
        self.max_verified = max_verified
        self.verified, self.constraints = list[int](), list[TokenConstraint | None]()

    def reset_slot(self, slot: int, sampling: Sampling, seed: int, tokens: Sequence[int], rules: object = None) -> None:
        self.constraints.append(rules.constraint if isinstance(rules, DrawRules) else None)

    def verify(self, slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        self.verified.append(len(tokens))
        return super().verify(slot, tokens, begin)


@pytest.mark.parametrize(("max_verified", "context_tokens", "wanted"), [(8, 128, [8, 8]), (8, 4, [3, 3]), (0, 128, [])])
def test_tokens_are_verified_before_somebody_waits_for_it_where_steps_do_that(
    max_verified: int, context_tokens: int, wanted: list[int]
) -> None:
    steps = WatchedSteps(max_verified, context_tokens)
    warm_up_verifying(steps, "tiny")
    assert steps.verified == wanted and steps.num_in_flight == 0


def test_every_way_to_draw_is_taken_before_somebody_waits_for_it(folder: Path) -> None:
    """Also by a grammar: its draws are launches of their own where steps run ahead."""
    steps = WatchedSteps()
    warm_up_sampling(steps, read_tokenizer(folder), 16)
    assert len(steps.constraints) == len(SAMPLING_VARIANTS) + 1
    assert [type(one) for one in steps.constraints if one is not None] == [AnyTokens]
    assert steps.num_in_flight == 0


def test_the_first_step_of_a_kind_loads_code_and_tells_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first verification of some seconds was never tried again, since it seemed to take as long as many steps."""
    times, clock = StepTimes(), iter([0.0, 9.0, 10.0, 20.0, 29.0, 32.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with times.decoding(1):
            pass
    assert times.verify_steps == VERIFY_STEPS
    for _ in range(2):
        with times.verifying():
            pass
    assert times.verify_steps == 3.0
