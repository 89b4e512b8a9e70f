"""The plan and the verdict of mixtures of experts, from the headers of well-known releases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.checkpoint.checkpoint import Checkpoint, SettledTensors
from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import DenseMlp, Experts
from core.checkpoint.recurrent import ShortConv
from core.common.errors import CheckpointError
from core.memory import load_ways
from core.memory.adapter_room import AdapterRoom
from core.memory.cpu_fit import check_cpu_fit, token_bytes
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.kernels.cpu import ATEN_INT4
from core.memory.kernels.gptqmodel import TRITON
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.model_shape import read_shape
from core.memory.plan import mlp_bytes, weight_bytes
from tests.support.qwen3_5_release import qwen3_5_27b
from tests.support.release_headers import MIXTRAL_8X7B, QWEN3_30B_A3B, moe_release

RTX_4090 = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)
DENSE = DenseMlp(6144)
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 1024}


@pytest.fixture(scope="module")
def qwen() -> Checkpoint:
    return moe_release(QWEN3_30B_A3B)


@pytest.fixture
def small() -> Checkpoint:
    return moe_release(QWEN3_30B_A3B | SMALL)


def test_qwen3_30b_a3b_fits_a_card_of_24_gb(qwen: Checkpoint) -> None:
    report = check_fit(qwen, [RTX_4090])
    assert report.fits and report.load.kernel is LLAMADECK and report.load.is_captured
    # 30.5 billion weights: 29.9 in 4 bit with a scale of 16 bit for 128 of them, the two tables in 16 bit.
    matrices = 48 * (2048 * (4096 + 2 * 512) + 4096 * 2048 + 128 * 3 * 2048 * 768)
    wanted = matrices * (4 + 16 / 128) / 8 + 2 * 151936 * 2048 * 2 + 48 * 128 * 2048 * 2
    assert report.load.memory[0].weights == pytest.approx(wanted, rel=0.001)
    assert report.max_context == 40960
    assert not check_fit(qwen, [replace(RTX_4090, total_mib=16_376)]).fits


def test_room_for_adapters_of_experts_is_counted_where_somebody_wants_it(qwen: Checkpoint) -> None:
    """At rank 16 a place takes 1.6 GB, beside 48 MB for the other matrices."""
    plain, dense, all_of_them = (
        read_shape(qwen, True, AdapterRoom(count, 16, has_experts))
        for count, has_experts in ((0, True), (2, False), (2, True))
    )
    assert plain.adapter_bytes == 0
    of_experts = 48 * 128 * 3 * (2048 + 768) * 2 * 16 * 2
    assert all_of_them.adapter_bytes - dense.adapter_bytes == of_experts == pytest.approx(2 * 1.66e9, rel=0.01)
    assert weight_bytes(all_of_them, LLAMADECK) - weight_bytes(plain, LLAMADECK) == all_of_them.adapter_bytes
    assert check_fit(qwen, [RTX_4090], adapters=AdapterRoom(2, 16, True)).fits
    assert not check_fit(qwen, [RTX_4090], adapters=AdapterRoom(8, 16, True)).fits
    assert check_fit(qwen, [RTX_4090], adapters=AdapterRoom(8, 16)).fits


@pytest.mark.parametrize(
    ("room", "rank", "changes_experts", "wanted"),
    [
        (AdapterRoom(), 8, False, False),
        (AdapterRoom(0, 8, True), 8, False, False),
        (AdapterRoom(1, 8), 8, False, True),
        (AdapterRoom(1, 8), 9, False, False),
        (AdapterRoom(1, 8), 8, True, False),
        (AdapterRoom(1, 8, True), 8, True, True),
    ],
)
def test_a_room_holds_what_it_was_made_for(room: AdapterRoom, rank: int, changes_experts: bool, wanted: bool) -> None:
    assert room.holds(rank, changes_experts) is wanted


def test_a_token_on_a_cpu_reads_the_adapters_of_its_own_experts_alone(qwen: Checkpoint) -> None:
    """Those of all experts were counted, so that a mixture was said to write 40 times more slowly than it did."""
    dense, of_experts = (
        token_bytes(read_shape(qwen, True, AdapterRoom(4, 64, has_experts)), ATEN_INT4) for has_experts in (False, True)
    )
    # 8 of 128 experts.
    assert of_experts - dense == pytest.approx(48 * 8 * 3 * (2048 + 768) * 2 * 4 * 64, rel=0.01)


def test_long_prompts_are_read_in_larger_passes_where_there_is_room(qwen: Checkpoint) -> None:
    """Each pass reads all experts."""
    recurrent = read_shape(qwen3_5_27b(is_whole=True), merged=True)
    experts = read_shape(qwen, merged=True)
    assert [one.chunk_tokens for one in load_ways.large_sizes(experts, 4096)] == [4096, 2048, 1024]
    assert [one.chunk_tokens for one in load_ways.large_sizes(experts, 1500)] == [1024]
    assert [one.chunk_tokens for one in load_ways.large_sizes(recurrent, 4096)] == [2048, 1024]
    conv = replace(recurrent.layers[0][0], mixer=ShortConv(64, 3))
    assert load_ways.large_sizes(replace(recurrent, layers=(*recurrent.layers, (conv, 1))), 4096) == []
    both = replace(experts, layers=(*experts.layers, *recurrent.layers))
    assert len(load_ways.large_sizes(both, 4096)) == 3
    dense = replace(experts, layers=tuple((replace(layer, mlp=DENSE), count) for layer, count in experts.layers))
    assert [one.chunk_tokens for one in load_ways.large_sizes(dense, 4096)] == [2048, 1024]
    h200 = DeviceMemory("H200", 143_771, (9, 0), reserved_mib=700)
    assert check_fit(qwen, [h200], 4096).load.sizes.chunk_tokens == 4096
    assert check_fit(qwen, [h200], 1024).load.sizes.chunk_tokens == 1024


def test_one_token_on_a_cpu_reads_the_experts_that_it_goes_through_alone(qwen: Checkpoint) -> None:
    """It was said to write half a token a second."""
    report = check_cpu_fit(qwen, available_mib=32_000, bandwidth_gb_s=20.0)
    assert report.fits and report.kernel is ATEN_INT4
    # 3.3 billion weights of a token: 0.6 GB of the head, 1.6 GB of matrices.
    assert 8.0 / report.tokens_per_s == pytest.approx(2.1, abs=0.3)


def test_all_matrices_of_all_experts_count(small: Checkpoint) -> None:
    for merged in (False, True):
        shape = read_shape(small, merged)
        # An expert's gate and up are one matrix, whether query, key and value are or not.
        sizes = {(one.in_features, one.out_features): count for one, count in shape.expert_matrices}
        assert sizes == {(2048, 2 * 768): 2 * 4, (768, 2048): 2 * 4}
        assert set(shape.expert_matrices) <= set(shape.matrices)


def test_mixtrals_experts_count_by_the_names_of_its_files() -> None:
    shape = read_shape(moe_release(MIXTRAL_8X7B | {"num_hidden_layers": 2, "num_local_experts": 4}))
    assert {(one.in_features, one.out_features): count for one, count in shape.expert_matrices} == {
        (4096, 2 * 14336): 2 * 4,
        (14336, 4096): 2 * 4,
    }


def test_a_router_in_float32_counts_as_one(small: Checkpoint) -> None:
    half = weight_bytes(read_shape(small), LLAMADECK)
    whole = weight_bytes(read_shape(replace(small, config=small.config | {"model_type": "ernie4_5_moe"})), LLAMADECK)
    assert whole - half == 2 * (4 * 2048 * 2)


def test_what_runs_one_expert_after_the_other_is_not_captured(small: Checkpoint) -> None:
    shape = read_shape(small, merged=True)
    assert TRITON.is_capturable and not TRITON.can_capture(shape)
    assert TRITON.can_capture(replace(shape, layers=tuple((replace(one, mlp=DENSE), n) for one, n in shape.layers)))
    assert LLAMADECK.can_capture(shape)
    assert not LLAMADECK.can_capture(replace(shape, are_experts_alike=False))


def test_a_note_says_where_experts_run_one_after_the_other(small: Checkpoint) -> None:
    old_card = DeviceMemory("RTX 2080 Ti", 11_264, (7, 5), reserved_mib=510)
    assert check_fit(small, [RTX_4090]).notes == ()
    slow = check_fit(small, [old_card])
    assert (slow.load.kernel, slow.load.is_captured, slow.notes) == (TRITON, False, (("plain_experts", {}),))


def changed(checkpoint: Checkpoint, name: str, info: TensorInfo) -> Checkpoint:
    tensors = {key: value for key, value in checkpoint.tensors.items() if not key.startswith(name.rpartition(".")[0])}
    return replace(checkpoint, tensors=tensors | {name: info})


def test_experts_are_alike_where_all_are_quantized_in_one_way(small: Checkpoint) -> None:
    assert read_shape(small).are_experts_alike
    expert = "model.layers.1.mlp.experts.2.down_proj"
    plain = TensorInfo("model.safetensors", "BF16", (2048, 768), 0, 2048 * 768 * 2)
    assert not read_shape(changed(small, f"{expert}.weight", plain)).are_experts_alike
    scales = small.tensors[f"{expert}.scales"]
    finer = small.tensors | {
        f"{expert}.scales": replace(scales, shape=(12, 2048)),
        f"{expert}.qzeros": replace(small.tensors[f"{expert}.qzeros"], shape=(12, 256)),
    }
    assert not read_shape(replace(small, tensors=finer)).are_experts_alike
    for other in ({"hidden_act": "gelu"}, {"model_type": "gpt_oss"}):
        assert not read_shape(replace(small, config=small.config | other)).are_experts_alike


def test_an_experts_gate_and_up_have_to_be_in_one_order_once_that_is_known(small: Checkpoint) -> None:
    down, gate = ("model.layers.1.mlp.experts.2." + name for name in ("down_proj", "gate_proj"))
    for name, is_alike in ((down, True), (gate, False)):
        matrices = dict(small.matrices) | {name: replace(small.matrices[name], input_order=name)}
        assert replace(small, settled=SettledTensors(matrices)).has_like_experts == is_alike


def test_an_expert_of_another_size_than_the_configuration_says_is_named(small: Checkpoint) -> None:
    with pytest.raises(Exception, match="moe_intermediate_size"):
        read_shape(replace(small, config=small.config | {"moe_intermediate_size": 512}))


def test_a_shared_expert_is_as_wide_as_it_is(small: Checkpoint) -> None:
    shape, mlp = read_shape(small), Experts(4, 2, 768)
    narrow, wide = (mlp_bytes(shape, TRITON, replace(mlp, shared_intermediate=size), 512) for size in (8, 65536))
    assert wide == 3 * 512 * 65536 * 2 + 2 * 512 * 2048 * 2 > narrow > mlp_bytes(shape, TRITON, mlp, 512)


def test_stacked_experts_need_room_for_every_pair_of_a_token_and_an_expert(small: Checkpoint) -> None:
    shape, mlp = read_shape(small, merged=True), Experts(4, 2, 768)
    # The sums in float32 and what gate and up become, of 2 * 512 pairs.
    pairs = 2 * 512 * (2048 * 4 + 768 * 2)
    assert pairs < LLAMADECK.expert_bytes(shape, mlp, 512) < 1.4 * pairs
    # Many experts with 32 rows each: each has a tile of 64 rows that is not full.
    tiles = (128 + 64) * 64 * 2 * (2048 + 768)
    assert tiles < LLAMADECK.expert_bytes(shape, Experts(128, 8, 768), 512) < 1.1 * tiles
    matrices = [(replace(one, format=replace(one.format, is_permuted=True)), n) for one, n in shape.expert_matrices]
    gathered = LLAMADECK.expert_bytes(replace(shape, expert_matrices=tuple(matrices)), mlp, 40)
    assert gathered - LLAMADECK.expert_bytes(shape, mlp, 40) == 2 * 40 * 2048 * 2


@pytest.mark.parametrize(
    ("release", "name"), [(MIXTRAL_8X7B, "intermediate_size"), (QWEN3_30B_A3B, "moe_intermediate_size")]
)
def test_experts_of_another_size_are_told_by_the_name_that_the_file_has(release: dict[str, Any], name: str) -> None:
    """Mixtral has no moe_intermediate_size, which the sentence spoke of."""
    checkpoint = moe_release(release | SMALL | {"num_local_experts": 4})
    changed = replace(checkpoint, config=checkpoint.config | {name: 512})
    with pytest.raises(CheckpointError) as caught:
        read_shape(changed)
    assert caught.value.key == "remote_config_tensors"
    assert f"by its configuration {name} is 512" in caught.value.sentence("en")
