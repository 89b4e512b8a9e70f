"""A model with recurrent layers is planned with a cache in those alone that attend, and with a state in each other."""

from __future__ import annotations

import pytest

from core.checkpoint.attention import FullAttention
from core.checkpoint.recurrent import GatedDeltaNet, ShortConv
from core.memory.cpu_fit import check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.layer_state import ConvStatePlan, DeltaStatePlan, num_state_rows
from core.memory.model_shape import read_shape
from core.memory.plan import state_bytes
from tests.support.qwen3_5_release import qwen3_5_27b

CARD = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)
LARGE = DeviceMemory("RTX A6000", 49_140, (8, 6), reserved_mib=510)
# Of one token in one layer that attends: keys and values of 4 heads of 256 in half precision.
TOKEN_BYTES = 2 * 4 * 256 * 2


def test_a_cache_is_counted_in_the_layers_that_attend_alone() -> None:
    checkpoint = qwen3_5_27b(is_whole=True)
    kinds = [type(layer.mixer) for layer in checkpoint.layers]
    assert (kinds.count(FullAttention), kinds.count(GatedDeltaNet)) == (16, 48)
    shape = read_shape(checkpoint)
    growth = state_bytes(shape, 9000, 1) - state_bytes(shape, 1000, 1)
    assert growth == 16 * 8000 * TOKEN_BYTES
    # 48 value heads of 128 x 128 in float32 and the last three inputs of 10240 channels in half precision, by row.
    states = 48 * num_state_rows(1) * (48 * 128 * 128 * 4 + 10240 * 3 * 2)
    assert state_bytes(shape, 0, 1) == states + 16 * TOKEN_BYTES


@pytest.mark.parametrize(("is_whole", "card", "fits"), [(True, CARD, True), (False, CARD, False), (False, LARGE, True)])
def test_the_verdict_says_the_longest_context_that_follows(is_whole: bool, card: DeviceMemory, fits: bool) -> None:
    checkpoint = qwen3_5_27b(is_whole)
    report = check_fit(checkpoint, [card])
    assert report.fits == fits
    if fits:
        assert check_fit(checkpoint, [card], report.max_context).fits
        assert report.max_context > 50_000
        longer = report.max_context + 4096
        assert longer > checkpoint.max_context_tokens or not check_fit(checkpoint, [card], longer).fits


def test_parts_that_do_not_run_are_said_and_not_counted() -> None:
    checkpoint = qwen3_5_27b(is_whole=True)
    noted = {key for key, _ in check_fit(checkpoint, [CARD]).notes}
    assert {"without_pictures", "without_guessing"} <= noted
    assert not any("mtp" in name or "visual" in name for name in checkpoint.tensors)
    assert checkpoint.left_out_bytes == 2 * (5120 * 10240 + 1152 * 3 * 2 * 16 * 16)


def test_more_chats_take_a_state_and_its_snapshots_each() -> None:
    net, conv = GatedDeltaNet(16, 48, 128, 128, 4), ShortConv(2048, 3)
    for plan, mixer in ((DeltaStatePlan(), net), (ConvStatePlan(), conv)):
        one, two, five = (plan.state_bytes(mixer, 4096, count) for count in (1, 2, 5))
        assert one < two < five and five - two == pytest.approx(3 * (two - one), rel=0.01)
        assert plan.state_bytes(mixer, 100_000, 2) == two
        assert plan.activation_bytes(mixer, 512, 0, False) > plan.activation_bytes(mixer, 64, 0, False) > 0


def test_a_cpu_s_verdict_counts_the_same_layers() -> None:
    report = check_cpu_fit(qwen3_5_27b(is_whole=True), available_mib=32_000, bandwidth_gb_s=20.0)
    assert report.fits and report.max_context > 100_000
