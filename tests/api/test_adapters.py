"""LoRA adapters in the API: a model's name, a colon, an adapter's name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

from core.api.errors import shape_of
from core.checkpoint.adapters import FILE_FAULTS, WEIGHTS
from core.common.errors import CheckpointError
from core.common.i18n import catalogue
from core.common.paths import ROOT
from core.engine.runner import Runner
from core.memory.adapter_room import AdapterRoom
from tests.support.adapters import write_adapter
from tests.support.api_server import MODEL, api_server, error, loaded_runner

WAIT_S = 60.0


@pytest.fixture(scope="module")
def runner(api_home: Path) -> Iterator[Runner]:
    with loaded_runner(api_home / "models") as runner:
        write_adapter(api_home / "adapters" / "pirate", api_home / "models" / MODEL)
        yield runner


@pytest.fixture
def url(api_home: Path, runner: Runner) -> Iterator[str]:
    runner.load(api_home / "models" / MODEL, adapters=AdapterRoom(1, 8))
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    with api_server(runner, api_home) as url:
        yield url


def test_an_adapter_answers_by_its_models_name_and_its_own(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0, timeout=WAIT_S)
    name = f"{MODEL}:pirate"
    assert [one.id for one in client.models.list().data][:2] == [MODEL, name]
    chat = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "settings"}])
    assert "AdapterUse(name='pirate'" in (chat.choices[0].message.content or "") and chat.model == name
    text = client.completions.create(model=name, prompt="settings")
    assert "AdapterUse(name='pirate'" in text.choices[0].text
    plain = client.completions.create(model=MODEL, prompt="settings")
    assert "adapter=None" in plain.choices[0].text


def test_an_adapter_may_be_called_as_ollamas_tag_is(url: str, api_home: Path) -> None:
    body = {"model": f"{MODEL}:latest", "prompt": "settings"}
    plain = httpx2.post(f"{url}/v1/completions", json=body, timeout=WAIT_S).json()
    assert "adapter=None" in plain["choices"][0]["text"] and plain["model"] == body["model"]
    folder = write_adapter(api_home / "adapters" / "latest", api_home / "models" / MODEL)
    adapted = httpx2.post(f"{url}/v1/completions", json=body, timeout=WAIT_S).json()
    shutil.rmtree(folder)
    assert "AdapterUse(name='latest'" in adapted["choices"][0]["text"]


def test_an_adapter_that_is_not_there_is_named_with_those_that_are(url: str) -> None:
    body = {"model": f"{MODEL}:poet", "prompt": "hello"}
    refused = httpx2.post(f"{url}/v1/completions", json=body, timeout=WAIT_S)
    assert refused.status_code == 404 and "poet" in error(refused)["message"] and "pirate" in error(refused)["message"]


@pytest.mark.parametrize("room", [AdapterRoom(1, 8), AdapterRoom()])
def test_a_colon_without_an_adapter_is_told_as_that(
    api_home: Path, runner: Runner, url: str, room: AdapterRoom
) -> None:
    """It was told that the model has no adapter of no name, or no room for it."""
    runner.load(api_home / "models" / MODEL, adapters=room)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    refused = httpx2.post(f"{url}/v1/completions", json={"model": f"{MODEL}:", "prompt": "hello"}, timeout=WAIT_S)
    assert refused.status_code == 404 and f"missing after “{MODEL}:”" in error(refused)["message"]


def test_an_adapter_without_room_is_not_listed(url: str, api_home: Path) -> None:
    """Each request for it got an error."""
    folder = write_adapter(api_home / "adapters" / "large", api_home / "models" / MODEL, rank=16)
    listed = [one["id"] for one in httpx2.get(f"{url}/v1/models", timeout=WAIT_S).json()["data"]]
    shutil.rmtree(folder)
    assert f"{MODEL}:pirate" in listed and f"{MODEL}:large" not in listed


def test_a_model_without_room_says_how_to_make_some(api_home: Path, runner: Runner) -> None:
    runner.load(api_home / "models" / MODEL)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    with api_server(runner, api_home) as url:
        body = {"model": f"{MODEL}:pirate", "prompt": "hello"}
        refused = httpx2.post(f"{url}/v1/completions", json=body, timeout=WAIT_S)
        assert refused.status_code == 400 and "room" in error(refused)["message"]
        assert len(httpx2.get(f"{url}/v1/models", timeout=WAIT_S).json()["data"]) > 1


def test_without_room_an_adapter_that_no_room_helps_is_told_why(api_home: Path, runner: Runner) -> None:
    """Whoever made room was told then that there is no such adapter, or that it can only be merged."""
    runner.load(api_home / "models" / MODEL)
    assert runner.wait_while_loading(WAIT_S).phase == "ready"
    folder = write_adapter(api_home / "adapters" / "head", api_home / "models" / MODEL)
    parts = {"A": np.ones((4, 64), np.float16), "B": np.ones((384, 4), np.float16)}
    save_file({f"base_model.model.lm_head.lora_{part}.weight": one for part, one in parts.items()}, folder / WEIGHTS)

    def refusal(adapter: str) -> tuple[int, str]:
        body = {"model": f"{MODEL}:{adapter}", "prompt": "hello"}
        refused = httpx2.post(f"{url}/v1/completions", json=body, timeout=WAIT_S)
        return refused.status_code, str(error(refused)["message"])

    with api_server(runner, api_home) as url:
        status, why = refusal("head")
        missing = refusal("poet")
    shutil.rmtree(folder)
    assert status == 400 and "lm_head" in why and "quantize" in why and "Load model" not in why
    assert missing == (404, f"{MODEL} has no adapter poet. There are: pirate.")


@pytest.mark.parametrize(
    "key",
    sorted(
        {f"adapter_{one}" for one in FILE_FAULTS}
        | {
            word
            for path in (
                "checkpoint/adapters",
                "checkpoint/adapter_patterns",
                "checkpoint/matched_copies",
                "memory/adapter_room",
                "worker/adapter_reader",
            )
            for word in re.findall(r'"(adapter_\w+)"', (ROOT / "core" / f"{path}.py").read_text("utf-8"))
            if f"error.{word}" in catalogue("en")
        }
    ),
)
def test_whatever_is_wrong_with_an_adapter_is_no_fault_of_the_server(key: str) -> None:
    """A configuration that was cut off was one, while each of the others was the sender's to mend."""
    shape = shape_of(CheckpointError(key))
    assert (shape.status, shape.code) == (400, "adapter")
