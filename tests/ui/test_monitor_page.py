"""The page GPU Monitor with the stand-in driver's GPUs: well, broken, missing, and with a model on one of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.gpu.snapshot import Gpu, GpuSnapshot
from tests.support.checkpoints import make_checkpoint
from tests.support.pages import run_page
from ui.monitor.charts import POINTS, VALUES, rows, thinned

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)

LOOK = 'tab = open_tab("5_GPU_Monitor", {locale!r}); tell([read(tab), len(tab.get("vega_lite_chart"))])'
LOAD = """
import os
from pathlib import Path
runner = resources.engine()
runner.load(Path(os.environ["LLAMADECK_MODELS"]) / "tiny")
runner.wait_while_loading(WAIT_S)
"""
# The engine's process takes the place of one of the scenario's.
OWN = """
scenario = Path(os.environ["LLAMADECK_NVML_SCENARIO"])
text = scenario.read_text("utf-8").replace("999999902:211", f"{runner.local.worker_pid}:1500")
scenario.write_text(text, "utf-8")
"""
TRUTH = """
import logging
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("core.engine").addHandler(handler)
logging.getLogger("core.engine").setLevel("INFO")
"""
TELL = 'tell(read(open_tab("5_GPU_Monitor")))'


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "models" / "tiny")
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_WORKER", "tests.support.fake_worker")


def sample(second: int, *power_w: float | None) -> GpuSnapshot:
    return GpuSnapshot(float(second), gpus=tuple(Gpu(index, power_w=value) for index, value in enumerate(power_w)))


def test_two_gpus_have_their_sensors_charts_and_processes(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    seen, num_charts = run_page(nvml_standin, LOOK.format(locale="en-US"))
    assert num_charts == 4
    assert "4 % busy · 44 °C · 38 / 450 W" in seen and "97 % busy · 78 °C · 431 / 450 W" in seen
    assert "1 | 999999903 | – | 18,200 MiB | compute" in seen
    assert "1 | 999999905 | – | – | compute" in seen and "compute and graphics" in seen
    assert "Driver 570.195.03 · CUDA 12.8" in seen


def test_a_broken_gpu_is_an_entry_that_says_so_and_the_others_go_on(nvml_standin: Standin) -> None:
    nvml_standin.use("lost_gpu")
    seen, num_charts = run_page(nvml_standin, LOOK.format(locale="en-US"))
    assert "has fallen off the bus" in seen and "gets no power" not in seen.split("fallen")[0]
    assert "12 % busy · 40 °C" in seen and num_charts == 4


@pytest.mark.parametrize(("locale", "sentence"), [("en-US", "No NVIDIA driver"), ("zh-CN", "没有找到 NVIDIA 驱动")])
def test_without_a_driver_the_page_says_what_to_do(no_nvml: Standin, locale: str, sentence: str) -> None:
    seen, num_charts = run_page(no_nvml, LOOK.format(locale=locale))
    assert sentence in seen and num_charts == 0


@pytest.mark.parametrize("scenario", ["half_supported", "mig", "idle_a40", "driver_not_loaded", "version_mismatch"])
def test_whatever_a_driver_answers_the_page_is_whole(nvml_standin: Standin, scenario: str) -> None:
    nvml_standin.use(scenario)
    seen, _ = run_page(nvml_standin, LOOK.format(locale="zh-CN"))
    assert "还没有加载模型" in seen and "None" not in seen


def test_the_models_own_process_is_marked_and_its_plan_stands_beside_what_it_holds(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    seen = run_page(nvml_standin, LOAD + OWN + TELL)
    own = next(line for line in seen.splitlines() if line.endswith("1,500 MiB | compute and graphics"))
    assert "tests.support.fake_worker ◀ This model" in own
    assert "1,500 MiB for its process now" in seen and "**tiny** is idle" in seen


def test_the_plan_and_what_the_load_took_stand_side_by_side_on_the_page_and_in_the_log(nvml_standin: Standin) -> None:
    nvml_standin.use("two_4090")
    code = TRUTH + LOAD + 'tell([read(open_tab("5_GPU_Monitor", "zh-CN")), read(open_tab("5_GPU_Monitor")), lines])'
    chinese, seen, lines = run_page(nvml_standin, code)
    (line,) = [line for line in lines if "GPU memory" in line]
    found = re.fullmatch(
        r"tiny: GPU memory planned / taken: (\d+) / (\d+) MiB, as planned \(.*context (\d+) / \?\)", line
    )
    assert found is not None and int(found[1]) == int(found[2]) + 30
    for page in (seen, chinese):
        assert f" | {found[1]} | {found[2]}" in page and f" | {found[3]} | –" in page
    assert "The driver does not tell what CUDA takes" in seen
    assert "The load took what was planned for it." in seen and "加载占用的显存与计划相符。" in chinese


def test_a_model_on_the_cpu_is_said_to_be_there(no_nvml: Standin) -> None:
    seen = run_page(no_nvml, LOAD + TELL)
    assert "It runs on: cpu" in seen


def test_a_long_window_is_thinned_to_the_same_readings_as_time_goes_on() -> None:
    samples = [sample(second, 50.0) for second in range(3600)]
    first, second = thinned(samples[:-1], 3600), thinned(samples, 3600)
    assert len(second) <= POINTS + 2 and second[-1] is samples[-1]
    assert first[:-1] == second[: len(first) - 1]
    assert thinned([], 60) == []


def test_what_a_gpu_does_not_tell_is_a_gap_in_its_line() -> None:
    frame = rows([sample(1, 50.0, None), sample(2, 60.0, 70.0)], VALUES["power"])
    assert frame["t"].tolist() == [-1.0, -1.0, 0.0, 0.0]
    assert frame["value"].isna().tolist() == [False, True, False, False]
    assert len(rows([], VALUES["power"])) == 0
