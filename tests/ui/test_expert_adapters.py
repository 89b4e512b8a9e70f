"""LoRA adapters of single experts on the pages: room for them is a choice of its own, off until somebody wants it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import read_checkpoint
from core.library.adapters import room_to_load
from core.library.last_model import last_load
from core.memory.adapter_room import AdapterRoom
from tests.support.adapters import write_adapter, write_expert_adapter
from tests.support.pages import load, open_tab, run, words
from tests.support.widgets import has, named
from ui.download.adapter import next_step
from ui.load.gauge import verdict
from ui.shared import resources

TOGGLE, SLIDER = "gauge_adapters_of_experts_moe", "gauge_adapters_moe"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that adapters of its experts are seen in a verdict."""
    from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint

    folder = tmp_path_factory.mktemp("mixture") / "moe"
    config = {"model_type": "qwen3_moe", "hidden_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 128,
              "vocab_size": VOCABULARY, "num_experts": 32, "num_experts_per_tok": 2}  # fmt: skip
    make_family_checkpoint(folder, config)
    return folder


@pytest.fixture
def moe(models: Path, mixture: Path) -> Path:
    return Path(shutil.copytree(mixture, models / "moe"))


def loaded_room() -> AdapterRoom:
    facts = resources.engine().state.facts
    assert facts is not None
    return facts.adapters


def switch_on(tab: AppTest) -> AppTest:
    named(tab.toggle, TOGGLE).set_value(True)
    return run(tab)


def test_only_a_mixture_with_adapters_is_asked_about_experts(home: Path, models: Path, moe: Path) -> None:
    assert not has(open_tab("2_Load_Model").toggle, TOGGLE)
    write_adapter(home / "adapters" / "pirate", moe)
    write_adapter(home / "adapters" / "plain", models / "tiny", seed=1)
    tab = open_tab("2_Load_Model")
    assert has(tab.toggle, TOGGLE) and not has(tab.toggle, TOGGLE.replace("moe", "tiny"))
    assert "switch “Adapters may change experts too” on before" not in words(tab)
    named(tab.select_slider, SLIDER).set_value(0)
    assert not has(run(tab).toggle, TOGGLE)


def test_room_for_experts_is_off_until_somebody_wants_it_and_is_remembered(home: Path, moe: Path) -> None:
    write_expert_adapter(home / "adapters" / "poet", moe)
    tab = open_tab("2_Load_Model")
    assert named(tab.toggle, TOGGLE).value is False
    assert "It changes single experts" in words(tab)
    load(tab, "moe")
    assert loaded_room() == AdapterRoom(1, 8)
    resources.engine().unload()
    load(switch_on(run(tab)), "moe")
    assert loaded_room() == last_load("moe").adapters == AdapterRoom(1, 8, True)
    assert "It changes single experts" not in words(open_tab("2_Load_Model"))
    assert room_to_load(read_checkpoint(moe)) == AdapterRoom(1, 8, True)
    resources.engine().unload()
    assert named(open_tab("2_Load_Model").toggle, TOGGLE).value is True


def test_a_chat_offers_one_of_experts_once_there_is_room(home: Path, moe: Path) -> None:
    write_adapter(home / "adapters" / "pirate", moe)
    write_expert_adapter(home / "adapters" / "poet", moe)
    tab = open_tab("2_Load_Model")
    load(tab, "moe")
    chat = open_tab("3_Chat")
    assert named(chat.selectbox, "chat_adapter").options == ["None: the model alone", "pirate"]
    assert "moe was loaded without room for poet." in words(chat) and "may change experts too” on" in words(chat)
    resources.engine().unload()
    load(switch_on(run(tab)), "moe")
    chat = open_tab("3_Chat")
    assert named(chat.selectbox, "chat_adapter").options == ["None: the model alone", "pirate", "poet"]
    assert "without room" not in words(chat)


def test_what_room_for_experts_takes_is_told_before_the_load(home: Path, moe: Path) -> None:
    """Sixteen adapters of rank 256: 32 experts with three matrices of 512 by 256."""
    for number in range(2):
        write_expert_adapter(home / "adapters" / f"poet-{number}", moe, rank=256)
    tab = open_tab("2_Load_Model")
    named(tab.select_slider, SLIDER).set_value(16)
    assert "Room for experts in all of these adapters takes 1.1 GiB" in words(run(tab))
    before = words(tab)
    assert words(switch_on(tab)) != before
    checkpoint = read_checkpoint(moe)
    without, with_experts = (
        verdict(checkpoint, [], 128, 1, AdapterRoom(16, 256, has_experts)) for has_experts in (False, True)
    )
    # On a CPU as they were read too.
    assert with_experts.needed_mib - without.needed_mib == pytest.approx(2 * 576, abs=1)


def test_a_fetched_one_says_what_has_to_be_chosen(home: Path, moe: Path) -> None:
    adapter = read_adapter(write_expert_adapter(home / "adapters" / "poet", moe))
    tab = open_tab("2_Load_Model")
    assert "switch “Adapters may change experts too” on there" in next_step(adapter).words
    load(tab, "moe")
    step = next_step(adapter)
    assert "loaded without room" in step.words and "switch “Adapters may change experts too” on there" in step.words
    resources.engine().unload()
    load(switch_on(run(tab)), "moe")
    assert "is loaded with room for it" in next_step(adapter).words
    plain = read_adapter(write_adapter(home / "adapters" / "pirate", moe))
    resources.engine().unload()
    assert "experts" not in next_step(plain).words


def test_the_load_button_takes_what_the_switch_says_by_then(home: Path, moe: Path) -> None:
    """Switched in the same run as the click, before the page was drawn again."""
    write_expert_adapter(home / "adapters" / "poet", moe)
    tab = open_tab("2_Load_Model")
    named(tab.toggle, TOGGLE).set_value(True)
    load(tab, "moe")
    assert loaded_room() == AdapterRoom(1, 8, True)
