"""Which quantization is recommended for a card, and the list of newer models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError
from core.gpu.known_gpus import lookup
from core.hub.address import REPO
from core.library import catalogue
from core.library.ranking import best_candidate
from core.library.recommended import (
    Wish,
    best_of,
    known_checkpoint,
    next_larger,
    reason_against,
    recommended_models,
    sized_checkpoint,
    verdicts_for,
)
from core.memory.cpu_fit import check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.fit_report import FitReport
from core.memory.model_shape import read_shape


def choices(repo: str, card: str) -> list[tuple[Checkpoint, FitReport | DeckError]]:
    planned = DeviceMemory.planned(lookup(card))
    found = [catalogue.checkpoint(entry) for entry in catalogue.entries() if entry.repo == repo]
    return [(checkpoint, check_fit(checkpoint, [planned])) for checkpoint in found]


def best(repo: str, card: str) -> str | None:
    listed = choices(repo, card)
    index = best_candidate(listed)
    return None if index is None else listed[index][0].name.rpartition(":")[2]


def test_where_all_fit_the_finest_on_the_fastest_kernel_is_recommended() -> None:
    assert best("TheBloke/Llama-2-7B-Chat-GPTQ", "RTX 4090") == "gptq-4bit-32g-actorder_True"
    assert best("TheBloke/Llama-2-70B-Chat-GPTQ", "H100") == "gptq-4bit-32g-actorder_True"


def test_four_bit_comes_before_eight_bit_whose_token_reads_twice_as_much() -> None:
    assert best("TheBloke/Llama-2-13B-chat-GPTQ", "A40") == "gptq-4bit-32g-actorder_True"


def test_without_a_fast_kernel_more_bits_come_first() -> None:
    """On a card that is too old for the engine's own."""
    found = best("TheBloke/Llama-2-13B-chat-GPTQ", "Quadro RTX 8000")
    assert found == "gptq-8bit-64g-actorder_True"


def test_nothing_is_recommended_where_nothing_fits() -> None:
    assert best("TheBloke/Llama-2-70B-Chat-GPTQ", "RTX 4090") is None
    assert best_candidate([]) is None


def test_what_fits_is_recommended_before_what_is_finer_and_does_not() -> None:
    listed = choices("TheBloke/Llama-2-7B-Chat-GPTQ", "RTX 4090")
    refused = [
        (checkpoint, replace(report, fits=False))
        if isinstance(report, FitReport) and checkpoint.quantization.group_size == 32
        else (checkpoint, report)
        for checkpoint, report in listed
    ]
    index = best_candidate(refused)
    assert index is not None and refused[index][0].quantization.group_size == 64


def test_a_full_context_comes_before_a_finer_quantization() -> None:
    listed = [
        (checkpoint, replace(report, quick_context=4096 if checkpoint.quantization.group_size == 128 else 4095))
        for checkpoint, report in choices("TheBloke/Llama-2-7B-Chat-GPTQ", "RTX 4090")
        if isinstance(report, FitReport)
    ]
    index = best_candidate(listed)
    assert index is not None
    assert (listed[index][0].quantization.group_size, listed[index][0].quantization.is_permuted) == (128, True)


def slow(report: FitReport) -> FitReport:
    return replace(report, load=replace(report.load, is_captured=False))


def test_captured_steps_come_before_everything_else() -> None:
    listed = [
        (checkpoint, report if checkpoint.quantization.bits == 8 else slow(report))
        for checkpoint, report in choices("TheBloke/Llama-2-13B-chat-GPTQ", "A40")
        if isinstance(report, FitReport)
    ]
    index = best_candidate(listed)
    assert index is not None and listed[index][0].quantization.bits == 8


def test_a_checkpoint_that_no_kernel_takes_is_not_recommended() -> None:
    listed = choices("TheBloke/Llama-2-7B-Chat-GPTQ", "RTX 4090")
    index = best_candidate([(checkpoint, DeckError("no_kernel")) for checkpoint, _ in listed[1:]] + listed[:1])
    assert index == len(listed) - 1


def test_the_newer_models_are_names_that_the_hub_can_have() -> None:
    models = recommended_models()
    assert len(models) == len({model.repo for model in models})
    assert all(REPO.fullmatch(model.repo) and "/" in model.repo for model in models)


def test_the_newer_models_run_and_have_the_size_of_their_parameters() -> None:
    """Half a byte for a weight of 4 bits, and a little for scales and what is not quantized: in Qwen3.5-27B all of its
    attention."""
    for model in recommended_models():
        checkpoint = known_checkpoint(model)
        checkpoint.require_runs()
        weights_bytes = model.billions * 1e9 * model.quantization.bits / 8
        assert 1.0 < checkpoint.size_bytes / weights_bytes < (2.2 if model.kept else 2.0), model.repo
        assert len(checkpoint.layers) == model.config["num_hidden_layers"]


@pytest.mark.slow
def test_few_experts_stand_for_all_in_a_verdict() -> None:
    mixtures = [model for model in recommended_models() if model.config.get("num_experts")]
    assert mixtures
    for model in mixtures:
        few, whole = sized_checkpoint(model), known_checkpoint(model)
        assert len(few.tensors) * 20 < len(whole.tensors)
        assert few.size_bytes == whole.size_bytes
        for is_merged in (False, True):
            got, wanted = (read_shape(one, is_merged) for one in (few, whole))
            assert sorted(got.plain_elements) == sorted(wanted.plain_elements)
            got, wanted = (replace(one, plain_elements=()) for one in (got, wanted))
            assert got == wanted


@pytest.mark.parametrize(
    ("card", "best"),
    [
        ("RTX 3060 8GB", "hugging-quants/Meta-Llama-3.1-8B-Instruct-GPTQ-INT4"),
        ("RTX 3060 12GB", "JunHowie/Qwen3-14B-GPTQ-Int4"),
        ("RTX 4090", "Qwen/Qwen3.5-35B-A3B-GPTQ-Int4"),
        ("RTX 5090", "Qwen/Qwen3.5-35B-A3B-GPTQ-Int4"),
        ("H100", "shuyuej/Llama-3.3-70B-Instruct-GPTQ"),
        ("A40", "shuyuej/Llama-3.3-70B-Instruct-GPTQ"),
        ("GTX 1060 3GB", "Qwen/Qwen2.5-1.5B-Instruct-GPTQ-Int4"),
    ],
)
def test_the_best_model_for_a_card_is_the_first_that_fits_with_room_for_an_answer(card: str, best: str) -> None:
    found = best_of(verdicts_for((DeviceMemory.planned(lookup(card)),)))
    assert found is not None and found.repo == best


@pytest.mark.parametrize(
    ("repo", "on_24_gb"),
    [("Qwen/Qwen3-30B-A3B-GPTQ-Int4", True), ("Qwen/Qwen3.5-27B-GPTQ-Int4", False)],
)
def test_mixtures_and_recurrent_layers_have_verdicts(repo: str, on_24_gb: bool) -> None:
    """Qwen3.5-27B as it was published keeps its attention in 16 bit: too much for 24 GB, and with 32 GB a long context,
    since 16 of its 64 layers keep one."""
    found = {}
    for card in ("RTX 4090", "RTX 5090", "A40"):
        verdicts = verdicts_for((DeviceMemory.planned(lookup(card)),))
        (found[card],) = [report for model, report in verdicts if model.repo == repo]
    reports = [report for report in found.values() if isinstance(report, FitReport)]
    assert [report.fits for report in reports] == [on_24_gb, True, True]
    assert reports[1].max_context > 32768


def test_a_model_that_is_quick_with_what_was_asked_comes_before_a_larger_one_that_is_slow() -> None:
    """Qwen3-14B fits a card of 12 GB with 8,192 tokens, but several times slower than with 8,000."""
    asked = Wish(context_tokens=8192)
    verdicts = verdicts_for((DeviceMemory.planned(lookup("RTX 3060 12GB")),), asked)
    best = best_of(verdicts, asked.least_tokens)
    reports = {model.repo: report for model, report in verdicts}
    larger = reports["JunHowie/Qwen3-14B-GPTQ-Int4"]
    assert isinstance(larger, FitReport) and larger.fits and larger.max_context >= 8192
    assert reason_against(larger, asked.least_tokens) == "slow_context"
    assert best is not None and best.repo == "ModelCloud/Mistral-Nemo-Instruct-2407-gptq-4bit"
    chosen = reports[best.repo]
    assert isinstance(chosen, FitReport) and not chosen.is_slow


def test_where_none_is_quick_with_the_room_a_quick_load_comes_before_room() -> None:
    (first, report), (second, _), (third, _) = [
        (model, one)
        for model, one in verdicts_for((DeviceMemory.planned(lookup("H200")),))
        if isinstance(one, FitReport)
    ][:3]
    quick = replace(report, max_context=6000, quick_context=5000)
    roomy = slow(replace(report, max_context=9000, quick_context=3000))
    never = slow(replace(report, max_context=9000, quick_context=None))
    short = slow(replace(report, max_context=5000, quick_context=3000))
    for verdicts, best in (
        ([(first, short), (second, roomy), (third, quick)], third),
        ([(first, short), (second, roomy), (third, never)], second),
        ([(first, short), (second, never), (third, roomy)], second),
        ([(first, short), (second, short)], first),
    ):
        assert best_of(verdicts, 8000) is best
    reasons = [reason_against(one, 8000) for one in (quick, roomy, never, short)]
    assert reasons == ["short_context", "slow_context", "slow_steps", "short_context"]


def test_on_a_card_that_is_too_small_for_all_none_is_the_best() -> None:
    assert best_of(verdicts_for((DeviceMemory.empty("a card", 1024, (8, 6)),))) is None


@pytest.mark.parametrize(
    ("card", "larger", "reason"),
    [
        ("RTX 3060 8GB", "JunHowie/Qwen3-8B-GPTQ-Int4", "short_context"),
        ("RTX 3060 12GB", "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4", "too_large"),
        # The first of the list.
        ("A40", None, None),
    ],
)
def test_why_the_next_larger_model_is_not_the_best_is_known(card: str, larger: str | None, reason: str | None) -> None:
    verdicts = verdicts_for((DeviceMemory.planned(lookup(card)),))
    best = best_of(verdicts)
    assert best is not None
    found = next_larger(verdicts, best)
    assert (found and found[0].repo, found and reason_against(found[1])) == (larger, reason)


@pytest.mark.parametrize(
    ("bandwidth_gb_s", "best"),
    [(5.0, "JunHowie/Qwen3-0.6B-GPTQ-Int4"), (25.0, "Qwen/Qwen2.5-1.5B-Instruct-GPTQ-Int4"),
     (200.0, "JunHowie/Qwen3-14B-GPTQ-Int4")],
)  # fmt: skip
def test_on_a_cpu_the_best_is_one_that_is_read_along_with(bandwidth_gb_s: float, best: str) -> None:
    """Where none is fast enough it is the fastest."""
    verdicts = [
        (model, check_cpu_fit(known_checkpoint(model), available_mib=16_000, bandwidth_gb_s=bandwidth_gb_s))
        for model in recommended_models()
    ]
    found = best_of(verdicts)
    assert found is not None and found.repo == best
