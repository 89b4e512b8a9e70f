"""The steps of a first start: each runs one of README's commands as a newcomer would, and says what was seen.

Needs the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

STARTER = "SmolLM2-135M-Instruct-GPTQ"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
END_S, LOOK_S = 40.0, 0.25
# The starter takes about a GiB with CUDA's context; other programs on the GPU may take more or less meanwhile.
LEAST_MIB, SLACK_MIB = 200, 64
LINES_SHOWN = 25
MIB = 2**20


class Fault(Exception):
    """What was seen instead of what should be."""


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def used_mib() -> list[int]:
    """What is taken of each GPU's memory, asked of the driver itself; none without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    number, gpu, memory = ctypes.c_uint(), ctypes.c_void_p(), Memory()
    try:
        used = []
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
        for index in range(number.value):
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu))
            failed = failed or nvml.nvmlDeviceGetMemoryInfo(gpu, ctypes.byref(memory))
            used.append(0 if failed else memory.used // MIB)
        return used
    finally:
        nvml.nvmlShutdown()


def ask(url: str, body: dict[str, Any] | None = None) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)


class FirstStart:
    """The steps, each of which returns what it saw or raises Fault."""

    def __init__(self, project: Path, work: Path, port: int, end_s: float, wants_gpu: bool) -> None:
        self.project, self.work, self.end_s, self.wants_gpu = project, work, end_s, wants_gpu
        self.port, self.url, self.log = port, f"http://127.0.0.1:{port}", work / "run.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.before_mib = used_mib()
        home_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        ours = {name for name in os.environ if name.startswith("LLAMADECK_")} - {"LLAMADECK_PYTHON", "LLAMADECK_LOG"}
        self.environment = {name: value for name, value in os.environ.items() if name not in ours} | {
            "LLAMADECK_MODELS": str(work / "models"),
            "LLAMADECK_DATA": str(work / "data"),
            "XDG_CACHE_HOME": str(work / "cache"),
            "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(work / "cache" / "extensions"),
            "TRITON_CACHE_DIR": str(work / "cache" / "triton"),
            "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR") or str(home_cache / "pip"),
            "LC_ALL": "C.UTF-8",
        }

    def left_s(self) -> float:
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise Fault("the time for all steps together is over")
        return left_s

    # Steps, in their order.

    def driver(self) -> str:
        if self.wants_gpu and not self.before_mib:
            raise Fault("no NVIDIA driver answers (libnvidia-ml.so.1); without a GPU: --cpu")
        return f"{len(self.before_mib)} GPUs, {self.before_mib} MiB taken"

    def start(self) -> str:
        self.launch()
        self.wait_for("/health")
        with suppress(StopIteration):
            return next(line.strip() for line in self.log_lines() if "torch" in line and "used" in line)
        return "/health answers"

    def doctor(self) -> str:
        code, text = self.command("doctor", "--json")
        checks = {check["check"]: check for check in json.loads(text)["checks"]}
        strict = {"driver", "torch", "venv", "kernels"} if self.wants_gpu else {"venv"}
        bad = [name for name, check in checks.items() if check["status"] == "fail" or
               (name in strict and check["status"] != "ok")]  # fmt: skip
        if code or bad:
            raise Fault("; ".join(f"{name}: {checks[name]['text']}" for name in bad) or f"exit code {code}")
        warned = [name for name, check in checks.items() if check["status"] != "ok"]
        return str(checks["torch"]["text"]) + (f" (warns of: {', '.join(warned)})" if warned else "")

    def gpus(self) -> str:
        code, text = self.command("gpus", "--json")
        found = json.loads(text)
        if self.wants_gpu and (code or len(found["gpus"]) != len(self.before_mib)):
            raise Fault(f"exit code {code}: {found}")
        names = ", ".join(gpu["name"] for gpu in found["gpus"])
        return f"driver {found['driver']}, CUDA {found['cuda']}: {names}" if names else str(found["error"])

    def fit(self) -> str:
        code, text = self.command("fit", STARTER, *([] if self.before_mib else ["--gpu", "A40"]))
        if code:
            raise Fault(f"exit code {code}: {text.strip()}")
        return text.splitlines()[0]

    def start_with_model(self) -> str:
        self.launch("--model", STARTER)
        self.wait_for("/health")
        self.wait_for("/metrics", f'llamadeck_model_loaded{{model="{STARTER}"}} 1')
        return f"{STARTER} is loaded"

    def answer(self) -> str:
        """The second time, for the first one warms up."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": STARTER, "messages": messages, "temperature": 0, "max_tokens": 24, "stream": True}
        for _ in range(2):
            begin_s, first_s, text = time.monotonic(), 0.0, ""
            with urllib.request.urlopen(ask(f"{self.url}/v1/chat/completions", body), timeout=self.left_s()) as lines:
                for line in lines:
                    piece = piece_of(line)
                    first_s = first_s or (time.monotonic() - begin_s if piece else 0.0)
                    text += piece
        if EXPECTED not in text:
            raise Fault(f"{QUESTION} {text!r}")
        return f"{text.strip()!r}, first token after {first_s * 1000:.0f} ms"

    def on_the_gpu(self) -> str:
        taken = [now - before for now, before in zip(used_mib(), self.before_mib, strict=True)]
        if max(taken, default=0) < LEAST_MIB:
            raise Fault(f"{taken} MiB more are taken than before: the model is not there")
        return f"{taken} MiB more are taken than before"

    def stop(self) -> str:
        """SIGTERM, as a service's manager sends it."""
        process, begin_s = self.process, time.monotonic()
        if process is None or process.poll() is not None:
            raise Fault("it had ended before")
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(min(END_S, self.left_s()))
        except subprocess.TimeoutExpired:
            raise Fault("it does not end") from None
        took_s = time.monotonic() - begin_s
        if code:
            raise Fault(f"exit code {code}")
        self.wait_until(lambda: not self.leftovers(), "processes are left: {}", self.leftovers)
        self.wait_until(self.is_given_back, "{} MiB are taken, {} were before", used_mib, lambda: self.before_mib)
        return f"ended after {took_s:.1f} s, {used_mib()} MiB taken"

    def bench(self) -> str:
        code, text = self.command("bench", STARTER, "--quick", "--json")
        if code:
            raise Fault(f"exit code {code}")
        found = json.loads(text)
        rates = {row["chats"]: row.get("engine_tokens_per_s", {}).get("median", 0) for row in found["decode"]}
        if not rates or not all(rates.values()):
            raise Fault(f"tokens/s by chats: {rates}")
        if self.wants_gpu and "gpu_memory_mib" not in found and not found["device"].startswith("NVIDIA"):
            raise Fault(f"it ran on {found['device']}")
        self.wait_until(self.is_given_back, "{} MiB are taken, {} were before", used_mib, lambda: self.before_mib)
        return f"{found['device']}, {found['kernel']}, tokens/s by chats: {rates}"

    # What they are made of.

    def launch(self, *arguments: str) -> None:
        command = [str(self.project / "llamadeck"), "run", "--port", str(self.port), *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.work, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def command(self, *arguments: str) -> tuple[int, str]:
        """Exit code and standard output of a command that ends by itself; its other words go into the log."""
        with self.log.open("ab") as log:
            done = subprocess.run(
                [str(self.project / "llamadeck"), *arguments],
                cwd=self.work,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=self.left_s(),
                check=False,
            )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def wait_for(self, path: str, wanted: str = "") -> None:
        """Until `path` answers with `wanted` somewhere in it."""
        while True:
            if self.process is None or self.process.poll() is not None:
                raise Fault(f"./llamadeck run ended: {self.last_lines()}")
            with (
                suppress(OSError),
                urllib.request.urlopen(self.url + path, timeout=min(5.0, self.left_s())) as response,
            ):
                if wanted in response.read().decode("utf-8", "replace"):
                    return
            self.left_s()
            time.sleep(LOOK_S)

    def wait_until(self, is_so: Callable[[], bool], otherwise: str, *seen: Callable[[], object]) -> None:
        end_s = time.monotonic() + min(END_S, self.left_s())
        while not is_so():
            if time.monotonic() > end_s:
                raise Fault(otherwise.format(*(one() for one in seen)))
            time.sleep(LOOK_S)

    def is_given_back(self) -> bool:
        return all(now <= before + SLACK_MIB for now, before in zip(used_mib(), self.before_mib, strict=True))

    def leftovers(self) -> list[int]:
        """Processes that were started here, known by a folder in their environment that nobody else has."""
        mark, found = f"LLAMADECK_DATA={self.work / 'data'}".encode(), []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    def log_lines(self) -> list[str]:
        return self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []

    def last_lines(self) -> str:
        return "\n".join(["", *self.log_lines()[-LINES_SHOWN:]])

    def end_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.leftovers():
                with suppress(OSError):
                    os.kill(pid, number)
            if self.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(END_S / 4)
            end_s = time.monotonic() + END_S / 4
            while self.leftovers() and time.monotonic() < end_s:
                time.sleep(LOOK_S)


def piece_of(line: bytes) -> str:
    """The text in a line of a streamed answer."""
    data = line.removeprefix(b"data: ").strip()
    if not line.startswith(b"data: ") or data == b"[DONE]":
        return ""
    choices = json.loads(data).get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")
