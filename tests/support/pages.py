"""Pages run by Streamlit's AppTest: what a person does on them, and reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from streamlit.testing.v1 import AppTest

from core.chat.records import Message
from core.common.paths import ROOT
from core.engine.answer import Answer
from tests.support.widgets import named
from ui.shared import resources

if TYPE_CHECKING:
    from tests.support.nvml_standin import Standin

PAGES = ["1_Download", "2_Load_Model", "3_Chat", "4_Characters", "5_GPU_Monitor"]
LONG_NAME = "TheBloke_a-name-with_under_scores-and-$igns-Llama-2-70B-chat-GPTQ-gptq-4bit-32g-actorder_True"
WAIT_S = 60.0


def open_tab(page: str | None = None, locale: str = "en-US", query: dict[str, str] | None = None) -> AppTest:
    """A new tab on Home, or on one of the pages."""
    tab = AppTest.from_file(str(ROOT / "Home.py"), default_timeout=120)
    tab.context = {"locale": locale}
    run(tab)
    if page is not None:
        for name, value in (query or {}).items():
            tab.query_params[name] = value
        go(tab, page)
    return tab


def run(tab: AppTest) -> AppTest:
    tab.run()
    assert not tab.exception, tab.exception
    return tab


def go(tab: AppTest, page: str) -> AppTest:
    tab.switch_page(f"pages/{page}.py")
    return run(tab)


def click(tab: AppTest, name: str) -> AppTest:
    named(tab.button, name).click()
    return run(tab)


def ask(tab: AppTest, text: str) -> AppTest:
    named(tab.chat_input, "chat_input").set_value(text)
    return run(tab)


def load(tab: AppTest, name: str) -> AppTest:
    """Load a model by its button, and see the page as it is when that has ended."""
    click(go(tab, "2_Load_Model"), f"load_model_{name}")
    resources.engine().wait_while_loading(WAIT_S)
    return run(tab)


def last_message(number: int = 1) -> Message:
    return resources.chat_store().read(number).messages[-1]


def last_answer(number: int = 1) -> Answer:
    """The answer that is being written."""
    answer = resources.recorder().answer(last_message(number).id)
    assert answer is not None
    return answer


def finish(tab: AppTest, number: int = 1) -> AppTest:
    assert resources.recorder().wait(last_message(number).id, WAIT_S)
    return run(tab)


def words(tab: AppTest) -> str:
    """Everything that a person can read on the page."""
    kinds = (tab.title, tab.header, tab.markdown, tab.text, tab.caption, tab.error, tab.success, tab.info, tab.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def is_primary(tab: AppTest, key: str) -> bool:
    return tab.button(key=key).proto.type == "primary"


# Each page runs in a process of its own, because a process keeps the driver's library that it has loaded once.
PRELUDE = """
import json, re, serve
from tests.support.pages import *
def read(tab):
    html = "".join(element.proto.body for element in tab.get("html"))
    rows = re.sub("<tr>", chr(10), re.sub("</t[dh]><t[dh][^>]*>", " | ", html))
    return words(tab) + chr(10) + re.sub("<[^>]+>", "", rows)
def questions(tab):
    # The keys of the buttons that load only after a question.
    keys = [button.key for block in tab.get("popover") for button in block.get("button")]
    return [key for key in keys if not key.startswith("library_")]
def tell(value):
    resources.engine().unload()
    resources.monitor().stop()
    print(json.dumps(value))
"""


def run_page(standin: Standin, code: str) -> Any:
    """What `code` hands to tell()."""
    return json.loads(standin.run(PRELUDE + code).splitlines()[-1])
