"""The verdict for a CPU: what a model takes of a machine's memory, and about how fast it writes there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError, InputError
from core.common.i18n import translate
from core.library import catalogue
from core.memory.cpu_fit import PROCESS_BYTES, CpuReport, check_cpu_fit, speed_text
from core.memory.host_bandwidth import measured_gb_s
from core.memory.sizes import MIB


def llama(size: str, branch: str | None = None) -> Checkpoint:
    return catalogue.checkpoint(catalogue.find(f"TheBloke/Llama-2-{size}-Chat-GPTQ", branch))


def report(size: str, available_mib: int, context_tokens: int = 0, branch: str | None = None) -> CpuReport:
    return check_cpu_fit(llama(size, branch), context_tokens, 1, available_mib=available_mib, bandwidth_gb_s=20.0)


def test_the_weights_the_context_and_the_process_are_counted() -> None:
    found = report("7B", 16_000)
    weights, cache = llama("7B").size_bytes, 2 * 32 * 4096 * 4096 * 2
    assert found.fits and found.kernel.name == "aten_int4"
    assert found.needed_mib == pytest.approx((weights + cache + PROCESS_BYTES) / MIB, rel=0.08)


def test_what_no_kernel_of_a_cpu_takes_packed_is_dequantized() -> None:
    """Eight bits a weight on disk, sixteen in memory."""
    packed, dense = report("13B", 64_000), report("13B", 64_000, branch="gptq-8bit-128g-actorder_True")
    assert dense.kernel.name == "dense" and dense.needed_mib > 2.5 * packed.needed_mib
    assert dense.tokens_per_s < packed.tokens_per_s / 3


def test_a_shorter_context_is_told_where_it_fits() -> None:
    found = report("7B", 5_500, 4096)
    assert (found.fits, found.reason) == (False, "cpu_context_too_long")
    assert report("7B", 5_500, found.max_context).fits
    assert not report("7B", 5_500, found.max_context + 1).fits
    assert report("70B", 5_500).reason == "cpu_too_large"


def test_the_speed_is_the_memorys_over_the_bytes_of_a_token() -> None:
    slow, fast = (check_cpu_fit(llama("7B"), available_mib=16_000, bandwidth_gb_s=speed) for speed in (10.0, 100.0))
    assert fast.tokens_per_s == pytest.approx(10 * slow.tokens_per_s)
    assert (slow.reason, fast.reason) == ("cpu_fits_slow_one", "cpu_fits")
    assert slow.tokens_per_s == pytest.approx(0.4 * 10e9 / 3.7e9, rel=0.1)


def test_an_estimate_has_one_digit_that_counts() -> None:
    assert [speed_text(speed) for speed in (0.02, 0.34, 1.4, 8.8, 23.0, 260.0)] == ["0.1", "0.3", "1", "9", "20", "300"]


def test_one_token_a_second_is_one_and_too_short_a_context_is_none() -> None:
    one = check_cpu_fit(llama("7B"), available_mib=16_000, bandwidth_gb_s=10.0)
    assert (one.reason, one.is_slow) == ("cpu_fits_slow_one", True)
    assert "about one token a second" in translate("en", f"fit.{one.reason}", **one.params)
    short = check_cpu_fit(llama("7B"), available_mib=5_500, bandwidth_gb_s=10.0)
    assert short.reason == "cpu_context_too_long_one"
    least = report("7B", 5_500, 256).needed_mib
    assert report("7B", int(least)).reason == "cpu_too_large"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("available_mib", [1_000, 5_500, 16_000])
def test_every_reason_is_a_whole_sentence(language: str, available_mib: int) -> None:
    found = report("7B", available_mib)
    sentence = translate(language, f"fit.{found.reason}", **found.params)
    assert "{" not in sentence and str(available_mib) in sentence


def test_what_runs_nowhere_and_what_cannot_be_asked_is_refused_here_too() -> None:
    moe = replace(llama("7B"), config=llama("7B").config | {"model_type": "dbrx", "num_local_experts": 32})
    with pytest.raises(CheckpointError):
        check_cpu_fit(moe)
    with pytest.raises(InputError):
        check_cpu_fit(llama("7B"), 1_000_000)
    with pytest.raises(InputError):
        check_cpu_fit(llama("7B"), num_chats=0)


def test_this_machine_moves_memory() -> None:
    assert measured_gb_s() > 0
