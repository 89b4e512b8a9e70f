"""`./llamadeck scale --start` for real on GPUs: vLLM serves a model over one of them, is killed, comes again, and then
serves it over two.

`python -m benchmarks.scale_on_gpu FOLDER --vllm SITE [--gpus 1 2]` takes the 7B of benchmarks/random_model.py in
FOLDER, or makes it, gives it a chat template, and puts what runs vLLM of SITE, a folder that holds its packages, where
the command looks for its virtual environment. The engine of the dashboard is connected to each server, loses the first
one in the middle of an answer, and finds the next one by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import VLLM, Figures, add_results, markdown
from benchmarks.form_speed import with_words
from benchmarks.measuring import Unable
from benchmarks.speed_table import MODELS, VLLM_SETTINGS, add_vllm, make
from core.common.errors import DeckError
from core.common.paths import ROOT
from core.engine.protocol import Conversation
from core.engine.sampling_params import Sampling
from core.remote.engine import RemoteEngine
from core.remote.selection import RemoteSelection
from core.vllm.server import DONE, package, venv_folder
from tests.support.dashboard import free_port

MODEL, CONTEXT_TOKENS, NEW_TOKENS = "7B", 4096, 256
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
ASKED = Conversation([("user", "Tell me a very long story about a fox who travels around the world.")], is_open=False)
CONNECTED = "from now on"
START_S, ANSWER_S, LOOK_S = 400.0, 60.0, 0.2


class Scale:
    """One run of the command, with its files in `home`."""

    def __init__(self, home: Path, port: int, num_gpus: int, name: str) -> None:
        self._log = home / f"{name}.log"
        arguments = ["scale", MODEL, "--context", str(CONTEXT_TOKENS), "--port", str(port), "--start"]
        arguments += ["--tensor-parallel", str(num_gpus)]
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "cli.main", *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_connected(self, deadline: Deadline) -> float:
        """Seconds that it took. Raises Unable where it ends before."""
        begin_s = time.monotonic()
        wait_until(lambda: CONNECTED in self._said() or self.process.poll() is not None, deadline, START_S)
        if self.process.poll() is not None:
            raise Unable(" ".join(self._said().split())[-400:])
        return time.monotonic() - begin_s

    def kill_server(self) -> None:
        """End `vllm serve`, which leads a group of its own, as the system does where memory is short."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        os.killpg(int(path.read_text().split()[0]), signal.SIGKILL)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", nargs="*", type=int, default=[1, 2], metavar="N")
    add_vllm(parser)
    add_results(parser)
    add_limit(parser)
    options = parser.parse_args()
    if options.vllm is None:
        parser.error("--vllm is needed")
    deadline, figures = Deadline.after(options.limit_s), Figures("./llamadeck scale --start", options.results)
    make(MODELS[MODEL], options.folder / MODEL)
    home = options.folder / "scale"
    prepare(home, options.folder / MODEL, options.vllm.resolve(), options.vllm_python)
    with engine() as asked:
        for num_gpus in options.gpus:
            try:
                measure(home, num_gpus, asked, figures, deadline)
            except (DeckError, Unable, OSError) as error:
                figures.fail(row_of(num_gpus), "start, s", error, VLLM)
    print(markdown(figures.found), flush=True)
    return 1 if figures.failures else 0


def prepare(home: Path, model: Path, site: Path, python: str) -> None:
    """The model with a template, the command's folders, and what it takes for vLLM's virtual environment."""
    os.environ |= {"LLAMADECK_MODELS": str(home / "models"), "LLAMADECK_DATA": str(home / "data"),
                   "XDG_CACHE_HOME": str(home / "cache"), "LC_ALL": "C.UTF-8"}  # fmt: skip
    folder = with_words(model, home / "models" / MODEL)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8")) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    program = venv_folder(is_cpu=False) / "bin" / "vllm"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(script(python, {**VLLM_SETTINGS, "PYTHONPATH": str(site)}))
    program.chmod(0o755)
    (venv_folder(is_cpu=False) / DONE).write_text(package(is_cpu=False))


def script(python: str, environment: Mapping[str, str]) -> str:
    """Runs vLLM's command. A server has processes of its own, whatever is best for a benchmark inside of one."""
    settings = {name: value for name, value in environment.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f'#!/bin/sh\n{words} exec {shlex.quote(python)} -m vllm.entrypoints.cli.main "$@"\n'


@contextmanager
def engine() -> Iterator[RemoteEngine]:
    """As the dashboard has it."""
    found = RemoteEngine()
    try:
        yield found
    finally:
        found.disconnect()


def measure(home: Path, num_gpus: int, asked: RemoteEngine, figures: Figures, deadline: Deadline) -> None:
    """Over one GPU the first server is killed in the middle of an answer, and another one takes its place. Raises
    DeckError, Unable."""
    port, row = free_port(), row_of(num_gpus)
    if num_gpus == 1:
        first = Scale(home, port, num_gpus, "first")
        try:
            figures.add(row, "start, s", first.wait_until_connected(deadline), VLLM)
            connect(asked, port, deadline)
            answer = asked.generate(ASKED, Sampling(temperature=0.8, max_new_tokens=2048))
            answer.wait_for_text(1, min(ANSWER_S, deadline.require()))
            first.kill_server()
            if not answer.wait(min(ANSWER_S, deadline.require())) or answer.error is None:
                raise Unable("an answer did not notice that its server was killed")
            figures.add(row, "characters kept of a killed answer", len(answer.text), VLLM)
        finally:
            first.end()
    server = Scale(home, port, num_gpus, f"over {num_gpus}")
    try:
        column = "start again, s" if num_gpus == 1 else "start, s"
        figures.add(row, column, server.wait_until_connected(deadline), VLLM)
        if num_gpus == 1:
            # Nobody connects it: it looks for what it lost.
            begin_s = time.monotonic()
            wait_until(lambda: asked.state.phase == "ready", deadline, ANSWER_S)
            figures.add(row, "found again, s", time.monotonic() - begin_s, VLLM)
        else:
            connect(asked, port, deadline)
        begin_s = time.monotonic()
        answer = asked.generate(ASKED, Sampling(temperature=0.8, max_new_tokens=NEW_TOKENS))
        answer.wait_for_text(1, min(ANSWER_S, deadline.require()))
        first_s = time.monotonic() - begin_s
        if not answer.wait(min(ANSWER_S, deadline.require())):
            raise Unable("an answer did not end")
        if answer.error is not None:
            raise answer.error
        figures.add(row, "first words, ms", 1000 * first_s, VLLM)
        figures.add(row, "1 chat, tokens/s", answer.num_tokens / (time.monotonic() - begin_s), VLLM)
    finally:
        server.end()


def row_of(num_gpus: int) -> str:
    return f"{MODEL} over {num_gpus}"


def connect(asked: RemoteEngine, port: int, deadline: Deadline) -> None:
    asked.connect(RemoteSelection(f"http://127.0.0.1:{port}", MODEL))
    wait_until(lambda: asked.state.phase == "ready", deadline, ANSWER_S)


def wait_until(is_so: Callable[[], bool], deadline: Deadline, most_s: float) -> None:
    """Raises Unable where it is not so after `most_s`, or when the time is over."""
    end_s = time.monotonic() + min(most_s, deadline.require())
    while not is_so():
        if time.monotonic() > end_s:
            raise Unable(f"nothing came in {most_s:g} s, or the time limit was reached")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
