"""The verdict on the pages Load Model, Download and Home, with GPUs of the stand-in driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.checkpoint.rope import ContextLimits
from core.library import catalogue
from core.library.last_model import LastModel, note_last_model
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dashboard import make_hollow_model
from tests.support.pages import run_page
from ui.download.branches import fitting_words
from ui.load.bar import Part, bar_html
from ui.load.gauge import context_choices, usual

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)


@pytest.fixture(scope="session")
def hollow_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hollow")
    for size in ("7B", "70B"):
        make_hollow_model(folder / size, f"TheBloke/Llama-2-{size}-Chat-GPTQ")
    return folder


@pytest.fixture(autouse=True)
def environment(hollow_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(hollow_models))
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_WORKER", "tests.support.fake_worker")


@pytest.mark.parametrize("limit", [1, 31, 256, 2048, 4096, 5000, 131_072])
def test_the_contexts_to_choose_from_hold_the_models_limit_and_the_default(limit: int) -> None:
    choices = context_choices(ContextLimits(limit, limit))
    assert choices == sorted(set(choices)) and choices[-1] == limit and min(limit, 4096) in choices
    assert choices[0] > 0 and len(choices) < 40


def test_where_a_rope_reaches_further_the_usual_end_is_among_the_contexts() -> None:
    choices = context_choices(ContextLimits(40_960, 131_072, "yarn"))
    assert {4096, 40_960, 65_536, 131_072} <= set(choices) and choices == sorted(set(choices)) and len(choices) < 40
    # Short ones stay as near to each other as without.
    assert choices[0] < 2048


@pytest.mark.parametrize("total_mib", [5840, 7200, 24_576])
def test_the_context_to_begin_with_is_quick(total_mib: int) -> None:
    """4096 tokens, and where these are slow the next fewer that are not; what somebody chose before stays."""
    checkpoint = catalogue.checkpoint(catalogue.find("TheBloke/Llama-2-7B-Chat-GPTQ"))
    devices = (DeviceMemory.empty("a card", total_mib, (8, 6)),)
    context_tokens, num_chats = usual(checkpoint, "7B", devices)
    asked, begun = check_fit(checkpoint, devices, 4096), check_fit(checkpoint, devices, context_tokens)
    assert num_chats == 1
    assert (context_tokens < 4096) is (asked.fits and asked.is_slow) is (total_mib == 7200)
    assert fitting_words(asked)[0] == {5840: "❌", 7200: "🐢", 24_576: "✅"}[total_mib]
    assert begun.is_slow is (total_mib == 5840)
    note_last_model(LastModel("7B", 4096, 2))
    assert usual(checkpoint, "7B", devices) == (4096, 2)


@pytest.mark.parametrize(
    ("locale", "quick_until", "slow"),
    [
        ("en-US", "quick with a context of up to 3,904 tokens; beyond", "several times slower like this"),
        ("zh-CN", "不超过 3,904 个 token 时速度快，超过", "这样运行会慢好几倍"),
    ],
)
def test_where_the_card_is_nearly_full_the_page_begins_with_a_quick_context_and_tells_of_a_slow_one(
    nvml_standin: Standin, locale: str, quick_until: str, slow: str
) -> None:
    free_mib, total_mib, reserved_mib = 6690, 24_564, 513
    nvml_standin.use("two_4090")
    first, gpu, _ = nvml_standin.scenario.read_text("utf-8").split("[gpu]")
    full = gpu.replace("used = 431", f"used = {total_mib - reserved_mib - free_mib}")
    nvml_standin.write(f"{first}[gpu]{full}")
    code = f"""
tab = open_tab("2_Load_Model", {locale!r})
begun, before = tab.select_slider(key="gauge_context_7B").value, words(tab)
tab.select_slider(key="gauge_context_7B").set_value(4096)
run(tab)
tell([begun, before, words(tab)])
"""
    begun, before, after = run_page(nvml_standin, code)
    assert begun == 3840
    assert quick_until in before and slow not in before
    assert slow in after and "3,904" in after and ":orange[:material/hourglass_bottom:]" in after


def test_a_bar_that_is_too_long_is_hatched_beyond_the_cards_end() -> None:
    parts = [Part("weights", 150.0, 0), Part("<cache>", 50.0, 2)]
    assert "left:50.000%" in bar_html(parts, 100.0, "too much")
    assert "left:" not in bar_html(parts, 200.0, "just right")
    assert "&lt;cache&gt;" in bar_html(parts, 200.0, "") and "<cache>" not in bar_html(parts, 200.0, "")


def test_a_model_that_fits_is_loaded_with_the_sliders_values(nvml_standin: Standin) -> None:
    code = """
tab = open_tab("2_Load_Model")
tab.select_slider(key="gauge_context_7B").set_value(2048)
tab.select_slider(key="gauge_chats_7B").set_value(4)
run(tab)
seen = words(tab)
load(tab, "7B")
facts = resources.engine().state.facts
tell([seen, facts.context_tokens, facts.num_slots])
"""
    seen, context_tokens, num_slots = run_page(nvml_standin, code)
    assert "fits on NVIDIA A40" in seen and "context of 2,048 tokens (chats at once: 4)" in seen
    assert (context_tokens, num_slots) == (2048, 4)


def test_a_model_that_does_not_fit_is_not_loaded_by_accident(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    code = """
tab = open_tab("2_Load_Model")
tell([words(tab), questions(tab)])
"""
    seen, in_popover = run_page(nvml_standin, code)
    assert "70B does not fit on NVIDIA GeForce RTX 4090" in seen and "Take a GPU with at least" in seen
    # Of the two models here one fits, whose kernel is named.
    assert seen.count("Kernel:") == 1
    assert in_popover == ["force_load_70B"]


def test_a_card_to_plan_for_changes_the_verdict_and_not_the_button(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    code = """
tab = open_tab("2_Load_Model")
tab.selectbox(key="plan_gpu").set_value("H200")
run(tab)
tell([words(tab), questions(tab)])
"""
    seen, in_popover = run_page(nvml_standin, code)
    assert "70B fits on H200" in seen
    assert in_popover == ["force_load_70B"]


def test_two_cards_of_one_kind_can_be_planned_for(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    code = """
tab = open_tab("2_Load_Model")
tab.selectbox(key="plan_gpu").set_value("RTX 3090")
run(tab)
one = words(tab)
tab.segmented_control(key="plan_gpu_count").set_value(2)
run(tab)
tell([one, words(tab)])
"""
    one, two = run_page(nvml_standin, code)
    assert "70B fits" not in one and "70B fits on RTX 3090 + RTX 3090" in two


@pytest.mark.parametrize(
    ("locale", "sentence", "memory"),
    [("en-US", "models run on the CPU", "this machine's memory"), ("zh-CN", "模型在 CPU 上运行", "本机内存")],
)
def test_without_a_gpu_models_are_for_the_cpu_and_a_card_can_be_planned_for(
    no_nvml: Standin, locale: str, sentence: str, memory: str
) -> None:
    code = f"""
tab = open_tab("2_Load_Model", {locale!r})
before = words(tab)
tab.selectbox(key="plan_gpu").set_value("A40")
run(tab)
tell([before, words(tab), len(questions(tab)), words(open_tab(None, {locale!r}))])
"""
    before, after, num_popovers, home = run_page(no_nvml, code)
    assert sentence in before and memory in before and sentence in home
    assert "A40" in after and "GiB" in after and num_popovers == 0


def test_what_is_said_to_be_slow_on_a_cpu_has_no_green_mark(no_nvml: Standin) -> None:
    code = """
page = '''
from core.memory.cpu_fit import CpuReport
from core.memory.kernels.cpu import DENSE
from ui.load.gauge import draw_verdict
draw_verdict(CpuReport("a", True, DENSE, 1.0, 2, 256, 1, 256, SPEED))
'''
from streamlit.testing.v1 import AppTest
pages = [AppTest.from_string(page.replace("SPEED", str(speed))) for speed in (1.2, 4.9, 5.0)]
tell([page.run().markdown[0].value for page in pages])
"""
    one, slow, fast = run_page(no_nvml, code)
    assert ":green" not in one + slow and ":green" in fast
    assert "about one token a second" in one and "about 5 tokens a second" in slow


@pytest.mark.parametrize("machine", ["no_nvml", "nvml_standin"])
def test_a_family_that_runs_nowhere_says_so_and_has_no_button(
    machine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "recurrent"
    make_checkpoint(folder, Recipe())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    monkeypatch.setenv("LLAMADECK_MODELS", str(folder.parent))
    code = """
tab = open_tab("2_Load_Model")
tell([words(tab), [button.key for button in tab.button], len(tab.select_slider)])
"""
    seen, buttons, num_sliders = run_page(request.getfixturevalue(machine), code)
    assert "recurrent (mamba) has recurrent layers" in seen
    assert not [key for key in buttons if "recurrent" in key and "load" in key]
    assert num_sliders == 0


def test_the_catalogue_has_a_verdict_beside_each_branch(nvml_standin: Standin) -> None:
    code = """
tab = open_tab("1_Download")
tab.segmented_control(key="find_list").set_value("llama2")
run(tab).selectbox(key="catalogue_repo").set_value("TheBloke/Llama-2-70B-Chat-GPTQ")
run(tab)
before = tab.dataframe[0].value.to_dict("records")
tab.selectbox(key="plan_gpu").set_value("RTX 4090")
run(tab)
tell([before, tab.dataframe[0].value.to_dict("records"), words(tab)])
"""
    on_a40, on_4090, seen = run_page(nvml_standin, code)
    assert {row["Branch"]: row["Verdict"] for row in on_a40}["main"] == "✅ fits"
    assert {row["Verdict"] for row in on_4090} == {"❌ does not fit"}
    assert "does not fit on RTX 4090" in seen


def test_a_gpu_that_hides_half_of_itself_breaks_no_page(nvml_standin: Standin) -> None:
    nvml_standin.use("half_supported")
    code = "tell([words(open_tab(page)) for page in (None, *PAGES)])"
    assert all(run_page(nvml_standin, code))


@pytest.mark.parametrize(
    ("locale", "sentence"),
    [
        ("en-US", "driver 535.104.05 runs CUDA up to 12.2, and torch 2.11.0+cu130 here was built for CUDA 13.0"),
        ("zh-CN", "驱动 535.104.05 最高支持 CUDA 12.2，而这里的 torch 2.11.0+cu130 是为 CUDA 13.0 构建的"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said_before_a_click(nvml_standin: Standin, locale: str, sentence: str) -> None:
    """The verdict once said that the model fits the card, and the load then went to the CPU."""
    nvml_standin.use("driver_535")
    nvml_standin.write_torch("2.11.0+cu130", "13.0")
    code = f"""
pages = {{name: open_tab(name, {locale!r}) for name in (None, "2_Load_Model", "3_Chat", "5_GPU_Monitor")}}
said, tab = [words(page) for page in pages.values()], pages["2_Load_Model"]
in_popover = questions(tab)
tab.selectbox(key="plan_gpu").set_value("A40")
run(tab)
planned = words(tab)
click(tab, "load_on_cpu_7B")
state = resources.engine().wait_while_loading(WAIT_S)
tell([said, in_popover, planned, state.phase, state.facts.memory is None])
"""
    pages, in_popover, planned, phase, is_on_cpu = run_page(nvml_standin, code)
    plain = [page.replace("\\", "") for page in pages]
    assert [sentence in page for page in plain] == [True, True, True, True]
    assert not any(fits in page for page in plain[1:3] for fits in ("fits on", "可以放进 NVIDIA"))
    assert in_popover == ["load_on_cpu_70B", "load_on_cpu_7B"] and "A40" in planned and "GiB" in planned
    assert (phase, is_on_cpu) == ("ready", True)


def test_what_the_engine_itself_found_goes_before_what_is_sure_without_it(nvml_standin: Standin) -> None:
    """A library of cuda-compat lets an old driver run CUDA 13; a GPU that no longer answers is said all the same."""
    nvml_standin.use("driver_535")
    nvml_standin.write_torch("2.11.0+cu130", "13.0")
    code = """
from core.engine.protocol import ImportsDone
from core.common.errors import GpuUseError
from core.gpu.torch_support import InstalledTorch
known = InstalledTorch("2.11.0+cu130", "13.0", ("sm_80",))
seen = []
def look():
    tab = open_tab("2_Load_Model")
    seen.append(words(tab) + str(len(questions(tab))))
for report in (
    ImportsDone(known), ImportsDone(known, GpuUseError("gpu_cuda_unknown", gpus="A40", code=999)),
    ImportsDone(InstalledTorch("2.11.0+cu130", "13.0", ("sm_90",))),
):
    resources.engine().local._on_imports_done(report)
    look()
tell(seen)
"""
    works, fails, has_no_code = run_page(nvml_standin, code)
    assert "7B fits on NVIDIA A40" in works and works.endswith("0")
    assert "error 999" in fails and "fits on" not in fails and fails.endswith("2")
    assert "fits on" not in has_no_code


def test_whoever_starts_with_cpu_has_chosen_it(nvml_standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_CPU", "1")
    code = """
tab = open_tab("2_Load_Model")
seen, popovers = words(tab), len(questions(tab))
load(tab, "7B")
state = resources.engine().state
tell([seen, popovers, state.phase, state.facts.memory is None])
"""
    seen, popovers, phase, is_on_cpu = run_page(nvml_standin, code)
    assert "started with --cpu" in seen and "fits on" not in seen and popovers == 0
    assert (phase, is_on_cpu) == ("ready", True)


def test_the_sliders_begin_where_the_last_load_of_the_model_was(nvml_standin: Standin) -> None:
    code = """
from core.library.last_model import LastModel, note_last_model
note_last_model(LastModel("7B", 2050, 5))
tab = open_tab("2_Load_Model")
tell([tab.select_slider(key=f"gauge_{name}").value for name in ("context_7B", "chats_7B", "chats_70B")])
"""
    assert run_page(nvml_standin, code) == [2048, 4, 1]


@pytest.mark.parametrize(
    ("locale", "promise", "longest", "serves"),
    [
        ("en-US", "8,192 tokens for all chats together", "with so many tokens in all: 4,096", "8,192 tokens in all"),
        ("zh-CN", "所有聊天合计 8,192 个 token", "限定这个总数时显存足够的最长上下文：4,096", "总共 8,192 个 token"),
    ],
)
def test_chats_can_share_tokens_in_all(
    nvml_standin: Standin, locale: str, promise: str, longest: str, serves: str
) -> None:
    """Only where there are several; the next load of the model begins with it."""
    code = f"""
from core.library.last_model import last_load
tab = open_tab("2_Load_Model", {locale!r})
tab.select_slider(key="gauge_chats_7B").set_value(8)
run(tab)
choices = named(tab.selectbox, "gauge_pool_8_7B").options
named(tab.selectbox, "gauge_pool_8_7B").set_value(2)
run(tab)
seen, alone = words(tab), [one.key for one in tab.selectbox if re.match("gauge_pool.*_70B", str(one.key))]
load(tab, "7B")
run(tab)
facts = resources.engine().state.facts
tell([choices, seen, alone, facts.pool_tokens, words(tab), last_load("7B").cache.pool_tokens])
"""
    choices, seen, alone, pool_tokens, loaded, kept = run_page(nvml_standin, code)
    assert len(choices) == 4 and promise in seen and longest in seen and alone == []
    assert (pool_tokens, kept) == (8192, 8192) and serves in loaded


def test_the_tokens_in_all_stay_chosen_when_the_context_moves(nvml_standin: Standin) -> None:
    """With 8 chats of 256 tokens one context and two come to the same tokens: the choice moved on to the second, and
    was twice as many when the context was back. It fell back to a whole context for each before that."""
    code = """
tab = open_tab("2_Load_Model")
tab.select_slider(key="gauge_chats_7B").set_value(8)
run(tab)
named(tab.selectbox, "gauge_pool_8_7B").set_value(1)
seen = []
for context in (4096, 256, 384, 4096):
    tab.select_slider(key="gauge_context_7B").set_value(context)
    run(tab)
    box = named(tab.selectbox, "gauge_pool_8_7B")
    seen.append([box.options[1:], box.options[box.index]])
tell(seen)
"""
    whole = [["4,096 tokens in all", "8,192 tokens in all", "16,384 tokens in all"], "4,096 tokens in all"]
    first, short, longer, last = run_page(nvml_standin, code)
    assert first == last == whole
    assert short == [["512 tokens in all", "1,024 tokens in all"], "512 tokens in all"]
    assert longer[1] == "512 tokens in all" and len(set(longer[0])) == len(longer[0])


def test_a_step_from_before_the_context_moved_chooses_the_tokens_in_all(nvml_standin: Standin) -> None:
    """The browser sends the choice of the widget that it still shows, by its old words, and the context that it has."""
    code = """
from tests.support.fresh_browser import seen, send_late
tab = open_tab("2_Load_Model")
tab.select_slider(key="gauge_chats_7B").set_value(8)
run(tab)
old, before = named(tab.selectbox, "gauge_pool_8_7B"), seen(tab)
for one in before.widgets:
    if one.id == old.id:
        one.string_value = old.options[2]
tab.select_slider(key="gauge_context_7B").set_value(2048)
tab = run(send_late(run(tab), before))
box = named(tab.selectbox, "gauge_pool_8_7B")
tell([old.options[2], box.options[box.index]])
"""
    assert run_page(nvml_standin, code) == ["8,192 tokens in all"] * 2


def test_a_step_in_the_language_before_keeps_the_card_that_is_planned_for(nvml_standin: Standin) -> None:
    """It was late, and told the card by words that are none of the choices any more."""
    code = """
from tests.support.fresh_browser import seen, send_late
tab = open_tab("2_Load_Model", "zh-CN")
run(tab)
tab.selectbox(key="plan_gpu").set_value("A40")
run(tab)
card, before = tab.selectbox(key="plan_gpu"), seen(tab)
for one in before.widgets:
    if one.id == card.id:
        one.string_value += " (旧)"
named(tab.segmented_control, "language_choice").set_value("en")
tab = send_late(run(tab), before)
first = tab.selectbox(key="plan_gpu").value
run(tab)
tell([first, tab.selectbox(key="plan_gpu").value])
"""
    assert run_page(nvml_standin, code) == ["A40", "A40"]


def test_tokens_in_all_are_offered_as_the_verdict_counts_them(nvml_standin: Standin) -> None:
    """256 were offered, and the sentence below said 4,096: each of 64 chats has a page."""
    code = """
tab = open_tab("2_Load_Model")
tab.select_slider(key="gauge_context_7B").set_value(256)
tab.select_slider(key="gauge_chats_7B").set_value(64)
run(tab)
choices = named(tab.selectbox, "gauge_pool_64_7B").options
named(tab.selectbox, "gauge_pool_64_7B").set_value(1)
run(tab)
tell([choices, words(tab)])
"""
    choices, seen = run_page(nvml_standin, code)
    assert choices[1] == "4,096 tokens in all" and choices[-1] == "8,192 tokens in all"
    assert "4,096 tokens for all chats together" in seen


@pytest.mark.parametrize(
    ("locale", "saved"),
    [
        ("en-US", "Keys and values take 82 MiB; in 16 bit they would take 161."),
        ("zh-CN", "键和值占用 82 MiB，用 16 位则占用 161 MiB。"),
    ],
)
def test_what_8_bits_save_is_said_to_the_mib(nvml_standin: Standin, locale: str, saved: str) -> None:
    """Of a short context the verdict, in tenths of a GiB, said the same with and without."""
    code = f"""
tab = open_tab("2_Load_Model", {locale!r})
tab.select_slider(key="gauge_context_7B").set_value(256)
run(tab)
before = words(tab)
tab.toggle(key="gauge_bits_7B").set_value(True)
run(tab)
tell([before, words(tab)])
"""
    before, after = run_page(nvml_standin, code)
    assert saved in after and saved[:12] not in before
