"""The commands download, models, verify and delete as a person calls them, and twenty kills."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from cli.download import find_source, size_text, time_text, watch
from core.common.errors import InputError
from core.common.paths import ROOT
from core.common.signals import StopSignals
from core.common.terminal import Terminal
from core.hub.endpoints import HUGGINGFACE, MODELSCOPE
from tests.support.hub_models import FOLDER, MIB, REPO, WEIGHTS, hashes, hub, make_model, origin
from tests.support.hub_standin import HubStandin

__all__ = ["hub", "origin"]

PART = f".download-{FOLDER}/{WEIGHTS}.part"
NUM_KILLS = 20


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def environment(tmp_path: Path, language: str = "C.UTF-8") -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        kept.pop(name, None)
    places = {"LLAMADECK_MODELS": str(tmp_path / "models"), "LLAMADECK_DATA": str(tmp_path / "data")}
    return kept | places | {"LC_ALL": language}


def start(
    tmp_path: Path, *arguments: str, language: str = "C.UTF-8", cache: Path | None = None, **options: object
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env=environment(tmp_path, language) | ({"HF_HUB_CACHE": str(cache)} if cache else {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **options,  # type: ignore[call-overload]
    )


def call(tmp_path: Path, *arguments: str, **options: object) -> tuple[int, str, str]:
    """The exit code, stdout and stderr."""
    process = start(tmp_path, *arguments, **options)
    out, error = process.communicate(timeout=120)
    assert "Traceback" not in error
    return process.returncode, out, error


def wait_for_part(models: Path, num_bytes: int, process: subprocess.Popen[str]) -> None:
    """Until the part has that many bytes, or the process has ended."""
    path = models / PART
    while process.poll() is None:
        if path.exists() and path.stat().st_size >= num_bytes:
            return
        time.sleep(0.001)


def sent_bytes(hub: HubStandin) -> int:
    """The bytes of weights that went out, without the headers that are read beforehand."""
    found = [request for request in hub.requests if request.path.endswith(WEIGHTS)]
    whole = [request for request in found if not request.headers.get("Range", "-").rpartition("-")[2]]
    return sum(request.sent_bytes for request in whole)


def test_a_model_of_hugging_faces_cache_is_listed_verified_and_left_alone(tmp_path: Path, hub: HubStandin) -> None:
    cache = tmp_path / "cache"
    snapshot = Path(snapshot_download(REPO, endpoint=hub.url, cache_dir=cache, token=False))
    name = f"{FOLDER}@{snapshot.name[:8]}"
    code, out, _ = call(tmp_path, "models", "--json", cache=cache)
    (found,) = json.loads(out)["models"]
    assert (code, found["name"], found["is_cached"]) == (0, name, True)
    assert (found["source"], found["revision"], found["commit"]) == (REPO, "main", snapshot.name)
    assert str(cache) in call(tmp_path, "models", cache=cache)[1]
    code, out, _ = call(tmp_path, "verify", name, cache=cache)
    assert code == 0 and "checksum" in out
    code, _, said = call(tmp_path, "delete", name, "--yes", cache=cache)
    assert code == 2 and f"hf cache rm model/{REPO}" in said and (snapshot / WEIGHTS).exists()
    code, out, _ = call(tmp_path, "fit", name, "--gpu", "RTX 4090", cache=cache)
    assert code == 0 and name in out
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url, cache=cache)
    assert code == 0 and name in said and (tmp_path / "models" / FOLDER / WEIGHTS).exists()


def test_a_model_is_fetched_listed_verified_and_deleted(tmp_path: Path, hub: HubStandin, origin: Path) -> None:
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url)
    assert code == 0 and "Complete and checked" in said
    assert hashes(tmp_path / "models" / FOLDER) == hashes(origin)

    code, out, _ = call(tmp_path, "models", "--json")
    (model,) = json.loads(out)["models"]
    assert code == 0
    assert (model["name"], model["source"], model["revision"], model["endpoint"]) == (FOLDER, REPO, "main", hub.url)
    assert model["commit"] == hub.commit(REPO, "main") and model["error"] is None
    code, out, _ = call(tmp_path, "models")
    assert code == 0 and REPO in out and "4 bit, group 32" in out

    code, out, _ = call(tmp_path, "verify", FOLDER)
    assert code == 0 and "is right" in out
    with (tmp_path / "models" / FOLDER / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?" if (origin / WEIGHTS).read_bytes()[-1:] != b"?" else b"!")
    code, _, said = call(tmp_path, "verify", FOLDER)
    assert code == 1 and WEIGHTS in said

    code, _, said = call(tmp_path, "delete", FOLDER)
    assert code == 2 and "--yes" in said
    code, _, said = call(tmp_path, "delete", FOLDER, "--yes")
    assert code == 0 and FOLDER in said
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["some/missing"], 2, "has no repository"),
        ([f"{REPO}:mian"], 2, "no branch"),
        (["../../etc"], 2, "no name of a repository"),
        ([REPO, "--source", "elsewhere"], 2, "elsewhere"),
        (["\x1b[31m/x"], 2, "no name of a repository"),
    ],
)
def test_bad_names_are_said_in_words(
    tmp_path: Path, hub: HubStandin, models: Path, arguments: list[str], code: int, said: str
) -> None:
    found, _, error = call(tmp_path, "download", *arguments, "--endpoint", hub.url)
    assert (found, said in error) == (code, True), error
    assert not models.exists() or list(models.iterdir()) == []


def test_an_endpoint_that_is_none_is_said(tmp_path: Path) -> None:
    code, _, error = call(tmp_path, "download", REPO, "--endpoint", "ftp://x")
    assert code == 2 and "ftp://x" in error


def test_names_that_lead_out_are_neither_verified_nor_deleted(tmp_path: Path, models: Path) -> None:
    models.mkdir()
    (tmp_path / "precious").mkdir()
    for name in ("../precious", "..", ".", "", "/etc", str(tmp_path / "precious")):
        for command in (["verify", name], ["delete", name, "--yes"]):
            assert call(tmp_path, *command)[0] == 2
    assert (tmp_path / "precious").is_dir()


def test_an_empty_folder_of_models_is_said_in_both_languages(tmp_path: Path) -> None:
    assert "no model" in call(tmp_path, "models")[1]
    assert "没有模型" in call(tmp_path, "models", language="zh_CN.UTF-8")[1]
    assert json.loads(call(tmp_path, "models", "--json")[1]) == {"models": []}


def test_ctrl_c_keeps_what_was_fetched_and_says_how_to_go_on(
    tmp_path: Path, hub: HubStandin, models: Path, origin: Path
) -> None:
    hub.behaviour.stalls = [MIB]
    process = start(tmp_path, "download", REPO, "--endpoint", hub.url)
    wait_for_part(models, MIB, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in said
    assert f"./llamadeck download {REPO} --endpoint {hub.url}" in said
    assert (models / PART).stat().st_size == MIB
    assert call(tmp_path, "download", REPO, "--endpoint", hub.url)[0] == 0
    assert hashes(models / FOLDER) == hashes(origin)
    assert sent_bytes(hub) == (origin / WEIGHTS).stat().st_size


class Stalled:
    """A download that brings nothing."""

    def wait(self, timeout_s: float) -> bool:
        return False


class Freed:
    """While it is freed, Ctrl-C comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_python_drops_still_stops_the_download() -> None:
    """Once in many runs a download went on after it, to its end: what is raised while an object is freed is only
    printed."""
    with StopSignals(signal.SIGINT) as stop_signals:
        Freed()
        assert stop_signals.has_come
        with pytest.raises(KeyboardInterrupt):
            watch(Stalled(), Terminal(), stop_signals)  # type: ignore[arg-type]


def test_a_second_process_says_who_has_the_model(tmp_path: Path, hub: HubStandin, models: Path) -> None:
    hub.behaviour.stalls = [MIB]
    first = start(tmp_path, "download", REPO, "--endpoint", hub.url)
    wait_for_part(models, MIB, first)
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url)
    assert code == 1 and str(first.pid) in said
    first.kill()
    first.communicate()
    assert call(tmp_path, "download", REPO, "--endpoint", hub.url)[0] == 0


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))


def test_a_disk_that_takes_no_more_is_said_and_the_part_is_kept(
    tmp_path: Path, hub: HubStandin, models: Path, origin: Path
) -> None:
    # What the kernel holds of a faster server is lost when the connection ends, and counts as sent.
    hub.behaviour.rate_bytes_s = 60 * MIB
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url, preexec_fn=limit_file_size)
    assert code == 1 and "takes no file of this size" in said
    assert (models / PART).stat().st_size == 2 * MIB
    assert call(tmp_path, "download", REPO, "--endpoint", hub.url)[0] == 0
    assert hashes(models / FOLDER) == hashes(origin)
    assert sent_bytes(hub) <= (origin / WEIGHTS).stat().st_size + MIB


def test_a_model_that_the_disk_cannot_hold_is_refused_before_it_is_fetched(
    tmp_path: Path, hub: HubStandin, models: Path, origin: Path
) -> None:
    """A weight file of a hole, which is larger than any disk and takes none at the server."""
    free_bytes = shutil.disk_usage(tmp_path).free
    header = json.dumps({"a.qweight": {"dtype": "U8", "shape": [free_bytes], "data_offsets": [0, free_bytes]}}).encode()
    with (origin / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + free_bytes)
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url)
    assert code == 1 and re.search(r"lacks \d+ MiB", said), said
    assert sent_bytes(hub) == 0
    assert list(models.iterdir()) == []


def test_twenty_kills_lose_at_most_a_mebibyte_each(tmp_path: Path, hub: HubStandin, models: Path, origin: Path) -> None:
    make_model(origin, num_mib=24, seed=1)
    size = (origin / WEIGHTS).stat().st_size
    hub.behaviour.rate_bytes_s = 60 * MIB
    chosen = random.Random(4)
    for at in sorted(chosen.randrange(size) for _ in range(NUM_KILLS)):
        process = start(tmp_path, "download", REPO, "--endpoint", hub.url)
        wait_for_part(models, at, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (models / FOLDER).exists()
    hub.behaviour.rate_bytes_s = 0
    code, _, said = call(tmp_path, "download", REPO, "--endpoint", hub.url)
    assert code == 0, said
    assert hashes(models / FOLDER) == hashes(origin)
    assert [path.name for path in models.iterdir()] == [FOLDER]
    assert sent_bytes(hub) <= size + NUM_KILLS * MIB


@pytest.mark.parametrize(
    ("target", "source", "revision", "expected"),
    [
        ("https://www.modelscope.cn/models/a/b", "huggingface", None, ("a/b", MODELSCOPE, "modelscope")),
        ("https://www.modelscope.cn/models/a/b", "modelscope", None, ("a/b", MODELSCOPE, "modelscope")),
        ("https://modelscope.cn/models/a/b/files", "modelscope", "v2", ("a/b:v2", MODELSCOPE, "modelscope")),
        ("a/b", "modelscope", "v2", ("a/b:v2", MODELSCOPE, "modelscope")),
        (
            "https://hf-mirror.com/a/b/tree/feature/x",
            "huggingface",
            None,
            ("a/b:feature/x", HUGGINGFACE, "huggingface"),
        ),
    ],
)
def test_an_address_means_the_same_on_the_command_line_as_on_the_page(
    target: str, source: str, revision: str | None, expected: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    found = find_source(Namespace(target=target, source=source, revision=revision, endpoint=None))
    assert (found.name, found.endpoint, found.kind) == expected


def test_a_page_of_modelscope_that_names_another_branch_than_the_option_is_refused() -> None:
    page = "https://modelscope.cn/models/a/b/tree/v1"
    with pytest.raises(InputError, match="v1"):
        find_source(Namespace(target=page, source="huggingface", revision="v2", endpoint=None))


def test_sizes_and_times_are_written_as_people_do() -> None:
    assert [size_text(value) for value in (0, 1500, 3_900_000, 35_334_000_000)] == [
        "0.0 kB",
        "1.5 kB",
        "3.9 MB",
        "35.3 GB",
    ]
    assert [time_text(value) for value in (0, 65, 3600, 1e12)] == ["0:00", "1:05", "1:00:00", "99:59:59"]
