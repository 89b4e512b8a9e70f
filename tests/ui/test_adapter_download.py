"""LoRA adapters on the page Download: told as what they are, fetched as jobs, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from safetensors.numpy import load_file, save_file
from streamlit.testing.v1 import AppTest

from core.hub.folders import MARGIN_BYTES
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.download_page import begin, can_begin, has, open_page, phases, search, show, until
from tests.support.hub_standin import HubStandin
from tests.support.pages import WAIT_S, click, go, load, open_tab, run, words
from tests.support.widgets import named
from ui.download import adapter
from ui.shared import resources

REPO, FOLDER = "somebody/pirate", "somebody_pirate"
JOB = f"adapters/{FOLDER}"
WEIGHTS = "adapter_model.safetensors"
# Of the highest rank, which takes a while where the stand-in is made slow.
LARGE, LARGE_JOB, SLOW_BYTES_S = "somebody/large", "adapters/somebody_large", 4_000


@pytest.fixture
def hub(
    home: Path, models: Path, checkpoint: Path, no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubStandin]:
    """The Hub of a dashboard with the model `tiny`: it has an adapter for that one."""
    write_adapter(home / "hub" / REPO / "main", checkpoint, rank=4, base="meta/tiny")
    write_adapter(home / "hub" / LARGE / "main", checkpoint, rank=256)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubStandin(home / "hub") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        yield standin
        resources.downloads().close()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def find(text: str) -> AppTest:
    """The page with this repository looked up."""
    tab = search(open_page(), text)
    return until(tab, lambda: bool(tab.dataframe) or bool(tab.error))


def fetched(tab: AppTest) -> AppTest:
    (job,) = resources.downloads().jobs
    assert job.wait(WAIT_S) and job.snapshot().error is None
    return run(tab)


def test_an_adapter_is_told_as_one_with_the_models_that_can_have_it(hub: HubStandin) -> None:
    """It once was a refusal that named a command."""
    tab = find(REPO)
    said = words(tab)
    assert "This is a LoRA adapter" in said and "rank 4" in said and "trained on meta/tiny" in said
    assert "Models here that can have it: **tiny**" in said and not tab.error
    assert list(tab.dataframe[0].value["Verdict"]) == ["🧩 LoRA adapter"]


def test_one_button_fetches_it_and_then_the_page_says_what_to_do(home: Path, hub: HubStandin) -> None:
    tab = fetched(begin(find(REPO)))
    there = home / "adapters" / FOLDER
    assert (there / WEIGHTS).read_bytes() == (hub.root / REPO / "main" / WEIGHTS).read_bytes()
    assert named(tab.segmented_control, "download_section_choice").value == "jobs"
    said = words(tab)
    assert "Complete and verified" in said and "LoRA adapter" in said and "under *Generation*" in said
    assert not has(tab, f"job_load_{JOB}")
    assert click(tab, f"adapter_load_{JOB}").title[0].value == "Load model"
    tab = find(REPO)
    assert "On disk already" in words(tab) and not can_begin(tab)


def test_what_to_do_next_goes_by_what_is_loaded(hub: HubStandin) -> None:
    load(open_tab(), "tiny")
    tab = fetched(begin(find(REPO)))
    assert "loaded without room for it" in words(tab)
    resources.engine().unload()
    load(open_tab(), "tiny")
    assert "loaded with room for it" in words(run(tab))
    tab = click(tab, f"adapter_chat_{JOB}")
    assert named(tab.selectbox, "chat_adapter").options[1:] == [FOLDER]


def test_an_adapters_download_pauses_and_goes_on_as_one_after_a_restart(home: Path, hub: HubStandin) -> None:
    hub.behaviour.rate_bytes_s = SLOW_BYTES_S
    tab = begin(find(LARGE))
    until(tab, lambda: phases() == ["running"])
    assert "It is among the downloads" in words(show(tab, "find"))
    assert resources.downloads().is_busy
    click(show(tab, "jobs"), f"job_pause_{LARGE_JOB}")
    until(tab, lambda: phases() == ["paused"])
    assert "On disk already" not in words(show(tab, "find"))
    resources.downloads().close()
    st.cache_resource.clear()
    hub.behaviour.rate_bytes_s = 0
    tab = show(open_page(), "jobs")
    assert "Paused" in words(tab) and "LoRA adapter" in words(tab)
    fetched(click(tab, f"job_resume_{LARGE_JOB}"))
    assert (home / "adapters" / "somebody_large" / WEIGHTS).is_file()
    assert not [path.name for path in (home / "models").iterdir() if "large" in path.name]


def test_a_cancelled_one_leaves_nothing(home: Path, hub: HubStandin) -> None:
    hub.behaviour.rate_bytes_s = SLOW_BYTES_S
    tab = begin(find(LARGE))
    until(tab, lambda: phases() == ["running"])
    click(tab, f"job_cancel_{LARGE_JOB}")
    (job,) = resources.downloads().jobs
    assert job.wait(WAIT_S) and job.phase == "cancelled"
    assert not [path for path in (home / "adapters").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules\\_to\\_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_a_refused_adapter_says_why_before_the_download(hub: HubStandin, changes: dict[str, Any], said: str) -> None:
    change_config(hub.root / REPO / "main", **changes)
    tab = find(REPO)
    assert said in tab.error[0].value and not can_begin(tab)
    assert list(tab.dataframe[0].value["Verdict"]) == ["⚠️ unusable adapter"]


def test_a_pickled_adapter_is_refused_before_the_download(hub: HubStandin) -> None:
    (hub.root / REPO / "main" / WEIGHTS).rename(hub.root / REPO / "main" / "adapter_model.bin")
    tab = find(REPO)
    assert "can run code" in tab.error[0].value and not can_begin(tab)


def test_one_of_too_high_a_rank_is_refused_with_the_limit(hub: HubStandin, checkpoint: Path) -> None:
    """Whoever was told to download it anew got the same one again."""
    write_adapter(hub.root / "me" / "high" / "main", checkpoint, rank=512)
    tab = find("me/high")
    assert "up to rank 256" in tab.error[0].value and "anew" not in tab.error[0].value and not can_begin(tab)


def test_adapters_in_folders_of_a_repository_are_told_where_they_are(hub: HubStandin, checkpoint: Path) -> None:
    """Trainers push their checkpoints as they lie; it was said to be no GPTQ model, and perhaps GGUF files."""
    for name in ("checkpoint-100", "checkpoint-200"):
        write_adapter(hub.root / "me" / "run" / "main" / name, checkpoint)
    tab = find("me/run")
    assert "(checkpoint-100, checkpoint-200)" in tab.error[0].value.replace("\\", "") and not can_begin(tab)
    assert list(tab.dataframe[0].value["Verdict"]) == ["⚠️ unusable adapter"]


def test_a_disk_without_the_margin_of_a_download_is_told_before_it(
    hub: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter of a few kB had room by its size, and its download then failed for want of it."""
    monkeypatch.setattr(adapter, "free_bytes", lambda folder: MARGIN_BYTES)
    assert "not enough room on the disk" in find(REPO).warning[0].value
    monkeypatch.setattr(adapter, "free_bytes", lambda folder: 2 * MARGIN_BYTES)
    assert not find(REPO).warning


def test_an_adapter_beside_its_bases_settings_is_one_all_the_same(hub: HubStandin) -> None:
    """Trainers put the base's config.json and tokenizer beside it: it was called a model that is not quantized."""
    (hub.root / REPO / "main" / "config.json").write_text('{"model_type": "llama"}')
    (hub.root / REPO / "main" / "training_args.bin").write_bytes(b"x")
    assert "This is a LoRA adapter" in words(find(REPO))


def test_one_that_no_model_here_can_have_says_so_and_is_fetched_all_the_same(home: Path, hub: HubStandin) -> None:
    make_checkpoint(home / "wide", Recipe(hidden=128))
    write_adapter(hub.root / "me" / "wide" / "main", home / "wide", base="me/wide")
    tab = find("me/wide")
    assert "None of the models here can have it" in words(tab)
    tab = fetched(begin(tab))
    assert "fetch a quantized copy of its base model" in words(tab)
    assert (home / "adapters" / "me_wide" / WEIGHTS).is_file()


def test_one_of_another_base_with_the_same_shapes_is_told_as_such(hub: HubStandin) -> None:
    change_config(hub.root / REPO / "main", base_model_name_or_path="someone/Mistral-9B")
    assert "names another base model" in words(find(REPO))


def test_deleted_and_fetched_again(home: Path, hub: HubStandin) -> None:
    tab = fetched(begin(find(REPO)))
    click(go(open_tab(), "2_Load_Model"), f"adapter_delete_tiny_{home / 'adapters' / FOLDER}")
    assert "It was deleted or changed since" in words(run(tab)) and not has(tab, f"adapter_load_{JOB}")
    assert can_begin(find(REPO))


def test_one_whose_numbers_are_none_is_told_as_that_once_it_is_here(hub: HubStandin) -> None:
    """It was said to be deleted."""
    weights = hub.root / REPO / "main" / WEIGHTS
    save_file({name: np.full_like(one, np.nan) for name, one in load_file(weights).items()}, weights)
    tab = fetched(begin(find(REPO)))
    assert "are no numbers" in words(tab) and "It was deleted" not in words(tab)
