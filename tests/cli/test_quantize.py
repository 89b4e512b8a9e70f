"""The command quantize as a person calls it: the plan, what is refused in words, Ctrl-C, and the whole way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from cli.main import main
from cli.quantize import fraction_of, progress_text, show_left
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError
from core.common.paths import ROOT
from core.common.terminal import Terminal
from core.hub.progress import JobState
from core.quantize import folders
from core.quantize.card import loss_text
from core.quantize.folders import job_folder, left_folders
from core.quantize.last_failure import forget_failure, keep_failure
from core.quantize.progress import QuantizeState
from core.quantize.queue import QuantizeQueue
from tests.support.checkpoints import WEIGHTS, make_checkpoint
from tests.support.command import call, environment
from tests.support.plain_models import change_json, make_adapter, make_plain


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "Tiny-1M")


def test_the_plan_is_told_in_both_languages(plain: Path, tmp_path: Path) -> None:
    code, said = call(tmp_path, "quantize", str(plain), "--group-size", "32", "--plan", "--cpu")
    assert code == 0
    assert "becomes GPTQ, 4 bit, group 32" in said and "goes on from the last finished layer" in said
    code, said = call(tmp_path, "quantize", str(plain), "--group-size", "32", "--plan", "--cpu", language="zh_CN.UTF-8")
    assert code == 0 and "将做成 GPTQ" in said
    assert not (tmp_path / "models").exists()


def test_the_plan_names_where_the_result_lies_and_what_it_is_made_of(plain: Path, tmp_path: Path) -> None:
    """A person who named three adapters saw none of them again before hours of work."""
    arguments = ("quantize", str(plain), "--group-size", "32", "--plan", "--cpu")
    code, said = call(tmp_path, *arguments)
    assert code == 0 and f"The result will lie in {tmp_path}/models/Tiny-1M-GPTQ-4bit-32g." in said
    assert "calibrated on the set that ships" in said and "Merged" not in said
    poet, pirate = (make_adapter(plain, tmp_path / name) for name in ("poet", "pirate"))
    (tmp_path / "own.txt").write_text("Some words of my own. " * 2000, "utf-8")
    code, said = call(tmp_path, *arguments, "--adapter", str(poet), "--adapter", str(pirate),
                      "--calibration", str(tmp_path / "own.txt"))  # fmt: skip
    assert code == 0 and f"in this order: poet (rank 8, {poet}), pirate (rank 8, {pirate})." in said
    assert f"calibrated on your text {tmp_path}/own.txt." in said and "Tiny-1M-poet-pirate-GPTQ-4bit-32g." in said


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_a_disk_that_is_too_small_is_told_with_the_plan(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan: list[str]
) -> None:
    """The plan ended with exit code 0 and not a word of it."""
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 3 << 20)
    code = main(["quantize", str(plain), "--group-size", "32", "--cpu", *plan])
    said = capsys.readouterr().err
    assert code == 1 and "The result will lie in" in said and "3 MiB are free: free" in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "3"], "3 bit is not offered"),
        # What was possible was told as a whole number up to 100000.
        (["--bits", "four"], "four bit is not offered. Choose one of: 4, 8."),
        (["--bits", "4.0"], "4.0 bit is not offered. Choose one of: 4, 8."),
        (["--group-size", "1e2"], "1e2 is not offered. Choose one of: 32, 64, 128, -1"),
        (["--group-size", "48"], "48 is not offered"),
        (["--group-size", "128"], "cannot be quantized in groups of 128"),
        (["--adapter", "nothing"], "There is no adapter nothing"),
        (["--push", "nothing"], "nothing is no name of a repository"),
        (["--name", "../x"], "cannot be the name of a model's folder"),
    ],
)
def test_what_cannot_be_is_refused_in_words(plain: Path, tmp_path: Path, options: list[str], words: str) -> None:
    code, said = call(tmp_path, "quantize", str(plain), "--cpu", *options)
    assert code in (1, 2) and words in said


def test_a_path_with_dots_is_followed_before_its_name_is_used(plain: Path, tmp_path: Path) -> None:
    """An adapter that was named so gave its result the name "Tiny-1M-..", and was called ".." in sentences."""
    adapter = make_adapter(plain, tmp_path / "poet")
    (adapter / "runs").mkdir()
    (plain / "runs").mkdir(exist_ok=True)
    # The parent of what the link leads to is the adapter, that of the link is not.
    (tmp_path / "link").symlink_to(adapter / "runs")
    for dotted in (adapter / "runs" / "..", tmp_path / "link" / ".."):
        code, said = call(tmp_path, "quantize", f"{plain}/runs/..", "--group-size", "32", "--plan", "--cpu",
                          "--adapter", str(dotted))  # fmt: skip
        assert code == 0 and "Tiny-1M (" in said and "/Tiny-1M-poet-GPTQ-4bit-32g." in said
        assert f"in this order: poet (rank 8, {adapter})." in said


def test_a_folder_has_no_revision(plain: Path, tmp_path: Path) -> None:
    """Its path was said to be no name of a repository."""
    code, said = call(tmp_path, "quantize", str(plain), "--revision", "foo", "--cpu", "--plan")
    assert code == 2 and f"{plain} is a folder, which has no branches. Leave out --revision." in said
    code, said = call(tmp_path, "quantize", str(tmp_path / "nothing"), "--revision", "foo", "--cpu", "--plan")
    assert code == 2 and "is not a folder" in said


@pytest.mark.parametrize("name", ["nothing/here/./..", "empty", "tiny/config.json"])
def test_a_path_without_a_model_is_bad_input_as_one_without_an_adapter(plain: Path, tmp_path: Path, name: str) -> None:
    """A script could not tell a name that was typed wrong from a job that failed."""
    (tmp_path / "empty").mkdir()
    code, said = call(tmp_path, "quantize", str(tmp_path / name), "--cpu", "--plan")
    assert code == 2 and ("is not a folder" in said or "holds no model to quantize" in said)
    code, said = call(tmp_path, "quantize", str(plain), "--cpu", "--plan", "--adapter", str(tmp_path / name))
    assert code == 2 and "There is no adapter" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff\xfe\x00", "no text in UTF-8"), (b"three words only", "tokens, too few")],
)
def test_the_plan_looks_at_the_text_to_calibrate_on(
    plain: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """It promised a job that was refused once it had begun."""
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    arguments = ("quantize", str(plain), "--group-size", "32", "--cpu", "--plan")
    code, said = call(tmp_path, *arguments, "--calibration", str(tmp_path / "own.txt"))
    assert code == 2 and words in said and "becomes GPTQ" not in said


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "done")
    code, said = call(tmp_path, "quantize", str(tmp_path / "done"))
    assert code == 1 and "is quantized already (gptq)" in said


def test_a_model_that_lacks_a_weight_is_refused_with_its_plan(plain: Path, tmp_path: Path) -> None:
    """The plan was shown, and the job failed in the layer that lacks it with nothing but an exit code."""
    folder = Path(shutil.copytree(plain, tmp_path / "given"))
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS)
    code, said = call(tmp_path, "quantize", str(folder), "--group-size", "32", "--cpu", "--plan")
    assert code == 1 and "given is incomplete" in said and "model.layers.1.mlp.up_proj.weight (missing: 1)" in said
    assert "becomes GPTQ" not in said


def test_an_adapter_that_names_another_base_is_merged_with_a_warning(plain: Path, tmp_path: Path) -> None:
    adapter = make_adapter(plain, tmp_path / "poet")
    change_json(adapter / "adapter_config.json", base_model_name_or_path="someone/Other-7B")
    arguments = ("quantize", str(plain), "--group-size", "32", "--adapter", str(adapter), "--plan", "--cpu")
    code, said = call(tmp_path, *arguments)
    assert code == 0 and "trained on someone/Other-7B" in said


@pytest.mark.engine
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(plain: Path, tmp_path: Path) -> None:
    """Of a Llama; the finished model loses little, and nothing else is left beside it."""
    choices = ["--bits", "8", "--group-size", "-1", "--asymmetric"]
    arguments = ["quantize", str(plain), *choices, "--cpu", "--name", "mine"]
    command = [sys.executable, "-m", "cli.main", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE, encoding="utf-8")
    assert first.stderr is not None
    said = ""
    while "layer 1" not in said:
        line = first.stderr.readline()
        assert line, said
        said += line
    first.send_signal(signal.SIGINT)
    said += first.stderr.read()
    assert first.wait(60) == 1 and "Stopped; what is done is kept." in said
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".quantize-mine"]
    code, said = call(tmp_path, *arguments)
    assert code == 0 and "knows nothing of language" in said and "The capital of France is”, it says:" in said, said
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]
    made = read_checkpoint(tmp_path / "models" / "mine")
    made.require_runs()
    assert made.quantization_label == "8 bit, no groups"
    assert call(tmp_path, *arguments)[1].endswith("Delete it, or choose another name.")


def test_the_line_beside_the_bar_follows_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("en")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    at_work = QuantizeState("running", "quantize", 0.5, 3, 32, 41.04, 1189.0)
    assert progress_text(at_work, terminal) == "layer 3 of 32, 41.0 s a layer, 19:49 left"
    assert progress_text(QuantizeState("running", "merge"), terminal) == "merging adapters"
    fetching = QuantizeState("running", "download", 0.0, download=JobState("running", (), 25, 100))
    assert (fraction_of(fetching), fraction_of(at_work)) == (0.25, 0.5)


def test_a_failed_job_says_where_its_work_lies_and_what_to_do_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gigabytes stayed in a hidden folder of which nobody was told."""
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "my models"))
    monkeypatch.setattr(sys, "argv", ["llamadeck", "quantize", "a b", "--cpu"])
    (job_folder("mine") / "work" / "merged").mkdir(parents=True)
    (job_folder("mine") / "work" / "merged" / "half").write_bytes(bytes(3 << 20))
    (left,) = left_folders("mine", None)
    assert left.num_bytes == 3 << 20
    show_left(QuantizeState("failed", left=(left,)), Terminal("en"))
    said = "".join(capsys.readouterr())
    assert f"kept in {tmp_path}/my models/.quantize-mine (3.1 MB)" in said
    assert "./llamadeck quantize 'a b' --cpu" in said and f"rm -r '{left.folder}'" in said
    show_left(QuantizeState("failed"), Terminal("en"))
    assert "".join(capsys.readouterr()) == ""


def test_the_same_command_says_why_the_job_failed_the_last_time(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / ".quantize-mine"
    folder.mkdir(parents=True)
    keep_failure(folder, DeckError("quantize_no_numbers"))
    arguments = ("quantize", str(plain), "--group-size", "32", "--cpu", "--plan", "--name", "mine")
    code, said = call(tmp_path, *arguments)
    assert code == 0 and "an earlier job of the name mine failed. The model computes no numbers" in said
    forget_failure(folder)
    assert "failed" not in call(tmp_path, *arguments)[1]


@pytest.mark.parametrize(("percent", "text"), [(-3.0, ""), (0.04, ""), (2.04, "2.0"), (12.4, "12")])
def test_losses_are_told_as_people_read_them(percent: float, text: str) -> None:
    assert loss_text(percent) == text


def test_jobs_of_a_folder_that_cannot_be_read_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    (tmp_path / ".quantize-odd").mkdir()
    (tmp_path / ".quantize-odd" / "job.json").write_text("[]")
    shutil.copytree(tmp_path / ".quantize-odd", tmp_path / ".quantize-empty", ignore=lambda *_: ["job.json"])
    queue = QuantizeQueue()
    assert queue.jobs == ()
    queue.close()
    assert os.listdir(tmp_path / ".quantize-empty") == []
