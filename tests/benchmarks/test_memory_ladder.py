"""The ladder's cases: what each promises its chats, and that they are filled as it says. A GPU only holds the cap."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import memory_ladder
from benchmarks.figures import read_lines
from benchmarks.memory_cases import TOGETHER, Case
from benchmarks.memory_ladder import DECODED_TOKENS, Filling, Row, fill, plan_of
from core.memory.step_sizes import LEAN_SIZES, StepSizes
from core.tokenizer.read import read_tokenizer
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dense_models import load_dense

CONTEXT_TOKENS, NUM_SLOTS = 64 + DECODED_TOKENS, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ladder")
    make_checkpoint(path / "tiny", Recipe(num_layers=1, vocabulary=512, context_tokens=512))
    return path


def test_a_case_comes_through_json_as_it_was() -> None:
    for name, (arguments, how) in TOGETHER.items():
        case = Case(name, arguments, [(4096, 4)], **how, step_sizes=LEAN_SIZES)
        again = Case(*json.loads(json.dumps(astuple(case))))
        assert (again.room, again.sizes, again.cache(4096, 4)) == (case.room, LEAN_SIZES, case.cache(4096, 4))


def test_a_plan_is_that_of_the_case(folder: Path) -> None:
    case = Case("tiny", [], [(512, 4)])

    def plan(**how: Any) -> Any:
        return plan_of(folder, replace(case, **how), "llamadeck", 512, 4, captured=True)

    usual = plan()
    assert plan(pool_share=0.5).kv_cache < usual.kv_cache > plan(cache_bits=8).kv_cache
    assert plan(adapters=(2, 8, False)).weights > usual.weights
    assert plan(step_sizes=LEAN_SIZES).activations < usual.activations < plan(step_sizes=StepSizes(2048)).activations
    assert plan(step_sizes=StepSizes(512, 0)).graphs < usual.graphs


@pytest.mark.parametrize("is_alike", [False, True])
def test_every_chat_is_filled_and_those_that_are_alike_share_what_was_read(
    folder: Path, is_alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_ladder, "cap", lambda num_bytes: None)
    monkeypatch.setattr(memory_ladder, "process_mib", lambda: 0.0)
    for name in ("reset_peak_memory_stats", "max_memory_reserved", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    model, tokenizer = load_dense(folder / "tiny", torch.float32), read_tokenizer(folder / "tiny")
    case = Case("tiny", [], [(CONTEXT_TOKENS, NUM_SLOTS)], is_alike=is_alike, step_sizes=StepSizes(16))
    # As of a model over torch's attention: over pages they need a GPU.
    shape: Any = SimpleNamespace(is_capturable=False, cache_bits=16)
    outcome, *_ = fill(Filling(case, model, None, tokenizer, CONTEXT_TOKENS, NUM_SLOTS, shape), 0)
    assert outcome == "fits"


@pytest.mark.parametrize(
    ("with_plan", "with_less", "is_too_little", "exit_code"),
    [
        ("fits", "out of memory", 1.0, 0),
        ("fits", "only otherwise", 1.0, 0),
        ("fits", "fits", 0.0, 1),
        ("only otherwise", "only otherwise", 1.0, 1),
    ],
)
def test_steps_that_less_memory_cannot_capture_had_too_little(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_plan: str,
    with_less: str,
    is_too_little: float,
    exit_code: int,
) -> None:
    """The figure and the exit code knew only those that ran out: 7 of 88 runs of a good session looked like failures,
    for their steps ran kernel by kernel in what was left."""
    row = Row("tiny", "llamadeck", 512, 1, 100.0, 99.0, with_plan, with_less, 10.0, 9.0)
    monkeypatch.setattr(memory_ladder, "run_all", lambda *all: all[5]([asdict(row)]))
    monkeypatch.setattr(sys, "argv", ["memory_ladder", str(tmp_path), "--results", str(tmp_path / "figures")])
    assert memory_ladder.main() == exit_code
    found = {one["column"]: one["value"] for one in read_lines(tmp_path / "figures")}
    assert found["less is too little"] == is_too_little
