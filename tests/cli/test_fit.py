"""The commands `fit` and `gpus`: what they print, their exit codes, and one clear sentence for all bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.fit import find_folder, near_targets
from cli.fit_report import as_object
from core.common.paths import ROOT
from core.common.terminal import table
from core.gpu.known_gpus import lookup
from core.library import catalogue
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from tests.support.checkpoints import WEIGHTS, Recipe, make_checkpoint
from tests.support.hub_standin import HubStandin

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

pytest_plugins = ("tests.support.nvml_standin",)

SMALL = "TheBloke/Llama-2-7B-Chat-GPTQ"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class Command:
    """The command line in a process of its own, with models of its own and nothing but a closed port for a network."""

    def __init__(self, base: dict[str, str], models: Path) -> None:
        self.models = models
        models.mkdir(parents=True)
        kept = {name: value for name, value in base.items() if name.lower() not in PROXIES}
        self.environment = kept | {
            "LLAMADECK_MODELS": str(models),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "LC_ALL": "C.UTF-8",
        }

    def __call__(self, *arguments: str, **changes: str) -> tuple[int, str, str]:
        process = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env=self.environment | changes,
            capture_output=True,
            encoding="utf-8",
        )
        assert "Traceback" not in process.stderr
        return process.returncode, process.stdout.strip(), process.stderr.strip()

    def json(self, *arguments: str) -> tuple[int, Any]:
        code, out, _ = self(*arguments, "--json")
        return code, json.loads(out)

    def refused(self, *arguments: str) -> str:
        """The one sentence with which exit code 2 comes."""
        code, out, said = self(*arguments)
        assert (code, out) == (2, "")
        assert said.count("\n") == 0 and "{" not in said
        return said


@pytest.fixture
def command(tmp_path: Path, no_nvml: Standin) -> Command:
    return Command(no_nvml.environment(), tmp_path / "models")


@pytest.fixture
def on_gpus(tmp_path: Path, nvml_standin: Standin) -> Command:
    """The same on a machine whose GPUs the stand-in plays; no compiler is found there."""
    return Command(nvml_standin.environment() | {"PATH": str(tmp_path / "nothing")}, tmp_path / "models")


def test_what_fits_ends_with_0_and_every_number(command: Command) -> None:
    code, found = command.json("fit", SMALL, "--gpu", "RTX 3060 12GB")
    assert code == 0
    assert found["fits"] is True
    assert sum(found["parts"].values()) == pytest.approx(found["needed_mib"], abs=0.1)
    assert found["margin_mib"] == pytest.approx(found["available_mib"] - found["needed_mib"], abs=0.02)
    assert set(found["parts"]) >= {"weights", "kv_cache", "scratch", "activations", "context"}
    assert found["parts"]["kv_cache"] == pytest.approx(2080)
    assert (found["kernel"], found["max_context"], found["context_tokens"]) == ("llamadeck", 4096, 4096)
    assert found["reason"].startswith(f"{SMALL} fits on RTX 3060 12GB")
    assert "gpus" not in found


@pytest.mark.parametrize(
    ("context", "said", "remedy"),
    [("1000", "beyond that answers come several times slower", ""), ("1300", "several times slower like this", ""),
     ("1500", "", "- Take a context of at most {quick} tokens. Up to {longest} fit, but")],
)  # fmt: skip
def test_how_long_a_context_is_quick_is_said_and_is_in_the_json(
    command: Command, context: str, said: str, remedy: str
) -> None:
    arguments = ("fit", SMALL, "--vram-mib", "5840", "--context", context)
    _, found = command.json(*arguments)
    _, out, _ = command(*arguments)
    quick, longest = found["quick_context"], found["max_context"]
    assert 1000 < quick < 1300 < longest < 1500
    assert found["captured"] is (int(context) <= quick) is (context == "1000")
    assert said in out and remedy.format(quick=quick, longest=longest) in out
    assert (f"up to {quick} tokens" in out) is bool(said)
    chinese = command(*arguments, LC_ALL="zh_CN.UTF-8")[1]
    assert f"不超过 {quick} 个 token 时速度快" in chinese or f"减到 {quick} 个 token 以内" in chinese


def test_a_larger_model_that_would_be_slow_is_told_from_the_best(command: Command) -> None:
    arguments = ("fit", "--best", "--gpu", "RTX 3060 12GB", "--context", "7000")
    _, out, _ = command(*arguments)
    (line,) = [line for line in out.splitlines() if "Qwen3-14B" in line and "fits, the best" in line]
    _, out, _ = command("fit", "--best", "--gpu", "RTX 3060 12GB", "--context", "8192")
    (line,) = [line for line in out.splitlines() if "Qwen3-14B" in line]
    assert "fits, slow" in line


def test_what_does_not_fit_ends_with_3_and_says_what_would(command: Command) -> None:
    code, out, _ = command("fit", "Llama-2-70B-Chat-GPTQ", "--gpu", "4090")
    assert code == 3
    assert "does not fit on RTX 4090" in out
    assert "Kernel:" not in out and "Largest context" not in out
    assert "- Take a GPU with at least" in out
    assert "A100 40GB" in out and "2 × RTX 3090 (24 GB)" in out
    _, out, _ = command("fit", "Llama-2-70B-Chat-GPTQ", "--gpu", "4090", "--json")
    found = json.loads(out)
    assert found["kernel"] is None
    assert "A40" in found["cards"] and "RTX 3090" in found["two_cards"] and "RTX 3090" not in found["cards"]


def test_the_best_recommended_model_for_a_card_is_named(command: Command) -> None:
    code, out, _ = command("fit", "--best", "--gpu", "RTX 3090")
    assert code == 0
    *_, best_line, speed_line, larger_line = out.splitlines()
    best = best_line.split()[-1]
    assert speed_line.startswith("It is quick with a context of up to ")
    assert "Qwen2.5-72B" in larger_line and "does not fit: it needs" in larger_line
    assert [line.split()[0] for line in out.splitlines() if "fits, the best" in line] == [best]
    code, out, _ = command("fit", "--best", "--gpu", "RTX 3090", "--json")
    assert code == 0 and [one["repo"] for one in json.loads(out) if one["best"]] == [best]
    code, out, _ = command("fit", "--best", "--vram-mib", "1024")
    assert code == 3 and "None of these fits on GPU (1024 MiB)" in out
    command.refused("fit", "--gpu", "A40")
    command.refused("fit", SMALL, "--best", "--gpu", "A40")


def test_the_best_model_is_the_best_for_what_was_asked(command: Command) -> None:
    """`fit --best` once listed the verdicts of one chat with the usual context, whatever it was asked."""

    def best(*options: str) -> dict[str, Any]:
        code, out, _ = command("fit", "--best", "--gpu", "RTX 3060 12GB", "--json", *options)
        assert code == 0
        (found,) = [one for one in json.loads(out) if one["best"]]
        return dict(found)

    usual = best()
    assert (usual["context_tokens"], usual["chats"], usual["pool_tokens"]) == (4096, 1, None)
    many = ("--context", "8192", "--chats", "16")
    shared, in_8_bit = best(*many, "--pool-tokens", "16384"), best(*many, "--pool-tokens", "16384", "--cache-bits", "8")
    assert (shared["context_tokens"], shared["chats"], shared["pool_tokens"]) == (8192, 16, 16384)
    assert best(*many)["billions"] < shared["billions"] <= in_8_bit["billions"]
    assert in_8_bit["parts"]["kv_cache"] < shared["parts"]["kv_cache"] or in_8_bit["repo"] != shared["repo"]
    _, out, _ = command("fit", "--best", "--gpu", "RTX 3060 12GB", "--pool-tokens", "8192")
    assert "--pool-tokens changes nothing" in out
    # Only some have such a context at all.
    _, out, _ = command("fit", "--best", "--gpu", "A40", "--context", "100000")
    assert "shorter context" in out and "fits, the best" in out
    assert "4096" in command.refused("fit", "--best", "--gpu", "A40", "--pool-tokens", "4095")
    command.refused("fit", "--best", "--gpu", "A40", "--chats", "0")


def test_where_a_name_means_several_cards_the_one_that_is_taken_and_the_others_are_told(command: Command) -> None:
    _, out, _ = command("fit", SMALL, "--gpu", "rtx 3060")
    told = out.splitlines()[-1]
    assert told.startswith('"rtx 3060" names several cards. This is for the RTX 3060 8GB;') and "RTX 3060 12GB" in told
    assert command.json("fit", SMALL, "--gpu", "A100")[1]["other_cards"] == ["A100 80GB PCIe", "A100 80GB SXM"]
    _, out, _ = command("fit", "--best", "--gpu", "A100", "--json")
    assert all(one["other_cards"] for one in json.loads(out))
    assert "RTX 4060 Ti 16GB" in command("fit", "--best", "--gpu", "RTX 4060 Ti", LC_ALL="zh_CN.UTF-8")[1]
    assert "RTX 3080 20GB" in command("scale", SMALL, "--gpu", "3080")[2]
    for clear in ("RTX 3060 12GB", "A40", "A100 80GB PCIe"):
        assert "other_cards" not in command.json("fit", SMALL, "--gpu", clear)[1]
        assert "several cards" not in command("fit", SMALL, "--gpu", clear)[1]


def test_a_table_of_the_parts_stands_under_the_sentence(command: Command) -> None:
    code, out, _ = command("fit", SMALL, "--vram-mib", "12288", "--context", "1024", "--chats", "2")
    assert code == 0
    lines = out.splitlines()
    assert "1024 tokens (chats at once: 2)" in lines[0]
    rows = {line[:30].strip(): line.split()[-1] for line in lines if line.startswith("  ")}
    assert rows["KV cache"] == "1056"
    parts = sum(int(value) for name, value in rows.items() if name not in ("MiB", "Needed", "Available", "Margin"))
    assert parts == pytest.approx(int(rows["Needed"]), abs=len(rows))
    assert int(rows["Available"]) - int(rows["Needed"]) == pytest.approx(int(rows["Margin"]), abs=1)
    assert "capability 8.6 is assumed" in out


def test_a_chinese_terminal_reads_chinese_and_the_json_stays_english(command: Command) -> None:
    code, out, _ = command("fit", SMALL, "--gpu", "A40", LC_ALL="zh_CN.UTF-8")
    assert code == 0
    assert "可以在 A40 上运行" in out
    _, out, _ = command("fit", SMALL, "--gpu", "A40", "--json", LC_ALL="zh_CN.UTF-8")
    assert " fits on A40" in json.loads(out)["reason"]


def test_a_folder_is_found_by_name_and_by_path_before_the_network_is(command: Command, tmp_path: Path) -> None:
    make_checkpoint(command.models / "mine", Recipe(context_tokens=256))
    for target in ("mine", str(command.models / "mine")):
        code, found = command.json("fit", target, "--gpu", "A40")
        assert (code, found["model"], found["max_context"]) == (0, "mine", 256)
    make_checkpoint(tmp_path / "other")
    assert command("fit", str(tmp_path / "other"), "--gpu", "A40")[0] == 0


def test_a_repository_is_read_from_the_hubs_metadata(command: Command, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hub" / "some" / "tiny-GPTQ" / "dev")
    with HubStandin(tmp_path / "hub") as hub:
        command.environment["HF_ENDPOINT"] = hub.url
        for arguments in (["some/tiny-GPTQ:dev"], ["some/tiny-GPTQ", "--revision", "dev"]):
            code, found = command.json("fit", *arguments, "--gpu", "A40")
            assert (code, found["model"]) == (0, "some/tiny-GPTQ:dev")
        assert "some/other" in command.refused("fit", "some/other", "--gpu", "A40")


def test_no_network_is_a_failure_and_not_bad_input(command: Command) -> None:
    code, _, said = command("fit", "some/tiny-GPTQ", "--gpu", "A40")
    assert code == 1
    assert "127.0.0.1:9" in said


def test_a_repository_without_a_gptq_config_is_bad_input(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "some" / "plain" / "main"
    make_checkpoint(folder)
    change(folder, quantization_config=None)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with HubStandin(tmp_path / "hub") as hub:
        command.environment["HF_ENDPOINT"] = hub.url
        assert "GPTQ" in command.refused("fit", "some/plain", "--gpu", "A40")


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "RTX 3061"], ["RTX 3061", "RTX 3060"]),
        (["--gpu", ""], ["RTX 4090"]),
        (["--gpu", "A40", "--context", "-4"], ["-4", "4096"]),
        (["--gpu", "A40", "--context", "0"], ["0", "4096"]),
        (["--gpu", "A40", "--context", "4097"], ["4097", "4096"]),
        (["--gpu", "A40", "--context", "many"], ["--context", "many"]),
        (["--gpu", "A40", "--context", "1e3"], ["1e3"]),
        (["--gpu", "A40", "--context", "9" * 5000], ["--context"]),
        (["--gpu", "A40", "--chats", "0"], ["--chats", "128"]),
        (["--gpu", "A40", "--chats", "٣"], ["--chats"]),
        (["--vram-mib", "24 GB"], ["--vram-mib", "24 GB"]),
        (["--vram-mib", "-1"], ["--vram-mib", "-1"]),
        (["--gpu", "A40", "--kernel", "fast"], ["fast", "llamadeck, triton"]),
        (["--gpu", "A40", "--revision", "gptq-4bit-32g"], ["gptq-4bit-32g", "gptq-4bit-32g-actorder_True"]),
    ],
)
def test_bad_input_gets_one_sentence_that_names_it(command: Command, arguments: list[str], named: list[str]) -> None:
    said = command.refused("fit", SMALL, *arguments)
    assert [word for word in named if word not in said] == []


def test_three_bits_on_a_kernel_that_has_none_is_bad_input(command: Command) -> None:
    target = "Llama-2-70B-Chat-GPTQ:gptq-3bit-128g-actorder_True"
    said = command.refused("fit", target, "--gpu", "A40", "--kernel", "triton")
    assert "triton" in said and "torch" in said


def test_the_kernels_old_name_is_understood_and_said_once(command: Command) -> None:
    code, out, said = command("fit", SMALL, "--gpu", "A40", "--kernel", "deck", "--json")
    assert (code, json.loads(out)["kernel"]) == (0, "llamadeck")
    assert said == "The kernel deck is called llamadeck now."


@pytest.mark.parametrize(("tokens", "is_said"), [("8192", False), ("1000000", True)])
def test_tokens_in_all_that_change_nothing_are_not_passed_over(command: Command, tokens: str, is_said: bool) -> None:
    code, out, _ = command("fit", SMALL, "--gpu", "A40", "--chats", "4", "--pool-tokens", tokens)
    assert (code, "--pool-tokens changes nothing" in out) == (0, is_said)


@pytest.mark.parametrize("target", ["Llama-2-7B-Caht", "", "-", "~no-such-user", "\udcff"])
def test_a_target_that_is_nothing_is_bad_input_with_names_near_it(command: Command, target: str) -> None:
    assert "Llama-2" in command.refused("fit", "--gpu", "A40", "--", target)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization_config": "none"}, "not quantized"),
        ({"num_hidden_layers": 3}, "3 layers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"hidden_size": 96}, "hidden_size is 96"),
        ({"quantization_config": {"bits": "5", "group_size": 32}}, "bits"),
    ],
)
def test_a_bad_folder_is_bad_input(command: Command, changes: dict[str, Any], named: str) -> None:
    make_checkpoint(command.models / "mine")
    change(command.models / "mine", **changes)
    said = command.refused("fit", "mine", "--gpu", "A40")
    assert "mine" in said and named in said


def test_a_folder_has_no_revision(command: Command) -> None:
    assert "--revision" in command.refused("fit", "./models", "--gpu", "A40", "--revision", "main")
    assert "no_such" in command.refused("fit", "./no_such", "--gpu", "A40")


def test_the_gpus_of_this_machine_are_asked_when_none_is_named(on_gpus: Command, nvml_standin: Standin) -> None:
    code, found = on_gpus.json("fit", SMALL)
    assert (code, found["card"], found["available_mib"]) == (0, "NVIDIA A40", 45458)
    assert found["kernel"] == "llamadeck"
    nvml_standin.use("two_4090")
    assert on_gpus.json("fit", SMALL)[1]["available_mib"] == 24564 - 513 - 431
    nvml_standin.use("driver_not_loaded")
    assert "--gpu" in on_gpus.refused("fit", SMALL)


def test_without_a_gpu_the_verdict_is_about_this_machines_memory(command: Command) -> None:
    code, out, _ = command("fit", SMALL, "--json")
    found = json.loads(out)
    assert (code, found["device"]) == (0 if found["fits"] else 3, "cpu")
    assert found["kernel"] == ("aten_int4" if found["fits"] else None)
    assert found["tokens_per_s"] > 0 and "this machine's memory" in found["reason"]
    # Nearly all that fits there is too slow to use, so the list tells it.
    assert command("fit", "--best")[1].splitlines()[0].split()[2] == "Tokens/s"
    _, out, _ = command("fit", SMALL, LC_ALL="zh_CN.UTF-8")
    assert "本机内存" in out
    assert "marlin" in command.refused("fit", SMALL, "--kernel", "marlin")


def test_two_cards_that_nobody_has_yet_are_planned_for_together(command: Command) -> None:
    code, alone = command.json("fit", "Llama-2-70B-Chat-GPTQ", "--gpu", "RTX 4090")
    assert (code, alone["fits"]) == (3, False)
    code, both = command.json("fit", "Llama-2-70B-Chat-GPTQ", "--gpu", "2x RTX 4090")
    assert (code, both["fits"], len(both["gpus"])) == (0, True, 2)
    assert command.json("fit", "Llama-2-70B-Chat-GPTQ", "--gpu", "2 × A100")[1]["other_cards"] == [
        "A100 80GB PCIe",
        "A100 80GB SXM",
    ]


def test_several_gpus_have_their_parts_each(on_gpus: Command, nvml_standin: Standin) -> None:
    gpu = "[gpu]\nname = RTX 3090\ntotal = 24576\nreserved = 452\nused = {used}\ncapability = 8 6\n"
    nvml_standin.write(f"driver = 580.1\ncuda = 13000\n\n{gpu.format(used=0)}\n{gpu.format(used=100)}")
    code, found = on_gpus.json("fit", "Llama-2-70B-Chat-GPTQ", "--context", "2048")
    assert code == 0
    assert [one["available_mib"] for one in found["gpus"]] == [24124, 24024]
    for name, mib in found["parts"].items():
        assert sum(one["parts"][name] for one in found["gpus"]) == pytest.approx(mib, abs=0.02)
    assert "Split by layers over 2 GPUs" in on_gpus("fit", "Llama-2-70B-Chat-GPTQ", "--context", "2048")[1]


def test_a_broken_gpu_is_a_row_and_the_others_are_listed(on_gpus: Command, nvml_standin: Standin) -> None:
    nvml_standin.use("lost_gpu")
    code, out, _ = on_gpus("gpus")
    assert code == 0
    assert "Driver 580.159.03, CUDA 13.0" in out
    rows = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][2:] == ["-"] * 7
    assert rows[2][5:9] == ["24576", "23100", "452", "8.6"]
    assert "fallen off the bus" in out and "no power" in out
    code, found = on_gpus.json("gpus")
    assert [one["error"] is None for one in found["gpus"]] == [False, False, True]
    assert (found["gpus"][2]["total_mib"], found["gpus"][2]["compute_capability"]) == (24576, "8.6")


def test_without_a_driver_the_list_is_a_sentence_and_a_failure(command: Command) -> None:
    code, out, said = command("gpus")
    assert (code, out) == (1, "")
    assert "libnvidia-ml.so.1" in said
    code, found = command.json("gpus")
    assert code == 1
    assert found["gpus"] == [] and "libnvidia-ml.so.1" in found["error"]


def test_the_known_cards_are_listed_without_a_driver(command: Command) -> None:
    code, out, _ = command("gpus", "--known")
    assert code == 0
    assert any(line.split() == ["A40", "46068", "8.6", "696"] for line in out.splitlines())
    names = [card["name"] for card in command.json("gpus", "--known")[1]["known"]]
    assert [lookup(name).name for name in names if "RTX" in name] == [name for name in names if "RTX" in name]


def test_the_commands_import_nothing_heavy() -> None:
    code = "import sys, cli.fit, cli.gpus; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "core.memory.fit" in loaded
    assert not loaded & {"torch", "numpy", "httpx2", "streamlit", "transformers"}


def test_every_catalogue_entry_gets_an_answer_without_a_network() -> None:
    card = DeviceMemory.planned(lookup("RTX 3060 12GB"))
    for entry in catalogue.entries():
        found = as_object(check_fit(catalogue.checkpoint(entry), [card]))
        assert found["model"] == entry.name
        assert found["needed_mib"] > entry.file_bytes / 2**20 * 0.9


def test_a_name_with_an_owner_is_a_folder_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    assert find_folder("some/model") is None
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert find_folder("some/model") == tmp_path / "some" / "model"
    assert find_folder("") is None
    assert find_folder("a" * 5000) is None
    assert find_folder("~") == Path(os.path.expanduser("~"))
    assert near_targets("somme").split(", ")[0] == "some"


def test_columns_stand_under_each_other_in_chinese_too() -> None:
    assert table([["权重", "1"], ["KV", "22"]]) == ["权重   1", "KV    22"]


def test_gpus_that_torch_cannot_use_are_said_with_the_verdict(on_gpus: Command, nvml_standin: Standin) -> None:
    """Their memory is still told, and the card by its name has its own answer."""
    nvml_standin.use("driver_535")
    nvml_standin.write_torch("2.11.0+cu130", "13.0")
    reason = "driver 535.104.05 runs CUDA up to 12.2"
    code, out, said = on_gpus("fit", SMALL)
    assert code == 1 and "fits on NVIDIA A40" in out and reason in said
    code, found = on_gpus.json("fit", SMALL)
    assert code == 1 and found["fits"] and reason in found["unused"]
    code, found = on_gpus.json("fit", SMALL, "--gpu", "A40")
    assert code == 0 and "unused" not in found
    code, out, said = on_gpus("gpus")
    assert code == 0 and "NVIDIA A40" in out and reason in said
    code, found = on_gpus.json("gpus")
    assert code == 0 and reason in found["unused"]
    nvml_standin.write_torch("2.11.0+cu126", "12.6")
    assert on_gpus.json("gpus")[1]["unused"] is None
