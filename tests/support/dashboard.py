"""Starts dashboards for the browser tests, and puts models on disk that only look like real ones."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from core.checkpoint.headers import TensorInfo
from core.common.paths import ROOT
from core.library import catalogue

if TYPE_CHECKING:
    # What tests need is installed by what also starts dashboards.
    from playwright.sync_api import Locator, Page

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
START_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(START_S * 4):
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                return
        except urllib.error.HTTPError as error:
            # It is there, and asks who we are.
            assert error.code == 401
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, "the dashboard ended while starting"
            time.sleep(0.25)  # Another process's port has no event to wait for.
    raise AssertionError("the dashboard never answered")


@contextmanager
def dashboard(
    environment: Mapping[str, str], host: str = "127.0.0.1", log: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator[str]:
    """The address of a dashboard that runs in `environment`, without what the command does before."""
    port = free_port()
    command = [sys.executable, "-m", "ui.server.start", "--server.port", str(port), "--server.address", host]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(30)
    assert exit_code == 0


def make_hollow_model(folder: Path, name: str) -> Path:
    """A Llama-2 of the catalogue on disk: its configuration and header are real, its weights a hole in the file."""
    entry = catalogue.find(name)
    made = catalogue.checkpoint(entry)
    quantization = entry.quantization
    config = catalogue.config(entry) | {
        "quantization_config": {
            "quant_method": "gptq",
            "bits": quantization.bits,
            "group_size": quantization.group_size,
            "desc_act": quantization.is_permuted,
            "sym": quantization.is_symmetric,
        }
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    # Without a tokenizer it would be refused; nothing here reads it.
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    write_header(folder / catalogue.WEIGHTS_FILE, made.tensors, entry.file_bytes)
    return folder


def write_header(path: Path, tensors: Mapping[str, TensorInfo], file_bytes: int) -> None:
    begin = min(tensor.begin for tensor in tensors.values())
    header = {
        name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.begin - begin, tensor.end - begin],
        }
        for name, tensor in tensors.items()
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + file_bytes - begin)


def key(page: Page | Locator, name: str) -> Locator:
    """The element that a page's code gave the key `name`, most often with what it is drawn for behind it."""
    return page.locator(f'.st-key-{name}, [class*=" st-key-{name}_"], [class^="st-key-{name}_"]')
