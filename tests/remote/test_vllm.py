"""`./llamadeck scale --start` for real: vLLM on the CPU serves the starter, and a real dashboard chats.

vLLM 0.32 has a kernel for 4 bit on CPUs (CPUWNA16LinearKernel), so that no half-precision copy is needed. It takes zero
points of AWQ and none of GPTQ, so the starter is served packed as AWQ. The kernel is in vLLM's library for AVX-512
alone, so that `scale` refuses other CPUs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from core.common.paths import ROOT
from core.engine.protocol import Conversation
from core.engine.sampling_params import Sampling
from core.remote.engine import RemoteEngine
from core.remote.selection import RemoteSelection
from core.starter.build import NAME
from core.vllm.cpu import has_4_bit_kernel
from core.vllm.server import venv_folder
from tests.support.browser_page import answer_greedily, open_from_sidebar, type_message
from tests.support.dashboard import dashboard, free_port, key
from tests.support.packed import repack_as_awq
from tests.support.processes import wait_until

CONTEXT_TOKENS = 2048
START_S = 240.0
WAIT_MS = 120_000
PARIS = Conversation([("user", "What is the capital of France?")], is_open=False)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not venv_folder(is_cpu=True).is_dir(), reason="./llamadeck test installs vLLM"),
    pytest.mark.skipif(not has_4_bit_kernel(), reason="vLLM's 4 bit on a CPU needs AVX-512"),
]


class Scale:
    """One run of the command, with its files in `home`."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.environment = {
            **os.environ,
            "LLAMADECK_MODELS": str(home / "models"),
            "LLAMADECK_DATA": str(home / "data"),
            "LC_ALL": "C.UTF-8",
        }
        self._log = home / f"scale-{time.monotonic_ns()}.log"
        arguments = ["scale", NAME, "--context", str(CONTEXT_TOKENS), "--port", str(port), "--start"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments], cwd=ROOT, env=self.environment, stderr=log
            )

    def said(self) -> str:
        return self._log.read_text("utf-8")

    def wait_until_connected(self) -> Scale:
        wait_until(lambda: "from now on" in self.said() or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, self.said()
        return self

    def server_pid(self) -> int:
        """The process of `vllm serve`, which leads a group of its own."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def has_processes(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def home(tmp_path: Path, starter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    repack_as_awq(starter_folder, tmp_path / "models" / NAME)
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    context.close()


def test_vllm_is_served_chatted_with_killed_and_found_again(home: Path, page: Page) -> None:
    port = free_port()
    first = Scale(home, port).wait_until_connected()
    second: Scale | None = None
    try:
        with dashboard(first.environment) as url:
            check_engine(f"http://127.0.0.1:{port}")
            page.goto(f"{url}/Chat")
            answer_greedily(page, longest_answer=1024)
            type_message(page, "What is the capital of France?")
            expect(page.get_by_text("Paris").first).to_be_visible(timeout=WAIT_MS)
            type_message(page, "Write a very long story about a fox.")
            expect(key(page, "chat_stop")).to_be_visible(timeout=WAIT_MS)
            answers = page.get_by_role("group", name="Chat message from assistant")
            expect(answers.nth(1)).to_contain_text(re.compile(r"(\w+\W+){12}"), timeout=WAIT_MS)
            os.killpg(first.server_pid(), signal.SIGKILL)
            expect(page.get_by_text("Connection lost")).to_be_visible(timeout=WAIT_MS)
            expect(page.get_by_text("Paris").first).to_be_visible()
            assert first.process.wait(60) == 1 and "vLLM ended" in first.said()
            second = Scale(home, port).wait_until_connected()
            expect(page.get_by_text("Connection lost")).to_have_count(0, timeout=WAIT_MS)
            type_message(page, "What is the capital of Italy?")
            expect(answers.nth(2)).to_contain_text("tokens/s", timeout=WAIT_MS)
            open_from_sidebar(page, "GPU monitor")
            expect(page.get_by_text("it takes that machine's memory")).to_be_visible(timeout=WAIT_MS)
            leader = second.server_pid()
            second.end()
            expect(page.get_by_text("No model loaded")).to_be_visible(timeout=WAIT_MS)
            wait_until(lambda: not has_processes(leader), START_S)
    finally:
        first.end()
        if second is not None:
            second.end()


def check_engine(address: str) -> None:
    """What the page does not show: tokens as vLLM counts them, going on, a person's line, plain text, settings."""
    engine = RemoteEngine()
    engine.connect(RemoteSelection(address, NAME))
    state = engine.wait_while_loading(30.0)
    try:
        assert state.facts is not None and state.facts.remote is not None, state
        assert state.facts.context_tokens == CONTEXT_TOKENS and state.facts.remote.software == "vLLM"
        greedy = Sampling(temperature=0.0, max_new_tokens=16)
        answer = finished(engine, PARIS, greedy)
        assert answer == "The capital of France is Paris."
        assert engine.count_prompt(PARIS) == 37
        begun = Conversation([*PARIS.turns, ("assistant", "The capital")], is_open=True)
        assert finished(engine, begun, greedy) == " of France is Paris."
        asked = Conversation([*PARIS.turns, ("assistant", answer), ("user", "And")], is_open=True)
        assert finished(engine, asked, greedy) != ""
        settings = Sampling(temperature=0.7, top_k=5, min_p=0.05, repetition_penalty=1.1, seed=7, max_new_tokens=12)
        assert finished(engine, "Once upon a time", settings) == finished(engine, "Once upon a time", settings)
        assert finished(engine, "One, two, three,", Sampling(temperature=0, max_new_tokens=16, stop=("five",)))
    finally:
        engine.disconnect()


def finished(engine: RemoteEngine, prompt: str, sampling: Sampling) -> str:
    answer = engine.generate(prompt, sampling)
    assert answer.wait(START_S) and answer.error is None, answer.error
    return answer.text


def test_what_vllm_cannot_start_with_is_said_in_its_words(home: Path) -> None:
    """A checkpoint whose configuration names no model that there is."""
    folder = home / "models" / "broken"
    folder.mkdir()
    for path in (home / "models" / NAME).resolve().iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysForCausalLM"]}), "utf-8")
    command = [sys.executable, "-m", "cli.main", "scale", "broken", "--port", str(free_port()), "--start"]
    places = {"LLAMADECK_MODELS": str(home / "models"), "LLAMADECK_DATA": str(home / "data"), "LC_ALL": "C.UTF-8"}
    found = subprocess.run(command, cwd=ROOT, env=os.environ | places, capture_output=True, text=True, timeout=START_S)
    assert found.returncode == 1 and "vLLM ended" in found.stderr and "NobodysForCausalLM" in found.stderr
    assert "Traceback" not in found.stderr and not (home / "data" / "engine.json").exists()
