"""Clients of the API that others wrote, in environments of their own: installed once by `./llamadeck test`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from core.bootstrap.pip import pip_install, run_step
from core.bootstrap.venv import make_venv
from core.common.paths import ROOT, cache_dir
from core.common.terminal import Terminal

PYTHON = ("langchain-openai==1.7.4", "langchain-anthropic==1.7.10", "langchain-ollama==1.1.0",
          "pydantic-ai-slim[openai,anthropic]==2.68.0")  # fmt: skip
# LlamaIndex wants an older client of OpenAI's than Pydantic AI does. lm-evaluation-harness reads tokenizers with
# transformers.
OF_FORMS = ("openai==2.54.0", "litellm==1.110.2", "llama-index-llms-openai-like==0.8.1", "instructor==1.17.0",
            "guidance==0.3.1", "lm-eval[api]==0.4.13", "transformers==5.24.0")  # fmt: skip
JAVASCRIPT = ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0", "ollama@0.6.4", "ai@6.0.326",
              "@ai-sdk/openai-compatible@2.0.92", "@ai-sdk/anthropic@3.0.140", "zod@4.6.7")  # fmt: skip
SCRIPTS = ROOT / "tests" / "support" / "clients"
# Says that all of it is there.
STAMP = "llamadeck-clients.stamp"
RUN_S = 540


def clients_folder() -> Path:
    digest = hashlib.sha256("\n".join(PYTHON + OF_FORMS + JAVASCRIPT).encode()).hexdigest()[:12]
    return cache_dir() / "tests" / f"api-clients-{digest}"


def install_api_clients(terminal: Terminal) -> None:
    """The Python clients, and the JavaScript ones where there is npm."""
    folder = clients_folder()
    if (folder / STAMP).exists():
        return
    for place, wanted in ((folder, PYTHON), (folder / "forms", OF_FORMS)):
        make_venv(place, terminal)
        pip_install(place / "bin" / "python", list(wanted), terminal.text("test_step_clients"), terminal)
    if npm := shutil.which("npm"):
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder / "js"), *JAVASCRIPT]
        (folder / "js").mkdir(exist_ok=True)
        run_step(command, terminal.text("test_step_clients"), terminal)
    (folder / STAMP).touch()


def has_python_clients() -> bool:
    return (clients_folder() / STAMP).exists()


def has_javascript_clients() -> bool:
    return (clients_folder() / "js" / "node_modules").is_dir() and shutil.which("node") is not None


def run_python_clients(url: str, model: str) -> dict[str, Any]:
    return _run([str(clients_folder() / "bin" / "python"), str(SCRIPTS / "python_clients.py"), url, model])


def run_structured_clients(url: str, model: str, count: int) -> dict[str, Any]:
    return _run_of_forms("structured_clients.py", url, model, str(count))


def run_lm_eval(url: str, model: str, folder: Path) -> dict[str, Any]:
    return _run_of_forms("lm_eval_client.py", url, model, str(folder))


def _run_of_forms(script: str, *arguments: str) -> dict[str, Any]:
    return _run([str(clients_folder() / "forms" / "bin" / "python"), str(SCRIPTS / script), *arguments])


def run_javascript_clients(url: str, model: str) -> dict[str, Any]:
    # An import looks for packages beside the file that it stands in.
    script = shutil.copy(SCRIPTS / "javascript_clients.mjs", clients_folder() / "js")
    return _run(["node", str(script), url, model])


def _run(command: list[str]) -> dict[str, Any]:
    # No proxy of this machine, and no client's own settings.
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    # litellm asks for a list of prices otherwise, for seconds.
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
