"""The session on a GPU: which job begins when, and that nothing is lost when it is cut off; no job here needs one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_tables
from benchmarks.figures import OURS, read_lines
from benchmarks.gpu_jobs import MODEL_GIB, Job, Places, Running, all_jobs, choose, every_job
from benchmarks.gpu_tables import Maker, pick, summary
from benchmarks.llama_cpp_gpu import GGUFS
from benchmarks.speed_table import CASES, MODELS
from core.common.paths import ROOT

IMPORTS = "from pathlib import Path; from benchmarks.figures import Figures"
FIGURE = "Figures('T', Path({path!r})).add('r', {column!r}, {value})"


def script(name: str, text: str, seconds: float = 1.0, **more: Any) -> Job:
    return Job(name, ("-c", text), seconds, has_limit=False, **more)


def figure(name: str, path: Path, column: str, value: float, then: str = "") -> Job:
    return script(name, f"{IMPORTS}\n{FIGURE.format(path=str(path), column=column, value=value)}\n{then}")


class TestChoice:
    def test_jobs_begin_in_their_order_where_their_models_are_ready_and_there_is_time(self) -> None:
        jobs = [Job("long", (), 500.0), Job("needs", (), 10.0, ("7B",)), Job("next", (), 10.0)]
        assert choose(jobs, 1, [], {"7B"}, 100.0) == jobs[1]
        assert choose(jobs, 1, [], set(), 100.0) == jobs[2]
        assert choose(jobs, 1, [], set(), 5.0) is None

    def test_a_job_of_two_cards_waits_for_both_and_only_short_ones_begin_before(self) -> None:
        two, short, long = Job("two", (), 50.0, num_cards=2), Job("short", (), 20.0), Job("long", (), 60.0)
        running = [Running(Job("now", (), 60.0), 30.0)]
        assert choose([two, long, short], 1, running, set(), 300.0) == short
        assert choose([two, long], 1, running, set(), 300.0) is None
        assert choose([two, long], 2, [], set(), 300.0) == two

    def test_names_are_picked_in_the_order_that_was_asked_for(self) -> None:
        jobs = [Job(name, (), 1.0) for name in ("ours: 7B", "vllm: 7B", "ours: 13B")]
        assert [one.name for one in pick(jobs, ["13B", "7B"], ["vllm"])] == ["ours: 13B", "ours: 7B"]
        assert pick(jobs, None, []) == jobs


class TestJobs:
    def test_every_job_stands_once_in_the_order(self, tmp_path: Path) -> None:
        places = Places(tmp_path, tmp_path / "figures", tmp_path / "tests", tmp_path, llama_cpp=tmp_path)
        assert sorted(job.name for job in all_jobs(places)) == sorted(job.name for job in every_job(places))
        assert set(MODEL_GIB) == set(MODELS) | set(GGUFS) and set(MODELS) == {case.model for case in CASES.values()}
        names = [job.name for job in all_jobs(Places(tmp_path, tmp_path, tmp_path))]
        assert not any(name.startswith(("vllm", "llama.cpp")) for name in names)

    def test_every_file_of_gpu_tests_is_run(self, tmp_path: Path) -> None:
        places = Places(tmp_path, tmp_path / "figures", tmp_path / "tests", tmp_path, llama_cpp=tmp_path)
        run = {argument for job in all_jobs(places) for argument in job.arguments if argument.endswith(".py")}
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/test_gpu_*.py")}
        assert run == there - {"tests/benchmarks/test_gpu_tables.py"}

    def test_what_a_job_calls_is_there_and_knows_its_arguments(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Parsers alone: each ends at the unknown argument, and complains of no other."""
        places = Places(tmp_path, tmp_path / "figures", tmp_path / "tests", tmp_path, llama_cpp=tmp_path)
        for job in all_jobs(places):
            _, module, *arguments = job.arguments
            if module == "pytest":
                assert all((ROOT / one).is_file() for one in arguments if one.endswith(".py"))
                continue
            limit = ["--limit-s", "9"] if job.has_limit else []
            monkeypatch.setattr(sys, "argv", [module, *arguments, *limit, "--unknown"])
            with pytest.raises(SystemExit):
                importlib.import_module(module).main()
            assert "unrecognized arguments: --unknown" in capsys.readouterr().err, job.name


class TestSession:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_tables, "LOOK_S", 0.05)
        monkeypatch.setattr(gpu_tables, "STOP_S", 1.0)

    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job], *more: str) -> dict[str, Any]:
        monkeypatch.setattr(gpu_tables, "all_jobs", lambda places: jobs)
        assert gpu_tables.main([str(tmp_path / "work"), "--out", str(tmp_path / "out"), *more]) == 0
        found: dict[str, Any] = json.loads((tmp_path / "out" / "jobs.json").read_text())
        return found

    def test_jobs_of_two_cards_leave_figures_logs_and_a_summary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "work" / "figures.jsonl"
        jobs = [
            figure("first", path, "a", 1.5, "print('hello')"),
            figure("second", path, "b", 2.5, "raise SystemExit(3)"),
            script("both", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])", num_cards=2),
        ]
        done = self.run(tmp_path, monkeypatch, jobs, "--cards", "0,1")
        assert {name: one["end"] for name, one in done.items()} == {
            "first": "exit code 0", "second": "exit code 3", "both": "exit code 0"
        }  # fmt: skip
        assert {one["card"] for one in read_lines(tmp_path / "out" / "figures.jsonl")} == {"0", "1"}
        text = (tmp_path / "out" / "summary.md").read_text()
        assert f"| {OURS} | a | b |" in text or f"| {OURS} | b | a |" in text
        log = (tmp_path / "out" / "log.txt").read_text()
        assert "===== first\n" in log and "hello" in log and "0,1" in log
        assert len(list((tmp_path / "out").iterdir())) <= 6

    def test_at_the_limit_a_job_is_asked_to_end_and_another_call_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "work" / "figures.jsonl"
        waits = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    " + FIGURE.format(
            path=str(path), column="late", value=7
        )
        monkeypatch.setattr(gpu_tables, "PATIENCE", 1000.0)
        jobs = [figure("hangs", path, "early", 5, waits), script("too long", "", 4000.0)]

        def is_begun() -> bool:
            return path.is_file()

        plain = gpu_tables.Session.left_s.fget  # type: ignore[attr-defined]
        # The time is over once the job has told its first figure.
        monkeypatch.setattr(gpu_tables.Session, "left_s", property(lambda one: 0.0 if is_begun() else plain(one)))
        done = self.run(tmp_path, monkeypatch, jobs, "--limit-s", "3000")
        assert done["hangs"]["end"] == "stopped at the limit" and "too long" not in done
        columns = [one["column"] for one in read_lines(tmp_path / "out" / "figures.jsonl")]
        assert columns == ["early", "late"]
        assert "Not begun: too long" in (tmp_path / "out" / "summary.md").read_text()
        path.unlink()
        jobs = [figure("hangs", path, "again", 1)]
        monkeypatch.setattr(gpu_tables.Session, "left_s", property(plain))
        assert self.run(tmp_path, monkeypatch, jobs)["hangs"]["end"] == "exit code 0"
        assert self.run(tmp_path, monkeypatch, jobs)["hangs"]["took_s"] is not None
        assert len(read_lines(path)) == 1

    def test_a_job_that_hangs_beyond_its_time_leaves_the_others_theirs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu_tables, "END_S", 0.2)
        deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
        jobs = [script("deaf", deaf, 0.1), script("next", "")]
        done = self.run(tmp_path, monkeypatch, jobs)
        assert done["deaf"]["end"] == "its time was over, exit code -9" and done["next"]["end"] == "exit code 0"


class TestMaker:
    def test_models_are_made_in_order_and_taken_away_for_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Room for one: the second is made once nobody needs the first any more."""

        def command(model: str, folder: Path) -> list[str]:
            text = (
                f"from pathlib import Path; p = Path({str(folder / model)!r}); p.mkdir(); (p / 'config.json').touch()"
            )
            return [sys.executable, "-c", text]

        monkeypatch.setattr(gpu_tables, "make_arguments", command)
        monkeypatch.setattr(gpu_tables, "free_gib", lambda folder: 40.0 * (not list(folder.glob("*/config.json"))))
        first, second = Job("a", (), 1.0, ("7B",)), Job("b", (), 1.0, ("13B",))
        maker = Maker(tmp_path, [first, second], turns(tmp_path))
        maker.start()
        wait_for(lambda: maker.ready() == {"7B"})
        maker.keep([second], [first])
        assert maker.ready() == {"7B"}
        maker.keep([second], [])
        wait_for(lambda: maker.ready() == {"13B"})
        maker.stop()
        assert not (tmp_path / "7B").exists() and not maker.has_failed(["13B"])

    def test_one_that_cannot_be_made_is_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_tables, "make_arguments", lambda model, folder: [sys.executable, "-c", "raise OSError"])
        maker = Maker(tmp_path, [Job("a", (), 1.0, ("7B",))], turns(tmp_path))
        maker.start()
        wait_for(lambda: maker.has_failed(["7B"]))
        maker.stop()


def turns(folder: Path) -> Path:
    (folder / "turns").mkdir()
    return folder / "turns"


def wait_for(is_so: Any) -> None:
    end_s = time.monotonic() + 120.0
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_outcomes_of_tests_are_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\ndef test_good(): pass\n\ndef test_bad(): assert 1 == 2\n\n"
        "@pytest.mark.skip(reason='no')\ndef test_left(): pass\n\n@pytest.fixture\ndef broken():\n"
        "    raise OSError('gone')\n\ndef test_without(broken): pass\n"
    )
    path = tmp_path / "tests.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.outcomes",
               "--outcomes", str(path), "--rootdir", str(tmp_path), str(tmp_path / "test_some.py")]  # fmt: skip
    subprocess.run(command, cwd=ROOT, capture_output=True)
    lines = read_lines(path)
    assert [(str(one["test"]).rpartition("::")[2], one["outcome"]) for one in lines] == [
        ("test_good", "passed"), ("test_bad", "failed"), ("test_left", "skipped"), ("test_without", "failed")
    ]  # fmt: skip
    text = summary({}, [], ["later"], lines)
    assert "Tests: 1 passed, 2 failed, 1 skipped" in text and "assert 1 == 2" in text and "gone" in text


class TestLanes:
    """Jobs that share a card."""

    MEASURES = """
import sys, time
from pathlib import Path
from benchmarks.turns import turn
log = Path({log!r})
def say(what):
    with log.open("a") as file:
        print({name!r}, what, file=file, flush=True)
say("begun")
while log.read_text().count("begun") < 2 or not Path({log!r} + "-runs").is_file():
    time.sleep(0.01)
with turn():
    say("measures")
    time.sleep(0.3)
    say("has measured")
"""
    RUNS = """
import time
from pathlib import Path
log, runs = Path({log!r}), Path({log!r} + "-runs")
while not log.is_file() or log.read_text().count("has measured") < 2:
    with runs.open("a") as file:
        print(log.read_text().count("\\n") if log.is_file() else 0, file=file, flush=True)
"""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_tables, "LOOK_S", 0.05)

    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job], lanes: int) -> dict[str, Any]:
        monkeypatch.setattr(gpu_tables, "all_jobs", lambda places: jobs)
        arguments = [str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--lanes", str(lanes)]
        assert gpu_tables.main(arguments) == 0
        found: dict[str, Any] = json.loads((tmp_path / "out" / "jobs.json").read_text())
        return found

    def test_one_measures_and_all_others_stand_still(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = tmp_path / "log"
        jobs = [
            script(name, self.MEASURES.format(log=str(log), name=name), 60.0, card_gib=10)
            for name in ("first", "second")
        ]
        # What the third does, a process below it does: all of a job stands still.
        below = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {self.RUNS.format(log=str(log))!r}])"
        done = self.run(tmp_path, monkeypatch, [*jobs, script("third", below, 60.0, card_gib=10)], 3)
        assert {one["end"] for one in done.values()} == {"exit code 0"} and len(done) == 3
        said = log.read_text().splitlines()
        for begin, end in ((said[2], said[3]), (said[4], said[5])):
            assert begin.replace("measures", "has measured") == end
        # While one measured its line was the last, the third or the fifth; one count may have begun before it.
        runs = (tmp_path / "log-runs").read_text().split()
        assert runs.count("3") <= 1 and runs.count("5") <= 1, (runs.count("3"), runs.count("5"))

    def test_one_that_dies_while_it_measures_lets_the_others_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = tmp_path / "log"
        dies = f"""
import os, time
from pathlib import Path
from benchmarks.turns import turn
while not Path({str(log)!r}).is_file():
    time.sleep(0.01)
with turn():
    os.kill(os.getpid(), 9)
"""
        other = f"import time; open({str(log)!r}, 'w').close(); time.sleep(0.5)"
        jobs = [script("dies", dies, 60.0, card_gib=10), script("other", other, 60.0, card_gib=10)]
        done = self.run(tmp_path, monkeypatch, jobs, 2)
        assert done["dies"]["end"] == "exit code -9" and done["other"]["end"] == "exit code 0"

    def test_a_job_begins_beside_others_where_a_lane_and_memory_are_free(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The small ones wait for one another, and the large one for both."""
        log = tmp_path / "log"

        def small(name: str, other: str) -> Job:
            text = f"""
import time
from pathlib import Path
log = Path({str(log)!r})
with log.open("a") as file: print({name!r}, file=file, flush=True)
while {other!r} not in log.read_text(): time.sleep(0.01)
"""
            return script(name, text, 60.0, card_gib=60)

        large = script(
            "large", f"from pathlib import Path\nwith Path({str(log)!r}).open('a') as f: print('large', file=f)"
        )
        done = self.run(tmp_path, monkeypatch, [small("one", "two"), large, small("two", "one")], 3)
        assert {one["end"] for one in done.values()} == {"exit code 0"}
        assert log.read_text().split()[-1] == "large"
