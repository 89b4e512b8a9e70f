"""Models that think before they answer, on the chat page."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.records import Thought
from tests.support.checkpoints import TEMPLATE, make_chat_checkpoint
from tests.support.pages import WAIT_S, ask, click, finish, last_answer, last_message, load, open_tab, run, words
from tests.support.widgets import has, named
from ui.shared import resources

# As Qwen3's: past thoughts are left out, and thinking can be switched off.
THINKING = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_checkpoint(tmp_path_factory.mktemp("thinking") / "tiny", 2048, THINKING)


def open_chat() -> AppTest:
    load(open_tab(), "tiny")
    return open_tab("3_Chat")


def boxes(tab: AppTest) -> list[str]:
    return [box.label for box in tab.expander if box.label]


def test_a_thought_is_folded_above_its_answer(models: Path) -> None:
    tab = finish(ask(open_chat(), "think=3 words=2"))
    answer = resources.chat_store().read(1).messages[-1]
    assert answer.text == "one two " and answer.thought is not None
    assert answer.thought.text == "thought0 thought1 thought2" and answer.whole.startswith("<think>\nthought0")
    box = next(box for box in tab.expander if box.label.startswith("Thought"))
    assert [one.value for one in box.caption] == ["thought0 thought1 thought2"]
    assert "<think>" not in words(tab)


def test_while_it_thinks_the_page_counts_and_a_stopped_thought_says_so(models: Path) -> None:
    tab = ask(open_chat(), "think=100000 wait=0.01")
    assert last_answer().wait_for_text(30, WAIT_S)
    tab.run()
    assert any("Thinking…" in label for label in boxes(tab))
    click(tab, "chat_stop")
    tab = finish(tab)
    answer = resources.chat_store().read(1).messages[-1]
    assert answer.text == "" and isinstance(answer.thought, Thought) and not answer.thought.closing
    assert any("not finished" in label or label == "Thought" for label in boxes(tab))


def test_thinking_is_switched_in_each_chat_and_has_a_budget(models: Path) -> None:
    tab = open_chat()
    named(tab.selectbox, "chat_thinking").select("off")
    run(tab)
    named(tab.number_input, "chat_thinking_budget").set_value(64)
    run(tab)
    assert named(tab.selectbox, "chat_thinking").value == "off"
    finish(ask(tab, "hello"))
    info, answer = resources.chat_store().info(1), last_message()
    assert (info.settings["thinking"], info.settings["thinking_budget"]) == ("off", 64)
    assert answer.stats["template"] == {"enable_thinking": False}
    # The template ended the thought that it does not want.
    assert answer.thought is None and answer.text == "You said: hello "
    named(tab.selectbox, "chat_thinking").select("default")
    run(tab)
    assert "thinking" not in resources.chat_store().info(1).settings
    click(tab, "chat_go_on")
    finish(tab)
    # It goes on from the prompt that it was begun with.
    assert last_message().stats["template"] == {"enable_thinking": False}


def test_the_counter_counts_the_prompt_of_an_answer_that_goes_on(models: Path) -> None:
    tab = ask(open_chat(), "forever")
    assert last_answer().wait_for_text(200, WAIT_S)
    click(tab, "chat_stop")
    click(finish(tab), "chat_go_on")
    answer = last_answer()
    assert answer.wait_for_text(1, WAIT_S) and answer.prompt_tokens > 20
    (counter,) = (one for one in run(tab).caption if "data_usage" in one.value)
    assert f"reads {answer.prompt_tokens:,} tokens" in counter.help
    click(tab, "chat_stop")


def test_plain_lines_which_no_template_writes_have_no_switch_of_it(models: Path) -> None:
    tab = open_chat()
    assert has(tab.selectbox, "chat_thinking")
    named(tab.selectbox, "chat_mode").set_value("chat")
    assert not has(run(tab).selectbox, "chat_thinking") and has(tab.number_input, "chat_thinking_budget")


def test_a_model_that_does_not_think_has_no_switch(models: Path, checkpoint: Path) -> None:
    (models / "plain").mkdir()
    for path in checkpoint.iterdir():
        if path.name != "chat_template.jinja":
            (models / "plain" / path.name).symlink_to(path)
    (models / "plain" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    load(open_tab(), "plain")
    tab = open_tab("3_Chat")
    assert not has(tab.selectbox, "chat_thinking") and not has(tab.number_input, "chat_thinking_budget")


def test_what_was_chosen_last_for_a_model_holds_in_its_next_chats(models: Path) -> None:
    tab = load(open_tab(), "tiny")
    tab = open_tab("3_Chat")
    named(tab.selectbox, "chat_thinking").select("off")
    run(tab)
    another = open_tab("3_Chat")
    assert named(another.selectbox, "chat_thinking").value == "off"
    ask(another, "hello")
    finish(another)
    assert last_message().stats["template"] == {"enable_thinking": False}
    assert "thinking" not in resources.chat_store().info(1).settings, "another model in this chat thinks as it likes"
    named(another.selectbox, "chat_thinking").select("default")
    run(another)
    assert named(open_tab("3_Chat").selectbox, "chat_thinking").value == "default"
