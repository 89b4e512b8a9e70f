"""The verdict: what fits, at which context, on which cards, and which contradictions a checkpoint's shape tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError, EngineError, InputError
from core.common.i18n import catalogue as texts
from core.common.i18n import translate
from core.gpu.known_gpus import lookup
from core.gpu.snapshot import Gpu, GpuProcess
from core.library import catalogue
from core.memory.adapter_room import AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit, require_fit
from core.memory.fit_report import FitReport
from core.memory.model_shape import read_shape
from core.memory.pages import PAGE_TOKENS
from core.memory.plan import table_bytes
from core.memory.sizes import MIB
from core.memory.step_sizes import LARGE_CHUNK_TOKENS, LEAN_SIZES, USUAL_SIZES, StepSizes

if TYPE_CHECKING:
    from tests.support.nvml_standin import Probe, Standin

pytest_plugins = ("tests.support.nvml_standin",)

AMPERE = (8, 6)
SMALL = "Llama-2-7B-Chat-GPTQ"
LARGE = "Llama-2-70B-Chat-GPTQ"


def known(name: str, branch: str = "main") -> Checkpoint:
    return catalogue.checkpoint(catalogue.find(name, branch))


def card(total_mib: int, **changes: Any) -> DeviceMemory:
    return replace(DeviceMemory.empty("card", total_mib, AMPERE), **changes)


# Of Llama-2 7B it has room for about 1,200 tokens with captured steps, for 200 more with plain ones.
TIGHT = card(5840)


def needed_mib(report: FitReport) -> int:
    """The whole MiB that a card must have available for this verdict's plan."""
    (plan,) = report.plans
    return -(-plan.total // MIB)


def test_the_margin_is_what_is_available_less_what_is_needed() -> None:
    for total_mib in (4096, 8192, 24576):
        report = check_fit(known(SMALL), [card(total_mib)])
        assert report.available_mib == card(total_mib).available_mib
        assert report.margin_mib == pytest.approx(report.available_mib - report.needed_mib)
        assert report.fits == (report.margin_mib >= 0)


def test_more_memory_never_makes_a_model_not_fit() -> None:
    for chats in (1, 4):
        verdicts = [check_fit(known(SMALL), [card(mib)], 2048, chats).fits for mib in range(3000, 16000, 250)]
        assert verdicts == sorted(verdicts)
        assert len(set(verdicts)) == 2


def test_a_longer_context_never_makes_a_model_fit() -> None:
    verdicts = [check_fit(known(SMALL), [card(6144)], context).fits for context in range(64, 4097, 64)]
    assert verdicts == sorted(verdicts, reverse=True)
    assert len(set(verdicts)) == 2


@pytest.mark.parametrize("kernel", ["llamadeck", "triton"])
@pytest.mark.parametrize("chats", [1, 3])
def test_the_largest_context_fits_and_one_token_more_does_not(kernel: str, chats: int) -> None:
    small = card(7000)
    found = check_fit(known(SMALL), [small], 4096, chats, kernel).max_context
    assert 0 < found < 4096
    assert check_fit(known(SMALL), [small], found, chats, kernel).fits
    assert not check_fit(known(SMALL), [small], found + 1, chats, kernel).fits


def test_the_largest_context_is_never_above_the_models_own_limit() -> None:
    assert check_fit(known(SMALL), [card(80_000)], 100).max_context == 4096


def test_without_a_c_compiler_only_what_needs_none_is_counted_on() -> None:
    report = check_fit(known(SMALL), [card(24_576, has_c_compiler=False, capability=(7, 5))])
    assert report.load.kernel.name == "torch"


def test_a_kernel_that_was_refused_is_not_planned_with() -> None:
    cards = [card(24_576)]
    assert check_fit(known(SMALL), cards).load.kernel.name == "llamadeck"
    assert check_fit(known(SMALL), cards, without=["llamadeck"]).load.kernel.name == "triton"
    assert check_fit(known(SMALL), cards, without=["llamadeck", "triton"]).load.kernel.name == "torch"


def test_what_does_not_fit_says_what_would_make_it_fit() -> None:
    report = check_fit(known(SMALL), [card(8192)], 4096, 4)
    assert report.reason == "context_too_long"
    remedies = dict(report.remedies)
    assert list(remedies) == ["shorter_context", "shared_pool", "one_chat", "larger_card"]
    assert check_fit(known(SMALL), [card(8192)], int(remedies["shorter_context"]["context"]), 4).fits
    assert check_fit(known(SMALL), [card(8192)], int(remedies["one_chat"]["context"]), 1).fits
    larger = card(int(remedies["larger_card"]["needed"]) + card(8192).reserved_mib)
    assert check_fit(known(SMALL), [larger], 4096, 4, report.load.kernel.name).fits


def test_numbers_of_several_gpus_add_up_and_a_larger_one_needs_one_context() -> None:
    """Two lacked more than what is needed less what there is, and one in their place was to have two contexts."""
    two, one = check_fit(known(LARGE), [card(16_384)] * 2), check_fit(known(LARGE), [card(16_384)])
    assert not two.fits and two.params["margin"] == int(two.params["needed"]) - int(two.params["available"])
    assert dict(two.remedies)["larger_card"]["needed"] == one.params["needed"] < two.params["needed"]


def test_tokens_in_all_are_as_many_as_fit_to_the_page() -> None:
    report = check_fit(known(SMALL), [card(8192)], 4096, 8)
    pool_tokens = int(dict(report.remedies)["shared_pool"]["pool"])
    assert 4096 <= pool_tokens < 8 * 4096
    for more, fits in ((0, True), (PAGE_TOKENS, False)):
        shared = check_fit(known(SMALL), [card(8192)], 4096, 8, cache=CacheChoice(pool_tokens + more))
        assert (shared.fits, shared.load.pool_tokens) == (fits, pool_tokens + more)
    assert dict(shared.remedies)["shared_pool"]["pool"] == pool_tokens
    fitting = check_fit(known(SMALL), [card(8192)], 4096, 8, cache=CacheChoice(pool_tokens))
    assert fitting.reason == "fits_shared" and fitting.params["pool"] == pool_tokens
    assert 4096 <= fitting.max_context <= pool_tokens


def test_tokens_in_all_hold_one_chat_at_least_and_no_more_than_chats_can_fill() -> None:
    with pytest.raises(InputError) as caught:
        check_fit(known(SMALL), [card(24_576)], 4096, 8, cache=CacheChoice(4095))
    assert caught.value.key == "pool_range"
    every = check_fit(known(SMALL), [card(24_576)], 2048, 2, cache=EVERY_CHAT_FULL)
    more = check_fit(known(SMALL), [card(24_576)], 2048, 2, cache=CacheChoice(10**6))
    assert more.load.pool_tokens is None and more.plan == every.plan and more.reason == "fits"


def test_a_context_that_holds_no_answer_is_not_called_one_that_fits() -> None:
    found = [check_fit(known(SMALL), [card(mib)], 4096) for mib in range(4600, 5400, 20)]
    short = [report for report in found if 0 < report.max_context < 512]
    assert short and {report.reason for report in short} == {"too_large"}


def test_weights_alone_too_large_leave_no_context() -> None:
    report = check_fit(known(LARGE), [card(24_576)])
    assert (report.fits, report.reason, report.max_context) == (False, "too_large", 0)
    assert [name for name, _ in report.remedies] == ["larger_card"]


def test_what_others_hold_counts_and_ending_them_is_a_remedy_only_where_that_helps() -> None:
    free = check_fit(known(SMALL), [card(8192)])
    busy = check_fit(known(SMALL), [card(8192, others_mib=4000)])
    assert free.fits and not busy.fits
    assert busy.available_mib == free.available_mib - 4000
    assert ("end_others", {"others": 4000}) in busy.remedies
    hopeless = check_fit(known(LARGE), [card(24_576, others_mib=4000)])
    assert "end_others" not in dict(hopeless.remedies)


def test_what_the_loaded_model_gives_back_counts_as_free() -> None:
    held = card(8192, others_mib=6000, returning_mib=5900)
    assert check_fit(known(SMALL), [held]).available_mib == card(8192).available_mib - 100
    assert check_fit(known(SMALL), [held], 1024).fits


def test_a_card_smaller_than_what_its_driver_keeps_has_nothing_available() -> None:
    report = check_fit(known(SMALL), [card(100)])
    assert (report.available_mib, report.fits) == (0, False)


def test_two_cards_of_24_gb_take_70b_and_one_does_not() -> None:
    one = DeviceMemory.planned(lookup("RTX 3090"))
    assert not check_fit(known(LARGE), [one]).fits
    both = check_fit(known(LARGE), [one, one])
    assert both.fits
    assert len(both.plans) == 2
    assert both.available_mib == 2 * one.available_mib
    assert both.needed_mib == pytest.approx(both.plan.total / MIB, rel=0.001)
    assert all(plan.total <= one.available_mib * MIB for plan in both.plans)


def test_the_largest_context_over_several_cards_is_exact_too() -> None:
    cards = [card(19_400), card(21_400)]
    found = check_fit(known(LARGE), cards, 4096, 4).max_context
    assert 0 < found < 4096
    assert check_fit(known(LARGE), cards, found, 4).fits
    assert not check_fit(known(LARGE), cards, found + 1, 4).fits


def test_chats_share_tokens_over_several_cards_too() -> None:
    """Where not every chat could be full over two cards, only plain steps were looked at, which share nothing: no
    tokens in all were named, and a load that had them was said to hold less than the context that it had."""
    cards = [card(24_576), card(24_576)]
    refused = check_fit(known(LARGE), cards, 4096, 24)
    assert not refused.fits and refused.can_share
    pool_tokens = int(dict(refused.remedies)["shared_pool"]["pool"])
    shared = check_fit(known(LARGE), cards, 4096, 24, cache=CacheChoice(pool_tokens))
    assert (shared.reason, shared.load.is_captured, shared.load.pool_tokens) == ("fits_shared", True, pool_tokens)
    assert 4096 <= shared.max_context <= pool_tokens
    more = check_fit(known(LARGE), cards, 4096, 24, cache=CacheChoice(pool_tokens + PAGE_TOKENS))
    assert (more.fits, more.load.pool_tokens) == (False, pool_tokens + PAGE_TOKENS)
    assert dict(more.remedies)["shared_pool"]["pool"] == pool_tokens


def test_a_card_that_is_full_takes_no_part() -> None:
    """The split once went over all cards: a third one without room for CUDA's context made two good ones not fit."""
    good, full = card(24_576), card(24_576, others_mib=24_000)
    for cards in ([good, good, full], [full, good, good], [good, full, good]):
        report = check_fit(known(LARGE), cards)
        assert report.fits
        assert report.devices == (good, good)


def test_there_is_room_for_adapters_on_each_of_several_cards() -> None:
    """A model that fits over two cards was refused with room for adapters: it was held against each of them alone."""
    cards, room = [card(24_576), card(24_576)], AdapterRoom(2, 16)
    plain, adapted = check_fit(known(LARGE), cards), check_fit(known(LARGE), cards, adapters=room)
    assert plain.fits and adapted.fits and adapted.devices == tuple(cards)
    for before, after in zip(plain.load.memory, adapted.load.memory, strict=True):
        assert after.weights - before.weights == pytest.approx(adapted.load.shape.adapter_bytes / 2, rel=0.1)
    full = check_fit(known(LARGE), cards, adapters=AdapterRoom(16, 256))
    assert not full.fits and full.lacking_mib > 0


def test_a_model_that_fits_one_of_several_cards_stays_whole() -> None:
    report = check_fit(known(SMALL), [card(4096), card(24_576, name="large")])
    assert [one.name for one in report.devices] == ["large"]


def test_a_kernel_that_was_asked_for_is_taken_where_another_card_takes_it() -> None:
    old = card(24_576, capability=(6, 1))
    report = check_fit(known(SMALL), [old, card(24_576, name="new")], kernel="llamadeck")
    assert [one.name for one in report.devices] == ["new"]


def test_three_bits_have_no_kernel_but_torchs() -> None:
    checkpoint = known(LARGE, "gptq-3bit-128g-actorder_True")
    with pytest.raises(InputError, match="triton.*torch"):
        check_fit(checkpoint, [card(80_000)], kernel="triton")
    assert check_fit(checkpoint, [card(80_000)]).load.kernel.name == "torch"


def test_a_group_size_that_no_kernel_takes_is_said() -> None:
    found = known(SMALL)
    tensors = dict(found.tensors)
    for name in [name for name in tensors if name.endswith((".scales", ".qzeros"))]:
        rows = 8 * tensors[name.rpartition(".")[0] + ".qweight"].shape[0]
        tensors[name] = replace(tensors[name], shape=(math.ceil(rows / 48), tensors[name].shape[1]))
    odd = replace(found, quantization=replace(found.quantization, group_size=48), tensors=tensors)
    with pytest.raises(EngineError, match="group 48"):
        check_fit(odd, [card(24_576)])


@pytest.mark.parametrize("context", [-1, 4097, 10**15])
def test_a_context_that_the_model_cannot_have_is_refused_with_its_limit(context: int) -> None:
    with pytest.raises(InputError, match=f"4096.*{context}"):
        check_fit(known(SMALL), [card(24_576)], context)


@pytest.mark.parametrize("chats", [0, -1, 129])
def test_a_number_of_chats_that_cannot_be_is_refused(chats: int) -> None:
    with pytest.raises(InputError, match=str(chats)):
        check_fit(known(SMALL), [card(24_576)], 2048, chats)


def all_sentences() -> Iterator[tuple[str, dict[str, str | int | float]]]:
    reports = [
        check_fit(known(SMALL), [card(24_576)]),
        check_fit(known(SMALL), [card(8192)], 4096, 4),
        check_fit(known(SMALL), [card(8192)], 4096, 2),
        check_fit(known(SMALL), [card(8192, others_mib=4000)]),
        check_fit(known(LARGE), [card(24_576)]),
        check_fit(known(SMALL), [card(24_576)], 4096, 8, cache=CacheChoice(8192)),
        *(check_fit(known(SMALL), [TIGHT], context_tokens) for context_tokens in (1000, 1300, 1500)),
        check_fit(known(SMALL), [card(5240)], 64),
    ]
    for report in reports:
        yield report.reason, report.params
        if report.speed_note:
            yield report.speed_note
        yield from report.remedies


def test_keys_and_values_in_8_bit_are_planned_and_offered_where_only_they_fit() -> None:
    """Half as much, and a scale of 2 bytes for each 128 elements."""
    choices = CacheChoice(bits=16), CacheChoice(bits=8)
    in_16, in_8 = (check_fit(known(SMALL), [card(24_576)], 4096, 4, cache=choice) for choice in choices)
    table = table_bytes(4, 4096)
    caches = [report.load.memory[0].kv_cache - table for report in (in_16, in_8)]
    assert caches[1] * 2 == caches[0] * (1 + 2 / 128)
    refused = check_fit(known(SMALL), [card(8192)], 4096, 2)
    assert not refused.fits and "cache_bits" in dict(refused.remedies)
    assert check_fit(known(SMALL), [card(8192)], 4096, 2, cache=CacheChoice(bits=8)).fits


def test_every_reason_and_remedy_is_a_whole_sentence_in_both_languages() -> None:
    seen = {name for name, _ in all_sentences()}
    reasons = {"fits", "fits_shared", "context_too_long", "too_large"}
    remedies = {
        "shorter_context",
        "shorter_quick",
        "shared_pool",
        "one_chat",
        "cache_bits",
        "end_others",
        "larger_card",
    }
    assert seen == reasons | remedies | {"slow", "slow_context", "quick_until"}
    for name, params in all_sentences():
        for language in ("en", "zh"):
            assert f"fit.{name}" in texts(language)
            sentence = translate(language, f"fit.{name}", **params)
            assert sentence[-1] in ".。" and "{" not in sentence


def test_the_numbers_in_a_sentence_agree_with_each_other() -> None:
    for total_mib in range(6000, 9000, 111):
        params = check_fit(known(SMALL), [card(total_mib)]).params
        assert params["margin"] == abs(int(params["available"]) - int(params["needed"]))


def test_a_snapshot_becomes_a_card(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("two_4090")
    desktop, full = (gpu_from(entry) for entry in probe.snapshot()["gpus"])
    first, second = DeviceMemory.measured(desktop), DeviceMemory.measured(full)
    assert (first.total_mib, first.reserved_mib, first.others_mib) == (24564, 513, 431)
    assert first.available_mib == desktop.free_mib
    assert second.available_mib == full.free_mib == 500
    assert second.capability == (8, 9)


def test_what_our_own_process_holds_comes_back(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("two_4090")
    full = gpu_from(probe.snapshot()["gpus"][1])
    ours = DeviceMemory.measured(full, frozenset({999999903}))
    assert ours.returning_mib == 18200
    assert ours.available_mib == 500 + 18200


def test_an_old_driver_that_tells_no_reserve_counts_it_with_the_others(nvml_standin: Standin, probe: Probe) -> None:
    nvml_standin.use("half_supported")
    gpu = gpu_from(probe.snapshot()["gpus"][0])
    found = DeviceMemory.measured(gpu)
    assert found.reserved_mib == 0
    assert found.available_mib == gpu.free_mib


def gpu_from(entry: dict[str, Any]) -> Gpu:
    """A probe's JSON as the value that it was."""
    processes = tuple(GpuProcess(**process) for process in entry["processes"])
    capability = entry["compute_capability"] and tuple(entry["compute_capability"])
    return Gpu(**entry | {"processes": processes, "compute_capability": capability})


def without(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(f".{part}")}


def with_config(**changes: Any) -> Checkpoint:
    found = known(SMALL)
    return replace(found, config=found.config | changes)


def test_no_catalogue_entry_contradicts_its_tensors() -> None:
    layers = {"7B": 32, "13B": 40, "70B": 80}
    for entry in catalogue.entries():
        assert read_shape(catalogue.checkpoint(entry)).num_layers == layers[entry.size]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 31}, ["31 layers", "32"]),
        ({"num_hidden_layers": 33}, ["33 layers", "32"]),
        ({"hidden_size": 5120}, ["hidden_size", "5120", "embed_tokens"]),
        ({"num_key_value_heads": 8}, ["num_key_value_heads", "8", "k_proj"]),
        ({"intermediate_size": 11000}, ["intermediate_size", "11000", "gate_proj"]),
        ({"num_hidden_layers": "32"}, ["num_hidden_layers"]),
        ({"hidden_size": True}, ["hidden_size"]),
        ({"num_attention_heads": None}, ["num_attention_heads"]),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_shape(with_config(**changes))
    assert all(word in str(caught.value) for word in named)


@pytest.mark.parametrize(("name", "value"), [("bits", 8), ("bits", 3), ("group_size", 64), ("group_size", -1)])
def test_bits_and_groups_are_those_of_the_tensors_whatever_is_said(name: str, value: int) -> None:
    found = known(SMALL)
    wrong: dict[str, Any] = {name: value}
    assert read_shape(replace(found, quantization=replace(found.quantization, **wrong))) == read_shape(found)


@pytest.mark.parametrize("shape", [(), (4096,), (1, 2, 3)])
def test_a_matrix_of_no_two_sides_is_refused(shape: tuple[int, ...]) -> None:
    """A qweight of one side once ended in an IndexError."""
    found = known(SMALL)
    name = "model.layers.0.mlp.down_proj.qweight"
    tensors = found.tensors | {name: replace(found.tensors[name], shape=shape)}
    with pytest.raises(CheckpointError, match="down_proj.qweight"):
        read_shape(replace(found, tensors=tensors))


@pytest.mark.parametrize("number", ["9" * 5000, "1" * 10, "٣"], ids=["thousands", "ten", "arabic"])
def test_a_layers_number_of_thousands_of_digits_is_none(number: str) -> None:
    """Python refuses to read it, with an error that no page expects."""
    found = known(SMALL)
    more = {f"model.layers.{number}.x": replace(found.tensors["model.norm.weight"], shape=(0,))}
    assert read_shape(replace(found, tensors=found.tensors | more)).num_layers == 32


def test_a_text_config_that_is_no_object_is_not_looked_into() -> None:
    assert read_shape(with_config(text_config=[1])) == read_shape(known(SMALL))


@pytest.mark.parametrize(("total_mib", "key"), [(3000, "load_too_large"), (5600, "load_context_too_long")])
def test_a_load_that_does_not_fit_is_refused_with_its_numbers_unless_forced(total_mib: int, key: str) -> None:
    with pytest.raises(EngineError) as refused:
        require_fit(known(SMALL), [card(total_mib)], 4096, 1, None, force=False)
    assert refused.value.key == key
    assert refused.value.params["needed"] > refused.value.params["available"]
    assert f"{refused.value.params['needed']} MiB" in str(refused.value)
    assert not require_fit(known(SMALL), [card(total_mib)], 4096, 1, None, force=True).fits


def test_a_load_that_fits_takes_the_kernel_of_the_verdict() -> None:
    report = require_fit(known(SMALL), [card(24000)], 4096, 1, None, force=False)
    assert report.fits and report.load.kernel.name == check_fit(known(SMALL), [card(24000)], 4096, 1).load.kernel.name


def test_steps_are_captured_where_there_is_room_and_never_decide_whether_it_fits() -> None:
    smallest = next(mib for mib in range(5000, 8000, 10) if check_fit(known(SMALL), [card(mib)], 4096).fits)
    tight, roomy = (check_fit(known(SMALL), [card(mib)], 4096) for mib in (smallest, smallest + 500))
    assert roomy.load.is_captured and roomy.plan.graphs > 0
    assert tight.fits and not tight.load.is_captured and tight.plan.graphs == 0 < tight.plan.pool < roomy.plan.pool


def test_the_longest_quick_context_is_where_captured_steps_end() -> None:
    report = check_fit(known(SMALL), [TIGHT], 1000)
    quick = report.quick_context
    assert quick is not None and 1000 < quick < report.max_context < 2 * quick
    assert report.load.is_captured and not report.is_slow
    assert report.speed_note == ("quick_until", {"quick": quick})
    last, slow = (check_fit(known(SMALL), [TIGHT], context_tokens) for context_tokens in (quick, quick + 1))
    assert last.fits and last.load.is_captured
    assert slow.fits and slow.is_slow and slow.speed_note == ("slow_context", {"quick": quick})
    for one in (report, last, slow, check_fit(known(SMALL), [TIGHT], 4096)):
        assert (one.quick_context, one.max_context, one.proposed_context) == (quick, report.max_context, quick)


def test_nothing_is_said_of_speed_where_every_context_is_quick_and_where_nothing_fits() -> None:
    assert check_fit(known(SMALL), [card(24_576)]).speed_note is None
    assert check_fit(known(LARGE), [card(24_576)]).speed_note is None


def test_a_short_quick_context_is_not_proposed_in_place_of_one_that_is_twice_as_long() -> None:
    report = check_fit(known(SMALL), [TIGHT], 1000)
    half = replace(report, quick_context=report.max_context // 2)
    less = replace(report, quick_context=report.max_context // 2 - 1)
    assert half.proposed_context == half.quick_context
    assert less.proposed_context == less.max_context


def test_where_not_even_a_short_context_is_quick_no_length_is_named() -> None:
    report = check_fit(known(SMALL), [card(5240)], 64)
    assert report.fits and report.is_slow and report.quick_context == 0
    assert report.speed_note == ("slow", {}) and report.proposed_context == report.max_context


def test_what_no_kernel_captures_is_told_by_a_note_and_has_no_quick_context() -> None:
    report = check_fit(known(SMALL), [card(24_576)], kernel="torch")
    assert report.fits and report.is_slow and report.quick_context is None and report.speed_note is None
    assert ("plain_kernel", {"kernel": "torch"}) in report.notes
    for language in ("en", "zh"):
        assert "torch" in translate(language, "note.plain_kernel", kernel="torch")
    assert check_fit(known(SMALL), [card(24_576)]).notes == ()


def test_the_usual_context_is_shortened_where_that_makes_it_quick() -> None:
    """A few MiB too few for captured steps with 4096 tokens once made every load of the usual context slow."""
    sizes = range(7000, 7600, 10)
    smallest = next(mib for mib in sizes if check_fit(known(SMALL), [card(mib)], 4096).fits)
    asked, usual = (check_fit(known(SMALL), [card(smallest)], context_tokens) for context_tokens in (4096, 0))
    assert asked.is_slow and asked.load.context_tokens == 4096
    assert usual.fits and not usual.is_slow and usual.load.context_tokens == asked.quick_context


def test_what_is_slow_on_one_card_is_quick_on_another_one_or_on_two() -> None:
    slow = check_fit(known(SMALL), [TIGHT], 1300)
    assert slow.is_slow
    roomy = check_fit(known(SMALL), [TIGHT, card(24_576, name="large")], 1300)
    assert [device.index for device in roomy.load.devices] == [1] and not roomy.is_slow
    both = check_fit(known(SMALL), [TIGHT, TIGHT], 1300)
    assert [device.index for device in both.load.devices] == [0, 1] and not both.is_slow
    # What would be quick alone is still on the first.
    assert len(check_fit(known(SMALL), [TIGHT, TIGHT], 1000).load.devices) == 1


def test_a_context_to_take_instead_is_one_that_is_quick() -> None:
    report = check_fit(known(SMALL), [TIGHT], 4096)
    assert not report.fits
    remedy = dict(report.remedies)["shorter_quick"]
    assert remedy == {"context": report.quick_context, "max_context": report.max_context}
    assert not check_fit(known(SMALL), [TIGHT], int(remedy["context"])).is_slow


def test_where_memory_is_tight_steps_take_less_at_once_before_a_context_is_refused() -> None:
    """Rows for tokens that may be verified were counted for every load, and a card of 12 GB lost a model of 14B with a
    context for a long answer."""
    cards = [card(mib) for mib in range(6400, 9000, 10)]
    loads = [report.load for report in (check_fit(known(SMALL), [one], 4096) for one in cards) if report.fits]
    found = list(dict.fromkeys((load.is_captured, *load.sizes) for load in loads))
    # With a little more room the same steps are larger; captured ones come first, though they are smaller.
    captured = [LEAN_SIZES, USUAL_SIZES, *map(StepSizes, reversed(LARGE_CHUNK_TOKENS))]
    assert found == [(False, *LEAN_SIZES), (False, *USUAL_SIZES), *((True, *sizes) for sizes in captured)]


def test_what_does_not_fit_is_told_by_what_takes_the_least() -> None:
    for cards in ([card(5400)], [card(2600), card(2600)]):
        refused = check_fit(known(SMALL), cards, 4096)
        assert not refused.fits
        assert refused.load.sizes == LEAN_SIZES
