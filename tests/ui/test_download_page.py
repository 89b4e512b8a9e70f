"""The page Download with AppTest, against the stand-in of the Hub and with an engine that has no model."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import load_file, save_file
from streamlit.testing.v1 import AppTest

from core.hub.tokens import token_for
from core.library.scan import read_entry
from core.starter.build import NAME as STARTER
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.download_page import (
    begin,
    can_begin,
    download_keys,
    has,
    open_page,
    phases,
    plan_for,
    search,
    show,
    until,
)
from tests.support.hub_standin import HubStandin
from tests.support.pages import click, go, open_tab, run, words
from tests.support.widgets import named
from ui.download.jobs import duration
from ui.download.search import named_address
from ui.shared import resources
from ui.shared.markdown import escape

REPO = "some/tiny-GPTQ"
FINE = "gptq-4bit-32g-actorder_True"
FOLDER = f"some_tiny-GPTQ_{FINE}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandin]:
    served = {REPO: {"main": Recipe(num_layers=1), FINE: Recipe(num_layers=1, act_order=True)},
              "closed/Secret-GPTQ": {"main": Recipe(num_layers=1)}}  # fmt: skip
    for repo, branches in served.items():
        for branch, recipe in branches.items():
            make_checkpoint(tmp_path / "hub" / repo / branch, recipe)
    with HubStandin(tmp_path / "hub") as standin:
        yield standin


@pytest.fixture
def models(home: Path, hub: HubStandin, no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The models folder of a dashboard of its own, whose Hub is the stand-in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield home / "models"
    resources.downloads().close()


def download(tab: AppTest, name: str = f"{REPO}:{FINE}") -> AppTest:
    begin(search(tab, name))
    return until(tab, lambda: phases()[-1] == "done")


# Find ----------------------------------------------------------------------------------------------------------------


def test_the_page_opens_without_asking_anybody(models: Path, hub: HubStandin) -> None:
    tab = open_page()
    assert list(tab.dataframe[1].value["Branch"]) == ["main"]
    tab.segmented_control(key="find_list").set_value("llama2")
    assert list(run(tab).dataframe[0].value["Branch"])[:2] == ["main", FINE]
    assert hub.requests == [] and not models.exists()


def test_the_page_begins_with_the_best_recommended_model_for_the_card(models: Path, hub: HubStandin) -> None:
    """It once began with a Llama-2 of 2023, whatever the card."""
    for card, best in (("RTX 4090", "35B-A3B"), ("RTX 3060 8GB", "8B"), ("A40", "70B")):
        tab = plan_for(open_page(), card)
        table = tab.dataframe[0].value
        marked = table[table["Verdict"] == "✅ best for this card"]["Repository"]
        assert len(marked) == 1 and best in marked.iloc[0], card
        assert f"**{marked.iloc[0]}**" in words(tab)
        assert can_begin(tab)
    assert hub.requests == []


def test_words_are_searched_for_and_the_first_result_is_shown(models: Path, hub: HubStandin) -> None:
    tab = search(open_page(), "tiny")
    assert list(tab.dataframe[0].value["Repository"]) == [REPO]
    until(tab, lambda: len(tab.dataframe) == 2)
    assert list(tab.dataframe[1].value["Branch"]) == ["main", FINE]
    asked = len(hub.requests)
    run(tab)
    assert len(hub.requests) == asked


def test_what_lies_in_hugging_faces_cache_is_offered_and_loaded_from_there(
    models: Path, hub: HubStandin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = Path(snapshot_download(REPO, endpoint=hub.url, cache_dir=tmp_path / "cache", token=False))
    name = f"some_tiny-GPTQ@{snapshot.name[:8]}"
    tab = search(open_page(), REPO)
    until(tab, lambda: bool(tab.dataframe))
    assert "Hugging Face's cache" in words(tab) and snapshot.name[:8] in words(tab) and not can_begin(tab)
    until(search(tab, f"{REPO}:{FINE}"), lambda: can_begin(tab))
    tab = open_tab("2_Load_Model")
    assert snapshot.name[:8] in words(tab) and "hf cache rm" in words(tab)
    assert has(tab, f"library_verify_{name}") and not has(tab, f"library_delete_{name}")
    assert "in Hugging Face's cache" in words(tab)
    click(tab, f"load_model_{name}")
    until(tab, lambda: resources.engine().state.phase == "ready")
    assert (resources.engine().state.model, resources.engine().state.folder) == (name, snapshot)
    assert not models.exists()


def test_words_that_nothing_is_called_by_say_so(models: Path) -> None:
    assert "“nosuchmodel”" in words(search(open_page(), "nosuchmodel"))


def test_every_branch_has_a_verdict_and_the_best_is_recommended(models: Path) -> None:
    tab = plan_for(search(open_page(), REPO), "RTX 4090")
    assert list(tab.dataframe[0].value["Verdict"]) == ["✅ fits", "✅ recommended"]
    assert f"**{escape(f'{REPO}:{FINE}')}**" in words(tab)


def test_a_branch_that_is_named_is_chosen_before_the_recommended_one(models: Path, hub: HubStandin) -> None:
    (hub.root / REPO / "coarse").mkdir()
    make_checkpoint(hub.root / REPO / "coarse", Recipe(num_layers=1, group_size=64))
    tab = plan_for(search(open_page(), f"{REPO}:coarse"), "RTX 4090")
    assert escape(f"{REPO}:coarse") in words(tab)


def test_a_branch_that_cannot_be_run_says_why_and_has_no_button(models: Path, hub: HubStandin) -> None:
    (hub.root / REPO / "gguf").mkdir()
    (hub.root / REPO / "gguf" / "model.gguf").write_bytes(b"x")
    tab = plan_for(search(open_page(), f"{REPO}:gguf"), "RTX 4090")
    table = tab.dataframe[0].value
    assert dict(zip(table["Branch"], table["Verdict"], strict=True)) == {
        "main": "✅ fits",
        "gguf": "⚠️ cannot be run",
        FINE: "✅ recommended",
    }
    assert "has no config.json" in tab.error[0].value and not can_begin(tab)


def make_moe(folder: Path) -> None:
    """A mixture of experts as far as its configuration and its tensors' names tell."""
    make_checkpoint(folder, Recipe(num_layers=1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "dbrx", "num_experts": 8}))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.replace(".mlp.", ".mlp.experts.0."): tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )


def test_a_model_that_cannot_run_is_marked_among_the_results_and_is_not_offered(models: Path, hub: HubStandin) -> None:
    """It once fitted, was downloaded, and was then refused."""
    make_moe(hub.root / "an" / "Experts-tiny-GPTQ" / "main")
    tab = plan_for(search(open_page(), "tiny"), "RTX 4090")
    found = tab.dataframe[0].value
    marks = dict(zip(found["Repository"], found["Runs here?"], strict=True))
    assert marks == {"an/Experts-tiny-GPTQ": "⚠️ mixture of experts", REPO: ""}
    assert found.columns[0] == "Runs here?", "a long name pushed it out of sight"
    assert f"**{REPO}**" in words(tab) and can_begin(tab)
    tab = plan_for(search(tab, "an/Experts-tiny-GPTQ"), "RTX 4090")
    assert list(tab.dataframe[0].value["Verdict"]) == ["⚠️ mixture of experts"]
    assert "that this version does not run" in tab.error[0].value and not can_begin(tab)
    tab.selectbox(key="plan_gpu").set_value("here")
    assert "that this version does not run" in run(tab).error[0].value and not can_begin(tab)


def test_what_does_not_fit_can_be_downloaded_all_the_same(models: Path) -> None:
    tab = open_page()
    tab.segmented_control(key="find_list").set_value("llama2")
    run(tab).selectbox(key="catalogue_repo").set_value("TheBloke/Llama-2-70B-Chat-GPTQ")
    plan_for(tab, "RTX 4090")
    assert "does not fit on RTX 4090" in tab.warning[0].value
    button = named(tab.button, download_keys(tab)[0])
    assert button.label.endswith("anyway")
    assert "recommended" not in " ".join(tab.dataframe[0].value["Verdict"])


def test_a_hub_that_is_down_is_a_sentence_and_can_be_asked_again(models: Path, hub: HubStandin) -> None:
    hub.behaviour.statuses["/api/models/some"] = 429
    tab = search(open_page(), REPO)
    assert "takes no more requests" in tab.error[0].value
    hub.behaviour.statuses.clear()
    until(click(tab, "find_again"), lambda: bool(tab.dataframe))
    assert list(tab.dataframe[0].value["Branch"]) == ["main", FINE]


def test_without_a_network_the_page_tells_of_other_sources(models: Path, hub: HubStandin) -> None:
    hub.close()
    tab = search(open_page(), REPO)
    assert "cannot be reached" in tab.error[0].value and "ModelScope" in words(tab)
    search(tab, "")
    assert len(tab.dataframe) == 2 and not tab.error


@pytest.mark.parametrize("text", ["../../etc", "a/b:..", "https://huggingface.co/", "/", ":", "a/b/c d", "🦙/🦙"])
def test_names_that_are_none_are_a_sentence(models: Path, hub: HubStandin, text: str) -> None:
    tab = search(open_page(), text)
    assert len(tab.error) == 1 and "{" not in tab.error[0].value
    assert not [path for path in hub.paths if ".." in path]


def test_an_own_address_that_is_none_is_a_sentence(models: Path) -> None:
    tab = open_page()
    tab.text_input(key="download_own").set_value("nonsense")
    assert "nonsense" in run(tab).error[0].value and not tab.dataframe


def test_modelscope_begins_with_the_models_that_are_there_too_and_asks_nobody(models: Path, hub: HubStandin) -> None:
    tab = plan_for(open_page(), "A40")
    num_all = len(tab.dataframe[0].value)
    tab.selectbox(key="download_source").set_value("modelscope")
    run(tab)
    listed = list(tab.dataframe[0].value["Repository"])
    assert 0 < len(listed) < num_all and not any(repo.startswith(("TheBloke", "hugging-quants")) for repo in listed)
    assert not tab.error and hub.requests == []
    assert "owner/name" in words(search(tab, "qwen"))


def test_a_chosen_source_is_remembered(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    tab = open_page()
    assert tab.selectbox(key="download_source").value == "huggingface"
    tab.selectbox(key="download_source").set_value("mirror")
    run(tab)
    assert open_page().selectbox(key="download_source").value == "mirror"


def test_the_environments_address_comes_before_one_that_was_typed_once(models: Path, hub: HubStandin) -> None:
    tab = open_page()
    tab.text_input(key="download_own").set_value("https://hub.example")
    run(tab)
    assert open_page().text_input(key="download_own").value == hub.url


def test_names_are_told_from_words_to_search() -> None:
    assert named_address("llama chat") is None and named_address("Llama-2-7B-Chat-GPTQ") is None
    assert str(named_address("llama-2-7b-chat-gptq:x")) == "TheBloke/Llama-2-7B-Chat-GPTQ:x"
    assert str(named_address("https://hf-mirror.com/a/b/tree/x")) == "a/b:x"


# Tokens --------------------------------------------------------------------------------------------------------------


def test_a_gated_repository_asks_for_a_token_and_opens_with_it(models: Path, hub: HubStandin, tmp_path: Path) -> None:
    hub.behaviour.gated, hub.behaviour.tokens, hub.behaviour.accepted = {"closed/Secret-GPTQ"}, {"hf_ok"}, {"hf_ok"}
    tab = plan_for(search(open_page(), "closed/Secret-GPTQ"), "RTX 4090")
    assert "accepted its terms" in tab.error[0].value and not can_begin(tab)
    named(tab.text_input, "download_token").set_value("hf_ok")
    click(tab, "token_keep")
    until(tab, lambda: can_begin(tab))
    assert token_for(hub.url) == "hf_ok" and "hf_ok" not in words(tab)
    assert stat.S_IMODE((tmp_path / "data" / "secrets.json").stat().st_mode) == 0o600


def test_the_page_says_where_a_token_comes_from(
    models: Path, hub: HubStandin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.behaviour.gated, hub.behaviour.tokens = {"closed/Secret-GPTQ"}, {"hf_login", "hf_given"}
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_login")
    tab = search(open_page(), "closed/Secret-GPTQ")
    assert "hf auth login" in words(tab) and "hf_login" not in words(tab)
    assert any(request.headers.get("Authorization") == "Bearer hf_login" for request in hub.requests)
    named(tab.text_input, "download_token").set_value("hf_given")
    click(tab, "token_keep")
    until(tab, lambda: "is kept here" in words(tab))
    assert any(request.headers.get("Authorization") == "Bearer hf_given" for request in hub.requests)
    assert (tmp_path / "token").read_text() == "hf_login"


def test_what_is_no_token_is_not_kept(models: Path, hub: HubStandin) -> None:
    hub.behaviour.gated = {"closed/Secret-GPTQ"}
    tab = search(open_page(), "closed/Secret-GPTQ")
    named(tab.text_input, "download_token").set_value("two words")
    click(tab, "token_keep")
    assert any("no token has" in error.value for error in tab.error)
    assert token_for(hub.url) is None


def test_a_token_that_was_typed_for_one_server_is_not_kept_for_another(models: Path, hub: HubStandin) -> None:
    hub.behaviour.gated = {"closed/Secret-GPTQ"}
    tab = search(open_page(), "closed/Secret-GPTQ")
    named(tab.text_input, "download_token").set_value("hf_of_the_first")
    other = hub.url.replace("127.0.0.1", "localhost")
    tab.text_input(key="download_own").set_value(other)
    # While the other server is asked there is no field.
    until(tab, lambda: any(str(one.key).startswith("download_token_") and other in one.key for one in tab.text_input))
    assert named(tab.text_input, "download_token").value == ""
    click(tab, "token_keep")
    assert token_for(other) is None and token_for(hub.url) is None


# Downloads -----------------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_verified_and_loaded(models: Path, hub: HubStandin) -> None:
    tab = download(open_page())
    assert named(tab.segmented_control, "download_section_choice").value == "jobs"
    assert "Complete and verified" in words(tab)
    assert read_entry(models / FOLDER).checkpoint is not None
    assert click(tab, f"job_load_{FOLDER}").title[0].value == "Load model"
    resources.engine().wait_while_loading(30)
    assert (resources.engine().state.model, resources.engine().state.phase) == (FOLDER, "ready")


def test_what_is_on_disk_is_not_offered_for_download(models: Path) -> None:
    tab = download(open_page())
    show(tab, "find")
    assert "On disk already" in words(tab) and has(tab, "find_load") and not can_begin(tab)


def test_a_download_can_be_paused_resumed_and_is_shown_in_the_sidebar(models: Path, hub: HubStandin) -> None:
    hub.behaviour.rate_bytes_s = 20_000
    tab = begin(search(open_page(), REPO))
    until(tab, lambda: phases() == ["running"])
    go(tab, "5_GPU_Monitor")
    assert has(tab, "sidebar_downloads")
    assert click(tab, "sidebar_downloads").title[0].value == "Download"
    click(go(tab, "1_Download"), "job_pause_some_tiny-GPTQ")
    until(tab, lambda: phases() == ["paused"])
    assert "Paused" in words(tab) and not has(tab, "sidebar_downloads")
    hub.behaviour.rate_bytes_s = 0
    click(tab, "job_resume_some_tiny-GPTQ")
    until(tab, lambda: phases() == ["done"])


def test_a_download_of_an_earlier_process_is_there_paused(models: Path, hub: HubStandin) -> None:
    hub.behaviour.rate_bytes_s = 20_000
    tab = begin(search(open_page(), REPO))
    until(tab, lambda: phases() == ["running"])
    resources.downloads().close()
    st.cache_resource.clear()
    hub.behaviour.rate_bytes_s = 0
    tab = show(open_page(), "jobs")
    assert "Paused" in words(tab)
    until(click(tab, "job_resume_some_tiny-GPTQ"), lambda: phases() == ["done"])


def test_a_cancelled_download_leaves_nothing(models: Path, hub: HubStandin) -> None:
    hub.behaviour.rate_bytes_s = 20_000
    tab = begin(search(open_page(), REPO))
    until(tab, lambda: phases() == ["running"])
    click(tab, "job_cancel_some_tiny-GPTQ")
    until(tab, lambda: phases() in ([], ["cancelled"]))
    assert not [path.name for path in models.iterdir() if "tiny" in path.name and not path.name.endswith(".lock")]


def test_a_finished_download_can_be_taken_off_the_list(models: Path) -> None:
    tab = click(download(open_page()), f"job_dismiss_{FOLDER}")
    assert "Nothing is being downloaded" in tab.info[0].value and (models / FOLDER).is_dir()


def test_a_model_that_was_deleted_can_be_downloaded_again(models: Path) -> None:
    click(go(download(open_page()), "2_Load_Model"), f"library_delete_{FOLDER}")
    tab = search(open_page(), f"{REPO}:{FINE}")
    assert can_begin(until(tab, lambda: can_begin(tab)))


def test_a_download_that_fails_says_why_and_can_be_resumed(models: Path, hub: HubStandin) -> None:
    tab = search(open_page(), REPO)
    hub.behaviour.statuses["/resolve/"] = 403
    begin(tab)
    until(tab, lambda: phases() == ["failed"])
    assert tab.error and has(tab, "job_resume_some_tiny-GPTQ")
    hub.behaviour.statuses.clear()
    until(click(tab, "job_resume_some_tiny-GPTQ"), lambda: phases() == ["done"])


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (45, "0:45"), (750, "12:30"), (11100, "3:05:00")])
def test_times_are_as_coarse_as_anybody_wants_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# Upkeep, on Load model -----------------------------------------------------------------------------------------------


def test_a_model_tells_where_it_came_from(models: Path, hub: HubStandin) -> None:
    assert hub.commit(REPO, FINE)[:8] in words(go(download(open_page()), "2_Load_Model"))


def test_the_starter_was_made_here(models: Path) -> None:
    make_checkpoint(models / STARTER)
    seen = words(open_tab("2_Load_Model"))
    assert "made on this machine" in seen and "by hand" not in seen


def test_a_model_is_verified_and_damage_is_found(models: Path) -> None:
    tab = go(download(open_page()), "2_Load_Model")
    verified = f"library_verify_{FOLDER}"
    until(click(tab, verified), lambda: bool(tab.success))
    assert "as it was published" in tab.success[0].value
    weights = models / FOLDER / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    until(click(tab, verified), lambda: bool(tab.error))
    assert "model.safetensors" in tab.error[0].value


def test_a_deleted_model_is_gone_and_a_loaded_one_stays(models: Path) -> None:
    make_checkpoint(models / "tiny")
    tab = open_tab("2_Load_Model")
    resources.engine().load(models / "tiny")
    resources.engine().wait_while_loading(30)
    click(tab, "library_delete_tiny")
    assert (models / "tiny").is_dir() and not has(tab, "library_delete_tiny")
    assert "is loaded" in words(tab)
    resources.engine().unload()
    assert str(models / "tiny").replace("_", "\\_") in words(run(tab))
    click(tab, "library_delete_tiny")
    assert not (models / "tiny").exists() and "no model on disk yet" in words(tab)


def test_folders_may_be_called_as_other_things_on_the_page_are(models: Path) -> None:
    names = ("tiny", "verify_tiny", "ask_tiny", "path")
    for name in names:
        make_checkpoint(models / name)
    tab = open_tab("2_Load_Model")
    assert not tab.exception and all(has(tab, f"library_verify_{name}") for name in names)


@pytest.mark.parametrize("button", ["library_copy", "library_link"])
def test_a_folder_from_elsewhere_is_brought_in(models: Path, tmp_path: Path, button: str) -> None:
    make_checkpoint(tmp_path / "elsewhere" / "mine")
    tab = open_tab("2_Load_Model")
    tab.text_input(key="library_path").set_value(str(tmp_path / "elsewhere" / "mine"))
    until(click(tab, button), lambda: bool(tab.success))
    assert (models / "mine").is_symlink() == (button == "library_link")
    assert "put here by hand" in words(tab)
    assert click(tab, "library_delete_mine") and not (models / "mine").exists()
    assert (tmp_path / "elsewhere" / "mine" / "config.json").exists()


def test_a_path_that_holds_no_model_is_a_sentence(models: Path, tmp_path: Path) -> None:
    tab = open_tab("2_Load_Model")
    tab.text_input(key="library_path").set_value(str(tmp_path / "nothing"))
    until(click(tab, "library_link"), lambda: bool(tab.error))
    assert "is not a folder" in tab.error[0].value


def test_a_folder_that_is_no_model_can_be_deleted(models: Path) -> None:
    (models / "broken").mkdir(parents=True)
    tab = open_tab("2_Load_Model", "zh-CN")
    assert "config.json" in tab.error[0].value and not has(tab, "load_model_broken")
    assert click(tab, "library_delete_broken") and not (models / "broken").exists()


def test_a_folder_that_is_another_by_now_is_not_deleted(models: Path) -> None:
    tab = go(download(open_page()), "2_Load_Model")
    (models / FOLDER / "config.json").touch()
    click(tab, f"library_delete_{FOLDER}")
    assert "are others than those" in tab.error[0].value and (models / FOLDER).exists()
    click(tab, f"library_delete_{FOLDER}")
    assert not (models / FOLDER).exists()


def test_a_folder_that_was_replaced_is_no_longer_called_verified(models: Path) -> None:
    tab = go(download(open_page()), "2_Load_Model")
    until(click(tab, f"library_verify_{FOLDER}"), lambda: bool(tab.success))
    (models / FOLDER / "model.safetensors").touch()
    assert not run(tab).success
