"""LoRA adapters on the pages: room for them on Load model, one of them in each chat, and how they are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.adapters import WEIGHTS
from core.checkpoint.checkpoint import read_checkpoint
from core.library import adapters
from core.library.adapters import room_to_load
from core.library.last_model import last_load
from core.memory.adapter_room import AdapterRoom
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.pages import WAIT_S, ask, click, finish, last_answer, last_message, load, open_tab, run, words
from tests.support.widgets import has, named
from ui.shared import resources
from ui.shared.markdown import escape


def loaded_room() -> AdapterRoom:
    facts = resources.engine().state.facts
    assert facts is not None
    return facts.adapters


def test_a_model_without_adapters_asks_nothing_about_them(models: Path) -> None:
    tab = open_tab("2_Load_Model")
    assert not has(tab.select_slider, "gauge_adapters_tiny")
    load(tab, "tiny")
    assert not has(open_tab("3_Chat").selectbox, "chat_adapter") and loaded_room().count == 0


def test_there_is_room_for_the_adapters_that_fit_and_the_others_are_said(home: Path, models: Path) -> None:
    write_adapter(home / "adapters" / "pirate", models / "tiny", rank=4, base="meta/tiny")
    write_adapter(home / "adapters" / "poet", models / "tiny", rank=12, base="somebody/other-model")
    broken = write_adapter(home / "adapters" / "broken", models / "tiny")
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    tab = open_tab("2_Load_Model")
    assert named(tab.select_slider, "gauge_adapters_tiny").value == 2
    said = words(tab)
    assert "rank 12" in said and "another base model" in said and "save_pretrained" in said
    load(tab, "tiny")
    assert loaded_room() == AdapterRoom(2, 16)
    assert last_load("tiny").adapters == AdapterRoom(2, 16)


def test_fewer_adapters_are_loaded_and_remembered(home: Path, models: Path) -> None:
    for name in ("pirate", "poet"):
        write_adapter(home / "adapters" / name, models / "tiny")
    tab = open_tab("2_Load_Model")
    named(tab.select_slider, "gauge_adapters_tiny").set_value(1)
    load(run(tab), "tiny")
    assert loaded_room() == AdapterRoom(1, 8)
    run(open_tab())
    assert last_load("tiny").adapters == AdapterRoom(1, 8)


def test_a_load_from_before_there_were_adapters_is_no_choice_against_them(home: Path, models: Path) -> None:
    """The model was loaded as the last time, without room, and its first adapter could not be chosen in a chat."""
    load(open_tab(), "tiny")
    resources.engine().unload()
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    assert room_to_load(read_checkpoint(models / "tiny")).count == 1
    tab = open_tab("2_Load_Model")
    named(tab.select_slider, "gauge_adapters_tiny").set_value(0)
    load(run(tab), "tiny")
    resources.engine().unload()
    assert named(open_tab("2_Load_Model").select_slider, "gauge_adapters_tiny").value == 0
    assert room_to_load(read_checkpoint(models / "tiny")).count == 0


def test_a_chat_has_an_adapter_of_its_own(home: Path, models: Path) -> None:
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat")
    named(tab.selectbox, "chat_adapter").set_value("pirate")
    finish(ask(run(tab), "settings"))
    assert "AdapterUse(name='pirate'" in last_message().text
    tab = click(tab, "chat_new")
    assert named(tab.selectbox, "chat_adapter").value == ""
    finish(ask(tab, "settings"))
    assert "adapter=None" in last_message(2).text
    shutil.rmtree(home / "adapters" / "pirate")
    write_adapter(home / "adapters" / "poet", models / "tiny")
    tab = click(tab, "chat_open_1")
    assert ["pirate was chosen for this chat" in one.value for one in tab.warning] == [True]
    named(tab.selectbox, "chat_adapter").set_value("")
    tab = run(tab)
    assert not tab.warning and named(tab.selectbox, "chat_adapter").options == ["None: the model alone", "poet"]


def test_a_chat_says_that_its_adapter_is_not_the_next_models(home: Path, models: Path) -> None:
    """It once said so in its settings alone, and not where the next model had no adapter at all."""
    make_checkpoint(models / "wide", Recipe(hidden=128))
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat")
    named(tab.selectbox, "chat_adapter").set_value("pirate")
    finish(ask(run(tab), "settings"))
    assert not tab.warning
    load(open_tab(), "wide")
    assert ["pirate was chosen for this chat" in one.value for one in run(tab).warning] == [True]


def test_the_name_of_one_that_is_gone_is_said_letter_by_letter(home: Path, models: Path) -> None:
    """Each download has such a name, and was said to be somebody\\_pirate."""
    write_adapter(home / "adapters" / "somebody_pirate", models / "tiny")
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat")
    named(tab.selectbox, "chat_adapter").set_value("somebody_pirate")
    run(tab)
    shutil.rmtree(home / "adapters" / "somebody_pirate")
    assert f"adapter {escape('somebody_pirate')} was chosen" in run(tab).warning[0].value


def test_a_chat_offers_the_adapters_that_its_model_can_have(home: Path, models: Path) -> None:
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    broken = write_adapter(home / "adapters" / "broken", models / "tiny")
    (broken / "adapter_model.safetensors").unlink()
    load(open_tab(), "tiny")
    assert named(open_tab("3_Chat").selectbox, "chat_adapter").options == ["None: the model alone", "pirate"]


def test_an_adapter_that_came_after_the_load_is_told_with_the_way_to_it(home: Path, models: Path) -> None:
    load(open_tab(), "tiny")
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    tab = open_tab("3_Chat")
    assert not has(tab.selectbox, "chat_adapter") and "tiny was loaded without room for pirate." in words(tab)


def test_an_adapter_without_room_is_not_offered_and_told_with_the_way_to_it(home: Path, models: Path) -> None:
    """It was offered, and each answer with it failed."""
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    load(open_tab(), "tiny")
    for number in range(6):
        write_adapter(home / "adapters" / f"poet{number}", models / "tiny", rank=64)
    tab = open_tab("3_Chat")
    assert named(tab.selectbox, "chat_adapter").options == ["None: the model alone", "pirate"]
    assert "tiny was loaded without room for poet0, poet1, poet2, poet3, poet4, …." in words(tab)
    assert "may change experts" not in words(tab)
    resources.engine().unload()
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat")
    assert len(named(tab.selectbox, "chat_adapter").options) == 8 and "without room" not in words(tab)


def test_adapters_are_read_once_until_they_change(home: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the page once read every adapter twice for every model."""
    reads: list[str] = []
    read = adapters.read_adapter
    monkeypatch.setattr(adapters, "read_adapter", lambda folder: reads.append(folder.name) or read(folder))
    write_adapter(home / "adapters" / "pirate", models / "tiny", rank=4)
    tab = open_tab("2_Load_Model")
    once = len(reads)
    run(tab)
    assert "pirate" in reads and len(reads) == once
    shutil.rmtree(home / "adapters" / "pirate")
    write_adapter(home / "adapters" / "pirate", models / "tiny", rank=8)
    run(tab)
    assert len(reads) > once and "rank 8" in words(tab)


# Deleting ------------------------------------------------------------------------------------------------------------


def question_key(model: str, folder: Path) -> str:
    return f"adapter_delete_{model}_{folder}"


def test_an_adapter_is_deleted_where_it_is_shown_with_a_model(home: Path, models: Path) -> None:
    pirate = write_adapter(home / "adapters" / "pirate", models / "tiny")
    tab = open_tab("2_Load_Model")
    assert "Delete this folder" in words(tab)
    click(tab, question_key("tiny", pirate))
    assert not pirate.exists() and not list((home / "adapters").iterdir())
    assert "pirate" not in words(tab) and not has(tab.select_slider, "gauge_adapters_tiny")


def test_one_that_answers_now_is_not_deleted(home: Path, models: Path) -> None:
    pirate = write_adapter(home / "adapters" / "pirate", models / "tiny")
    load(open_tab(), "tiny")
    old = open_tab("2_Load_Model")
    tab = open_tab("3_Chat")
    named(tab.selectbox, "chat_adapter").set_value("pirate")
    ask(run(tab), "forever")
    assert last_answer().wait_for_text(20, WAIT_S)
    click(old, question_key("tiny", pirate))
    assert pirate.exists() and "is answering in a chat" in words(old)
    assert not has(old.button, question_key("tiny", pirate))
    finish(click(tab, "chat_stop"))
    click(run(old), question_key("tiny", pirate))
    assert not pirate.exists()
    assert "pirate was chosen for this chat" in run(tab).warning[0].value


def test_one_that_is_another_by_now_is_not_deleted(home: Path, models: Path) -> None:
    pirate = write_adapter(home / "adapters" / "pirate", models / "tiny")
    tab = open_tab("2_Load_Model")
    (pirate / "adapter_config.json").touch()
    click(tab, question_key("tiny", pirate))
    assert "are others than those" in tab.error[0].value and pirate.exists()
    click(tab, question_key("tiny", pirate))
    assert not pirate.exists()


def test_one_that_another_tab_has_deleted_is_gone(home: Path, models: Path) -> None:
    pirate = write_adapter(home / "adapters" / "pirate", models / "tiny")
    first, second = open_tab("2_Load_Model"), open_tab("2_Load_Model")
    click(first, question_key("tiny", pirate))
    before = len(second.error)
    assert len(click(second, question_key("tiny", pirate)).error) == before and "pirate" not in words(second)


def test_adapters_of_no_model_here_stand_where_the_disk_is_and_can_be_deleted(home: Path, models: Path) -> None:
    make_checkpoint(home / "wide", Recipe(hidden=128))
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    stranger = write_adapter(home / "adapters" / "stranger", home / "wide", base="me/wide")
    broken = write_adapter(home / "adapters" / "broken", models / "tiny")
    (broken / "adapter_model.safetensors").unlink()
    tab = open_tab("2_Load_Model")
    assert "trained on me/wide" in words(tab) and "lacks adapter\\_model.safetensors" in words(tab)
    assert [box.label for box in tab.expander if "no model here" in box.label] == [
        "LoRA adapters for no model here (2)"
    ]
    assert "LoRA adapters" in "".join(element.proto.body for element in tab.get("html"))
    for folder in (stranger, broken):
        click(tab, question_key("", folder))
        assert not folder.exists()
    assert not [box.label for box in tab.expander if "no model here" in box.label]
    assert (home / "adapters" / "pirate").exists()


def test_one_that_is_told_with_its_model_is_not_told_as_one_of_no_model(home: Path, models: Path) -> None:
    """One that changes what is not quantized stood in both places."""
    head = write_adapter(home / "adapters" / "head", models / "tiny")
    tensors = load_file(head / WEIGHTS)
    save_file({name.replace("self_attn.q_proj", "input_layernorm"): one for name, one in tensors.items()},
              head / WEIGHTS)  # fmt: skip
    tab = open_tab("2_Load_Model")
    assert "which is not quantized" in words(tab)
    assert not [box.label for box in tab.expander if "no model here" in box.label]


def test_one_in_a_models_own_folder_is_deleted_there_unless_the_model_is_linked(home: Path, models: Path) -> None:
    make_checkpoint(models / "mine")
    make_checkpoint(home / "elsewhere" / "theirs")
    (models / "theirs").symlink_to(home / "elsewhere" / "theirs")
    own = write_adapter(models / "mine" / "poet", models / "mine")
    linked = write_adapter(home / "elsewhere" / "theirs" / "poet", models / "mine")
    tab = open_tab("2_Load_Model")
    assert "only linked here" in words(tab) and not has(tab.button, question_key("theirs", models / "theirs" / "poet"))
    click(tab, question_key("mine", own))
    assert not own.exists() and linked.exists() and (models / "mine" / "config.json").exists()


def test_of_a_linked_one_the_link_alone_is_asked_for_and_deleted(home: Path, models: Path) -> None:
    """The question was whether the folder goes, with everything in it."""
    real = write_adapter(home / "elsewhere" / "pirate", models / "tiny")
    linked = home / "adapters" / "pirate"
    linked.parent.mkdir(exist_ok=True)
    linked.symlink_to(real)
    tab = open_tab("2_Load_Model")
    assert any("Remove this link" in one.value and escape(str(linked)) in one.value for one in tab.markdown)
    click(tab, question_key("tiny", linked))
    assert not linked.is_symlink() and (real / "adapter_config.json").is_file()


def test_one_with_a_link_to_nothing_in_it_is_deleted_too(home: Path, models: Path) -> None:
    """Nothing happened, and nothing was said."""
    pirate = write_adapter(home / "adapters" / "pirate", models / "tiny")
    (pirate / "README.md").symlink_to(home / "gone")
    click(open_tab("2_Load_Model"), question_key("tiny", pirate))
    assert not pirate.exists()


def test_one_that_names_no_base_says_so(home: Path, models: Path) -> None:
    write_adapter(home / "adapters" / "pirate", models / "tiny")
    assert "trained on a model that it does not name" in words(open_tab("2_Load_Model"))


def test_an_unfinished_download_is_no_adapter(home: Path, models: Path) -> None:
    write_adapter(home / "adapters" / ".download-somebody_pirate", models / "tiny")
    assert "pirate" not in words(open_tab("2_Load_Model"))
