"""LoRA adapters in the terminal: fetched, listed, for a model or by themselves, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from cli.main import main
from core.checkpoint.adapter_folders import find_adapter
from core.checkpoint.adapters import WEIGHTS
from core.checkpoint.merged import describe, write_merged
from core.common.errors import CheckpointError
from core.common.terminal import width
from core.hub.address import parse_address
from core.hub.folders import model_folders, remember
from core.hub.queue import DownloadQueue
from core.hub.source import Source
from core.quantize.folders import job_folder
from core.quantize.job_file import JobFile, write_job
from core.quantize.options import QuantizeOptions
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.hub_standin import HubStandin

Caught = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("models", "data"):
        monkeypatch.setenv(f"LLAMADECK_{name.upper()}", str(tmp_path / name))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "LLAMADECK_ADAPTERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    make_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path


def test_an_adapter_is_fetched_listed_and_deleted(home: Path, capfd: Caught) -> None:
    write_adapter(home / "hub" / "somebody" / "pirate" / "main", home / "models" / "tiny", rank=4, base="meta/tiny")
    with HubStandin(home / "hub") as hub:
        assert main(["download", "somebody/pirate", "--adapter", "--endpoint", hub.url]) == 0
    assert (home / "adapters" / "somebody_pirate" / "adapter_model.safetensors").exists()
    assert "Trained on meta/tiny, rank 4. Models here that can have it: tiny." in capfd.readouterr().err
    assert main(["adapters", "tiny", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["adapters"]
    assert (found["name"], found["rank"], found["base"], found["error"]) == ("somebody_pirate", 4, "meta/tiny", None)
    assert not found["is_of_other_base"]
    assert main(["adapters"]) == 0
    assert "meta/tiny" in capfd.readouterr().out
    assert main(["adapters", "--delete", "somebody_pirate"]) == 0
    assert not (home / "adapters" / "somebody_pirate").exists()
    assert main(["adapters"]) == 0
    assert "--adapter" in capfd.readouterr().out


def test_a_model_with_a_colon_behind_it_is_told_as_that(capfd: Caught) -> None:
    """No model was called so, and the nearest name was that of the model that was meant."""
    for command in (["adapters", "tiny:"], ["run", "--model", "tiny:"]):
        assert main(command) == 2
        assert "“tiny:” ends in a colon" in capfd.readouterr().err


def test_one_of_another_base_is_told_when_it_is_fetched(home: Path, capfd: Caught) -> None:
    make_checkpoint(home / "wide", Recipe(hidden=128))
    write_adapter(home / "hub" / "me" / "wide" / "main", home / "wide", base="me/wide")
    with HubStandin(home / "hub") as hub:
        assert main(["download", "me/wide", "--adapter", "--endpoint", hub.url]) == 0
    assert "None of the models here can have it" in capfd.readouterr().err


def test_adapters_and_models_are_told_apart_with_the_way_to_each(home: Path, capfd: Caught) -> None:
    """Of an adapter it was once said that it may hold GGUF files."""
    write_adapter(home / "hub" / "me" / "pirate" / "main", home / "models" / "tiny")
    make_checkpoint(home / "hub" / "me" / "tiny" / "main")
    with HubStandin(home / "hub") as hub:
        assert main(["download", "me/pirate", "--endpoint", hub.url]) == 1
        said = capfd.readouterr().err
        assert "me/pirate is a LoRA adapter" in said and "`./llamadeck download` with `--adapter`" in said
        assert main(["download", "me/tiny", "--adapter", "--endpoint", hub.url]) == 1
        assert "without --adapter" in capfd.readouterr().err
    write_adapter(home / "models" / "pirate", home / "models" / "tiny")
    assert main(["fit", "pirate"]) == 2
    assert "Move that folder into adapters" in capfd.readouterr().err


def test_an_adapter_whose_download_did_not_end_goes_on_as_an_adapter(home: Path) -> None:
    """What an earlier process left was once judged as a model."""
    origin = write_adapter(home / "hub" / "somebody" / "pirate" / "main", home / "models" / "tiny")
    with HubStandin(home / "hub") as hub:
        source = Source(parse_address("somebody/pirate"), hub.url)
        (home / "adapters").mkdir()
        remember(model_folders(home / "adapters", source), source)
        queue = DownloadQueue()
        (job,) = queue.jobs
        queue.resume(job.id)
        assert job.wait(60) and job.snapshot().error is None
        queue.close()
    weights = "adapter_model.safetensors"
    assert (home / "adapters" / job.folder_name / weights).read_bytes() == (origin / weights).read_bytes()


def test_what_is_no_adapter_is_refused_before_its_weights_are_fetched(home: Path, capfd: Caught) -> None:
    folder = write_adapter(home / "hub" / "somebody" / "dora" / "main", home / "models" / "tiny")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), "utf-8")
    make_checkpoint(home / "hub" / "somebody" / "model" / "main")
    with HubStandin(home / "hub") as hub:
        for name, words in (("dora", "DoRA"), ("model", "adapter_config.json")):
            assert main(["download", f"somebody/{name}", "--adapter", "--endpoint", hub.url]) == 1
            assert words in capfd.readouterr().err
            assert not any(
                request.path.endswith(".safetensors") and "Range" not in request.headers for request in hub.requests
            )
    assert not [one for one in (home / "adapters").iterdir() if not one.name.startswith(".")]


def test_an_adapter_of_another_model_is_listed_with_the_reason(home: Path, capfd: Caught) -> None:
    folder = write_adapter(home / "adapters" / "stranger", home / "models" / "tiny")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 5}), "utf-8")
    assert main(["adapters", "tiny"]) == 0
    out = capfd.readouterr().out
    assert "no, see below" in out and "rank 5" in out


def test_adapters_one_folder_deeper_are_told_as_that(home: Path, capfd: Caught) -> None:
    """As PEFT saves one with a name of its own. Nothing was listed, and nothing said why."""
    pirate = write_adapter(home / "adapters" / "outer" / "pirate", home / "models" / "tiny")
    assert main(["adapters"]) == 0
    assert "in folders of their own (pirate)" in " ".join(capfd.readouterr().out.split())
    with pytest.raises(CheckpointError) as caught:
        find_adapter("outer")
    assert "outer/pirate" in str(caught.value) and find_adapter("outer/pirate") == pirate
    pirate.rename(home / "adapters" / "pirate")
    assert main(["adapters", "--json"]) == 0
    assert [one["error"] for one in json.loads(capfd.readouterr().out)["adapters"]] == [None]


def test_one_of_single_experts_says_what_it_needs(home: Path, capfd: Caught) -> None:
    write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    assert main(["adapters"]) == 0
    assert "experts" not in capfd.readouterr().out
    poet = write_adapter(home / "adapters" / "poet", home / "models" / "tiny")
    tensors = load_file(poet / WEIGHTS)
    names = {name: name.replace("self_attn.q_proj", "mlp.experts.3.down_proj") for name in tensors}
    save_file({names[name]: one for name, one in tensors.items()}, poet / WEIGHTS)
    assert main(["adapters"]) == 0
    out = capfd.readouterr().out
    assert "no model here" in out and "“Adapters may change experts too” switched on" in out
    assert main(["adapters", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["adapters"]
    assert {one["name"]: one["changes_experts"] for one in found} == {"pirate": False, "poet": True}


def test_without_a_model_each_is_told_with_the_models_that_can_have_it(home: Path, capfd: Caught) -> None:
    """One that no model here can have was told as usable."""
    make_checkpoint(home / "wide", Recipe(hidden=128))
    for name, model, base in (
        ("own", home / "models" / "tiny", "me/tiny"),
        ("named", home / "models" / "tiny", "me/huge"),
        ("none", home / "wide", "me/wide"),
    ):
        write_adapter(home / "adapters" / name, model, base=base)
    assert main(["adapters"]) == 0
    lines = {line.split()[0]: line for line in capfd.readouterr().out.splitlines()}
    assert lines["own"].endswith("  tiny") and lines["named"].endswith("  tiny; names another base")
    assert lines["none"].endswith("  no model here, see below")
    assert main(["adapters", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["adapters"]
    assert {one["name"]: one["models"] for one in found} == {"own": ["tiny"], "named": ["tiny"], "none": []}
    assert main(["adapters", "tiny", "--json"]) == 0
    assert {one["models"] for one in json.loads(capfd.readouterr().out)["adapters"]} == {None}


@pytest.mark.parametrize("columns", [80, 120])
def test_long_names_leave_a_table_in_its_lines(
    home: Path, capfd: Caught, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name, base = "pirate-" + 20 * "long-" + "你好", 40 * "path/" + "Qwen2.5-7B"
    write_adapter(home / "adapters" / name, home / "models" / "tiny", base=base)
    assert main(["adapters"]) == 0
    head, line, *_ = capfd.readouterr().out.splitlines()
    assert width(head) <= width(line) <= columns
    assert line.startswith("pirate") and "Qwen2.5-7B" in line and line.endswith("names another base")
    assert main(["adapters", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["adapters"]
    assert (found["name"], found["base"]) == (name, base)


@pytest.mark.parametrize("base", ["me/wide", ""])
def test_one_for_no_model_here_is_told_with_the_reason_and_a_way_on(home: Path, capfd: Caught, base: str) -> None:
    make_checkpoint(home / "wide", Recipe(hidden=128))
    write_adapter(home / "adapters" / "none", home / "wide", base=base)
    assert main(["adapters"]) == 0
    said = capfd.readouterr().out
    assert "No model here can have the adapter none: " in said
    words = f"it was trained on {base}" if base else "it does not say on which model it was trained"
    assert words in said and "quantized version of that model" in said
    assert main(["adapters", "tiny"]) == 0
    assert f"(its base_model_name_or_path: {base or '-'}) than tiny: " in capfd.readouterr().out


def test_a_reason_of_its_own_model_comes_before_those_of_others(home: Path, capfd: Caught) -> None:
    """One that is merged into the only model it is for was told without why."""
    write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    make_checkpoint(home / "models" / "a-wide", Recipe(hidden=128))
    write_merged(home / "models" / "tiny", [describe("pirate", home / "adapters" / "pirate" / WEIGHTS)])
    assert main(["adapters"]) == 0
    said = capfd.readouterr().out
    assert "no model here, see below" in said and "pirate is merged into tiny already" in said
    assert main(["adapters", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["adapters"]
    assert found["models"] == [] and "is merged into tiny already" in found["error"] and found["rank"] == 4


def test_no_name_of_many_models_is_cut(home: Path, capfd: Caught) -> None:
    """The list was cut in the middle of a name."""
    for number in range(3):
        make_checkpoint(home / "models" / f"Qwen2.5-7B-Instruct-GPTQ-{number}")
    write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    assert main(["adapters"]) == 0
    _, line, *others = capfd.readouterr().out.splitlines()
    assert line.endswith("  models: 4, see below")
    names = "Qwen2.5-7B-Instruct-GPTQ-0, Qwen2.5-7B-Instruct-GPTQ-1, Qwen2.5-7B-Instruct-GPTQ-2, tiny"
    assert others == [f"Models here that can have pirate: {names}"]


def test_one_in_a_models_folder_is_deleted_by_the_models_name(home: Path, capfd: Caught) -> None:
    inside = write_adapter(home / "models" / "tiny" / "inside", home / "models" / "tiny")
    assert main(["adapters", "--delete", "inside"]) == 2 and inside.is_dir()
    assert main(["adapters", "nobody", "--delete", "inside"]) == 2 and inside.is_dir()
    capfd.readouterr()
    assert main(["adapters", "tiny", "--delete", "inside"]) == 0
    assert str(inside) in capfd.readouterr().err and not inside.exists()
    assert (home / "models" / "tiny" / "config.json").exists()


def test_with_a_model_none_is_deleted_that_all_models_share(home: Path, capfd: Caught) -> None:
    shared = write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    assert main(["adapters", "tiny", "--delete", "pirate"]) == 2
    assert main(["adapters", "tiny", "--delete", str(shared)]) == 2 and shared.is_dir()
    inside = write_adapter(home / "models" / "tiny" / "pirate", home / "models" / "tiny")
    assert main(["adapters", "tiny", "--delete", "pirate"]) == 0
    assert shared.is_dir() and not inside.exists()


def test_a_program_that_deletes_one_is_told_in_json(home: Path, capfd: Caught) -> None:
    """It was told nothing."""
    shared = write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    assert main(["adapters", "--delete", "pirate", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out) == {"deleted": {"name": "pirate", "folder": str(shared)}} and said.err == ""


def test_one_in_a_linked_models_folder_stays_where_it_lies(home: Path, capfd: Caught) -> None:
    make_checkpoint(home / "elsewhere")
    inside = write_adapter(home / "elsewhere" / "inside", home / "models" / "tiny")
    (home / "models" / "linked").symlink_to(home / "elsewhere")
    assert main(["adapters", "linked", "--delete", "inside"]) == 2
    assert "Delete it there" in capfd.readouterr().err and inside.is_dir()


def test_a_path_is_told_by_what_lies_there(home: Path, capfd: Caught) -> None:
    """An adapter elsewhere was told as none."""
    outside = write_adapter(home / "outside", home / "models" / "tiny")
    assert main(["adapters", "--delete", str(outside)]) == 2
    said = capfd.readouterr().err
    assert "is an adapter, and none of those in" in said and outside.is_dir()
    assert main(["adapters", "--delete", " "]) == 2
    assert "no name of an adapter" in capfd.readouterr().err
    shared = write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    assert main(["adapters", "--delete", str(shared)]) == 0
    assert not shared.exists()


@pytest.mark.parametrize("name", ["../models/tiny", "nobody", "", ".", ".download-somebody_pirate"])
def test_only_adapters_are_deleted(home: Path, name: str, capfd: Caught) -> None:
    for folder in ("pirate", ".download-somebody_pirate"):
        write_adapter(home / "adapters" / folder, home / "models" / "tiny")
    assert main(["adapters", "--delete", name]) == 2
    assert (home / "adapters" / ".download-somebody_pirate").exists()
    assert (home / "models" / "tiny").exists() and (home / "adapters" / "pirate").exists()


def test_one_that_a_job_is_to_merge_stays(home: Path, capfd: Caught) -> None:
    adapter = write_adapter(home / "adapters" / "pirate", home / "models" / "tiny")
    job_folder("made").mkdir()
    write_job(job_folder("made"), JobFile("made", home / "models" / "tiny", QuantizeOptions(adapters=(adapter,))))
    assert main(["adapters", "--delete", "pirate"]) == 2
    assert "needed to make made" in capfd.readouterr().err and adapter.is_dir()
