"""The benchmark: its figures and table from given measurements, its prompts, its turns, a peer that fails, and one real
short run.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import bench, llama_cpp
from benchmarks.engine import Engine, resident_mib, watch_all
from benchmarks.measuring import (
    ON_GPU,
    Decoded,
    Extent,
    Measured,
    Rounds,
    TooSlow,
    Unable,
    bytes_a_token,
    fitting,
    measure_decoding,
    measure_first_tokens,
    spread,
)
from benchmarks.peer import Limits, Peer
from benchmarks.prompts import QUESTION, Prompts
from benchmarks.report import Findings, Note, as_object, table_lines
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.headers import TensorInfo
from core.common.errors import EngineError, InputError
from core.common.paths import ROOT
from core.common.terminal import Terminal
from core.engine.answer import Answer
from core.engine.protocol import AnswerStats, Failed, Finished, MemoryFacts, ModelFacts, TextChunk
from core.memory.plan import MemoryPlan
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.fake_peer import DEADLY_TOKENS, ENDLESS_TOKENS

FACTS = ModelFacts("tiny", "Llama", "CPU (1)", "aten_int4", "aten_int4", 4096, 1, 1.5, 100_000_000, 1000)
EXTENT = Extent({512: 2}, (1, 8), prompt_tokens=128, new_tokens=64, rounds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path, Recipe(context_tokens=600))
    return path


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return read_checkpoint(folder)


def make_findings() -> Findings:
    findings = Findings(FACTS, {"torch": "2.13.0"}, 2, 10e9, 100_000_000, [0.9, 0.7], True, ("host", 700))
    engine, generate, other = Rounds(), Rounds(), Rounds()
    engine.first_token_s = {512: [0.5, 0.7]}
    engine.decoded = {1: [Decoded(40.0, 64, True), Decoded(50.0, 64, True)], 8: [Decoded(160.0, 512, True)]}
    generate.first_token_s = {512: [0.9]}
    generate.decoded = {1: [Decoded(30.0, 64, True)], 8: [Decoded(0.0, 0, False)]}
    other.decoded = {1: [Decoded(60.0, 64, True)]}
    findings.found = {"engine": engine, "generate": generate, "llama_cpp": other}
    return findings


# Figures ------------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_with_its_range() -> None:
    assert spread([3.0, 1.0, 2.004]) == {"median": 2.0, "low": 1.0, "high": 3.0, "runs": 3}


def test_the_object_has_every_figure_with_its_unit() -> None:
    result = as_object(make_findings(), EXTENT)
    assert result["load_from_click_s"] == {"median": 0.8, "low": 0.7, "high": 0.9, "runs": 2}
    assert result["host_memory_mib"] == 700
    assert (result["copy_gb_per_s"], result["weights_mb_a_token"]) == (10.0, 100.0)
    (first,) = result["first_token"]
    assert first["engine_ms"]["median"] == 600.0
    assert first["times_generate"] == 1.5
    assert "llama_cpp_ms" not in first
    one, eight = result["decode"]
    assert one["engine_tokens_per_s"]["median"] == 45.0
    assert (one["engine_counted_tokens"], eight["engine_counted_tokens"]) == (64, 512)
    assert one["times_generate"] == 1.5
    assert one["share_of_llama_cpp_percent"] == 75
    # 45 times 100 MB a second, of 10 GB; eight chats share one reading of the weights.
    assert one["share_of_copy_percent"] == 45.0
    assert eight["share_of_copy_percent"] == 20.0
    assert "generate_tokens_per_s" not in eight
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_has_a_row_a_figure_and_no_empty_column(language: str) -> None:
    findings = make_findings()
    findings.notes = [Note("no_spare", {}), Note("range", {"tokens": 4096, "limit": 600})]
    lines = table_lines(as_object(findings, EXTENT), findings, Terminal(language, io.StringIO()))
    text = "\n".join(lines)
    assert "45.0 (40.0–50.0)" in text and "600.0 (500.0–700.0)" in text
    assert "llama.cpp" in text and "75 %" in text and "45.0 %" in text
    assert "0.8 (0.7–0.9) s" in text
    assert "4096" in lines[-1] and "600" in lines[-1]
    del findings.found["llama_cpp"]
    assert "llama.cpp" not in "\n".join(table_lines(as_object(findings, EXTENT), findings, Terminal(language)))


def test_every_step_reads_all_weights_but_a_table_of_which_one_row_is_read(checkpoint: Checkpoint) -> None:
    sizes = {"model.embed_tokens.weight": 100, "model.layers.0.q.qweight": 40, "model.layers.0.q.g_idx": 7}
    tensors = {name: TensorInfo("f", "F16", (size,), 0, size) for name, size in sizes.items()}
    tied = Checkpoint("tied", {}, checkpoint.quantization, tensors)
    assert bytes_a_token(tied) == 140
    untied = tensors | {"lm_head.weight": TensorInfo("f", "F16", (60,), 0, 60)}
    assert bytes_a_token(Checkpoint("untied", {}, tied.quantization, untied)) == 100


def test_what_is_measured_ends_where_the_context_ends() -> None:
    assert fitting(ON_GPU, 100_000) == ON_GPU
    assert fitting(ON_GPU, 4096).lengths == {512: 5, 4095: 3}
    small = fitting(ON_GPU, 600)
    assert small.lengths == {512: 5}
    assert small.prompt_tokens + small.new_tokens < 600


# Prompts ------------------------------------------------------------------------------------------------------------


def test_prompts_have_exactly_the_length_and_begin_differently(checkpoint: Checkpoint) -> None:
    prompts = Prompts(checkpoint)
    lengths = [1, 2, 30, 512, 4096, 512, 512]
    taken = [prompts.take(length) for length in lengths]
    assert [len(prompt) for prompt in taken] == lengths
    assert len({prompt[0] for prompt in taken}) == len(taken)
    assert all(0 <= token < 384 for prompt in taken for token in prompt)


def test_a_long_prompt_ends_with_the_question(checkpoint: Checkpoint, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert QUESTION in tokenizer.decode(list(Prompts(checkpoint).take(512)))


def test_a_model_without_a_readable_tokenizer_gets_prompts_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "bare", Recipe())
    (tmp_path / "bare" / "tokenizer.json").unlink()
    prompts = Prompts(read_checkpoint(tmp_path / "bare"))
    assert len(prompts.take(40)) == 40
    assert prompts.take(40) != prompts.take(40)


# Turns --------------------------------------------------------------------------------------------------------------


class Player:
    """An engine that notes its turns, and is unable to take more than `able` of them."""

    def __init__(self, name: str, turns: list[str], able: int = 100, max_chats: int = 100) -> None:
        self.name, self.turns, self.able, self.max_chats = name, turns, able, max_chats

    def _take(self) -> None:
        if self.able == 0:
            raise Unable("out of memory")
        self.able -= 1
        self.turns.append(self.name)

    def first_token_s(self, num_tokens: int) -> float:
        self._take()
        return 1.0

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        self._take()
        return Decoded(10.0, num_chats * new_tokens, True)


def test_engines_take_turns_and_one_that_fails_has_no_more() -> None:
    turns: list[str] = []
    engines = {"a": Player("a", turns), "b": Player("b", turns, able=1)}
    found = {"a": Rounds(), "b": Rounds()}
    told: list[tuple[str, int, float]] = []
    measure_first_tokens(engines, found, {512: 3}, lambda *figure: told.append(figure))
    assert turns == ["a", "b", "a", "a"]
    assert told == [(name, 512, 1.0) for name in turns]
    assert found["a"].first_token_s == {512: [1.0, 1.0, 1.0]}
    assert found["b"].first_token_s == {512: [1.0]}
    assert [str(error) for error in found["b"].failures] == ["out of memory"]


def test_an_engine_is_not_asked_for_more_chats_than_it_can() -> None:
    turns: list[str] = []
    engines = {"a": Player("a", turns), "b": Player("b", turns, max_chats=1)}
    found = {"a": Rounds(), "b": Rounds()}
    told: list[tuple[str, int, float]] = []
    measure_decoding(engines, found, 8, EXTENT, lambda *figure: told.append(figure))
    assert turns == ["a", "a"]
    assert told == [("a", 8, 10.0)] * 2
    assert found["b"] == Rounds()


# Watching answers ---------------------------------------------------------------------------------------------------


def make_answer(request: int, num_tokens: int) -> Answer:
    answer = Answer(request, lambda _: None)
    answer.apply(TextChunk(request, "a", num_tokens))
    return answer


def test_answers_that_ended_before_all_were_written_count_nothing() -> None:
    answers = [make_answer(0, 7), make_answer(1, 1)]
    answers[0].apply(Finished(0, "end", AnswerStats(5, 0, 7, 0.0, 0.1, 0.2, 1)))
    answers[1].apply(Finished(1, "length", AnswerStats(5, 0, 9, 0.0, 0.1, 0.2, 1)))
    decoded = watch_all(answers)
    assert (decoded.num_tokens, decoded.is_whole) == (0, False)


class Written:
    """An answer that writes a token at each of `looks` looks at it, and then is done."""

    phase, reason, error = "writing", "length", None

    def __init__(self, looks: int) -> None:
        self.looks, self.num_tokens = looks, 1

    @property
    def is_running(self) -> bool:
        if not self.looks:
            return False
        self.looks -= 1
        self.num_tokens += 1
        return True

    def wait(self) -> None:
        pass


def test_chats_that_ended_before_all_had_begun_are_written_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when adapters are read from the disk for the first time: the others are done before the last one begins."""
    looks = iter([0, 0, 8, 8])

    class Early:
        def generate(self, *_: object, **__: object) -> Written:
            return Written(next(looks))

    engine = Engine(Prompts(checkpoint))
    monkeypatch.setattr(engine, "_runner", Early())
    decoded = engine.decode(2, 4, 9)
    assert decoded.is_whole and decoded.num_tokens > 0 and next(looks, None) is None


def test_a_failed_answer_is_an_error() -> None:
    answers = [make_answer(0, 1), make_answer(1, 1)]
    answers[0].apply(Failed(0, EngineError("nothing_loaded")))
    answers[1].apply(Finished(1, "length", AnswerStats(5, 0, 9, 0.0, 0.1, 0.2, 1)))
    with pytest.raises(EngineError):
        watch_all(answers)


def test_this_process_holds_memory() -> None:
    assert resident_mib(os.getpid()) > 10


# Other engines ------------------------------------------------------------------------------------------------------


def test_a_peer_that_cannot_start_says_why(checkpoint: Checkpoint) -> None:
    with pytest.raises(Unable, match="No module named"):
        Peer("benchmarks.nothing", [], Prompts(checkpoint), 1)


def test_a_peer_answers_in_the_tokens_that_it_was_asked_for(checkpoint: Checkpoint, folder: Path) -> None:
    peer = Peer("tests.support.fake_peer", ["0.5"], Prompts(checkpoint), 8)
    try:
        assert peer.first_token_s(100) == 1.0
        # Two chats of five tokens, whose first ones are not counted, in half a second.
        assert peer.decode(2, 100, 5) == Decoded(16.0, 10, True)
        with pytest.raises(Unable, match="too many"):
            peer.decode(3, 100, 5)
        assert peer.first_token_s(100) == 1.0
        # llama.cpp built for another processor than it runs on ends like this, and says nothing.
        with pytest.raises(Unable, match="SIGSEGV"):
            peer.decode(1, 100, DEADLY_TOKENS)
    finally:
        peer.close()


def test_a_peer_that_takes_too_long_to_start_is_ended(checkpoint: Checkpoint) -> None:
    with pytest.raises(TooSlow, match="longer than 0 s"):
        Peer("tests.support.fake_peer", ["0.5"], Prompts(checkpoint), 1, Limits(start_s=0.0))


def test_a_peer_that_takes_too_long_for_an_answer_is_ended_and_says_so_ever_after(checkpoint: Checkpoint) -> None:
    peer = Peer("tests.support.fake_peer", ["0.5"], Prompts(checkpoint), 1, Limits(answer_s=0.1))
    try:
        for new_tokens in (ENDLESS_TOKENS, 5):
            with pytest.raises(TooSlow, match="longer than 0.1 s"):
                peer.decode(1, 100, new_tokens)
        assert peer._process.wait() == -signal.SIGKILL
    finally:
        peer.close()


def test_all_answers_of_a_peer_together_have_a_limit_too(checkpoint: Checkpoint) -> None:
    peer = Peer("tests.support.fake_peer", ["0.5"], Prompts(checkpoint), 1, Limits(all_answers_s=30.0))
    try:
        assert peer.first_token_s(100) == 1.0
        assert peer._left_s < 30.0
        peer._left_s = 0.0
        with pytest.raises(TooSlow, match="longer than 30 s"):
            peer.decode(1, 100, ENDLESS_TOKENS)
    finally:
        peer.close()


def test_without_llama_cpp_the_run_says_how_to_add_it(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    peers: dict[str, Measured] = {}
    with ExitStack() as ends:
        run = bench.Bench(checkpoint, True, Terminal("en", io.StringIO()), ends)
        run._add_llama_cpp(peers, 4096)
    assert peers == {}
    (note,) = run._notes
    assert f"{sys.executable} -m pip install llama-cpp-python" in note.sentence("en")


def test_what_a_context_leaves_out_is_noted(checkpoint: Checkpoint) -> None:
    with ExitStack() as ends:
        run = bench.Bench(checkpoint, False, Terminal("en", io.StringIO()), ends)
        run._note_lengths(Extent({512: 1, 600: 1, 4096: 1}, (1,), 10, 10, 1))
    assert [(note.key, note.params) for note in run._notes] == [
        ("shorter", {"asked": 600, "tokens": 599}),
        ("range", {"tokens": 4096, "limit": 600}),
    ]


# A run that ends before its time -------------------------------------------------------------------------------------


class FakeEngine(Player):
    """An engine on a GPU that is loaded at once and ends with `error` where several chats are asked for."""

    error: BaseException = KeyboardInterrupt()

    def __init__(self, prompts: Prompts) -> None:
        super().__init__("engine", [])
        self.facts = replace(FACTS, memory=MemoryFacts(MemoryPlan(*[2**20] * 9), 2**20, 2**20, None, False))
        self.had_spare, self.contexts = True, list[int]()

    def load(self, folder: Path, context_tokens: int, num_chats: int) -> float:
        self.contexts.append(context_tokens)
        return 2.0

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        if num_chats > 1:
            raise self.error
        return super().decode(num_chats, prompt_tokens, new_tokens)

    def memory_mib(self) -> tuple[str, int]:
        return "gpu", 700

    def close(self) -> None:
        pass


class FailingEngine(FakeEngine):
    error = EngineError("worker_killed")


@pytest.mark.parametrize(
    ("make_engine", "said_of_the_end"),
    [
        (FakeEngine, "Stopped before everything was measured."),
        (FailingEngine, f"Ended before everything was measured: {FailingEngine.error}"),
    ],
)
def test_a_run_that_ends_early_has_what_there_was_and_says_what_is_missing(
    checkpoint: Checkpoint, make_engine: type[FakeEngine], said_of_the_end: str
) -> None:
    said = io.StringIO()
    with ExitStack() as ends:
        run = bench.Bench(checkpoint, False, Terminal("en", said), ends, make_engine)
        assert not run.run()
    lines = table_lines(as_object(run.findings, run.extent), run.findings, Terminal("en", io.StringIO()))
    assert any("1000 (1000–1000)" in line for line in lines) and any("10.0 (10.0–10.0)" in line for line in lines)
    assert lines[-4] == said_of_the_end
    assert lines[-3:] == [
        "Not measured: LlamaDeck, chats at once: 8, 32.",
        "Not measured: generate(), first token of 512.",
        "Not measured: generate(), chats at once: 1, 8, 32.",
    ]
    figures = [line.strip() for line in said.getvalue().splitlines() if line.startswith("  ")]
    assert "ready 2.0 s after the click" in figures
    assert figures.count("LlamaDeck, first token of 512: 1000.0 ms") == ON_GPU.lengths[512]
    assert "LlamaDeck, chats at once: 1: 10.0 tokens/s" in figures


def test_a_peer_that_is_too_slow_is_noted_once_in_both_languages(checkpoint: Checkpoint) -> None:
    with ExitStack() as ends:
        run = bench.Bench(checkpoint, False, Terminal("en", io.StringIO()), ends)
        run._found["generate"] = Rounds(failures=[TooSlow(120.0), TooSlow(120.0)])
        run._note_gaps()
    (note,) = run._notes
    assert note.sentence("en").startswith("generate() has figures missing") and "120 s" in note.sentence("en")
    assert "120" in note.sentence("zh")


@pytest.mark.parametrize(("limit", "reserved"), [(600, 600), (4096, 4096), (100_000, 4160)])
def test_the_first_loads_have_room_for_the_longest_prompt_and_its_answer(
    checkpoint: Checkpoint, limit: int, reserved: int
) -> None:
    asked = replace(checkpoint, config=checkpoint.config | {"max_position_embeddings": limit})
    with ExitStack() as ends:
        run = bench.Bench(asked, False, Terminal("en", io.StringIO()), ends)
        engine = FakeEngine(run._prompts)
        run._load_one_chat(engine)
    assert engine.contexts == [reserved] * 3
    assert max(fitting(ON_GPU, limit).lengths) < reserved


def test_a_terminated_run_prints_its_table(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "bench", "tiny", "--quick", "--json"],
        cwd=ROOT,
        env=os.environ | {"LLAMADECK_MODELS": str(folder.parent), "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "LlamaDeck, first token of 512" in line:
            process.terminate()
            break
    printed, rest = process.communicate()
    assert process.returncode == 1, rest
    assert "Traceback" not in rest
    result = json.loads(printed)
    assert result["first_token"][0]["engine_ms"]["median"] > 0
    assert "Stopped before everything was measured." in result["notes"]
    assert any(note.startswith("Not measured: generate()") for note in result["notes"])


# The whole ----------------------------------------------------------------------------------------------------------


def test_a_quick_run_of_a_real_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(folder.parent))
    said = io.StringIO()
    assert bench.main(["tiny", "--quick", "--json"], Terminal("en", said)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "tiny"
    assert result["load_from_click_s"]["median"] > 0
    assert result["host_memory_mib"] > 100
    assert result["copy_gb_per_s"] > 0
    (first,) = result["first_token"]
    assert first["prompt_tokens"] == 512
    assert first["engine_ms"]["median"] > 0 and first["generate_ms"]["median"] > 0
    assert [row["chats"] for row in result["decode"]] == [1, 2]
    for row in result["decode"]:
        assert row["engine_tokens_per_s"]["median"] > 0 and row["generate_tokens_per_s"]["median"] > 0
        assert row["share_of_copy_percent"] >= 0
    assert "Writing" in said.getvalue()
    assert "generate(), chats at once: 2:" in said.getvalue()


def test_an_unknown_model_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(folder.parent))
    with pytest.raises(InputError):
        bench.main(["nothing"], Terminal("en", io.StringIO()))


def test_where_there_is_no_model_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path))
    with pytest.raises(InputError) as caught:
        bench.main([], Terminal("en", io.StringIO()))
    assert "./llamadeck starter" in caught.value.sentence("zh")
