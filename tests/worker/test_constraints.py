"""Answers of a wanted form, over a tiny real model that knows no such form by itself."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import EngineError, InputError
from core.engine.protocol import Generate
from core.engine.request_options import MAX_GRAMMAR_CHARS, Grammar, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.engine.thought_formats import THINK
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.tokenizer.read import read_tokenizer
from core.worker.constraints import Constraints
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.slot_draw import unpacked
from core.worker.decode.steps import EagerSteps, Steps
from core.worker.end_tokens import find_end_tokens
from core.worker.model.model_runner import ModelRunner
from core.worker.preparing import PreparationThread, Prepared
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.dense_models import load_dense
from tests.support.plain_recorder import PlainRecorder
from tests.support.scheduler_harness import SchedulerHarness

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path, Recipe(num_layers=1))
    return path


@pytest.fixture(scope="module")
def constraints(folder: Path) -> Constraints:
    tokenizer = read_tokenizer(folder)
    return Constraints(tokenizer, 384, find_end_tokens(read_checkpoint(folder), tokenizer))


@pytest.fixture(scope="module", params=["plain", "captured"])
def steps(request: pytest.FixtureRequest, folder: Path) -> Iterator[Steps]:
    with torch.inference_mode(), cuda_on_cpu():
        runner = ModelRunner(load_dense(folder), 3, 256, num_pages=full_pages(3, 256))
        yield EagerSteps(runner) if request.param == "plain" else GraphSteps(runner, StepSizes(40), PlainRecorder())


def schema(value: Any) -> Grammar:
    return Grammar("json", json.dumps(value))


class Asking(SchedulerHarness):
    def __init__(self, folder: Path, steps: Steps, constraints: Constraints) -> None:
        tokenizer = read_tokenizer(folder)
        super().__init__(steps, tokenizer, ends=find_end_tokens(read_checkpoint(folder), tokenizer))
        self._constraints = constraints

    def ask_for(self, request: int, grammar: Grammar, thought: ThoughtRules | None = None, **changes: Any) -> None:
        sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 120, "seed": request, **changes})
        command = Generate(request, "Who is it?", sampling, thought=thought, options=RequestOptions(grammar=grammar))
        self.scheduler.submit(command, self._constraints.make(grammar))


FORMS = {
    "schema": (schema(PERSON), lambda text: set(json.loads(text)) == {"name", "age"}),
    "choice": (Grammar("regex", "yes|no|perhaps"), lambda text: text in ("yes", "no", "perhaps")),
    "pattern": (Grammar("regex", r"[a-c]{3}-\d{2}"), lambda text: re.fullmatch(r"[a-c]{3}-\d{2}", text)),
    "Lark": (Grammar("lark", 'start: "a" "b"? WORD\nWORD: /[xyz]{2}/'), lambda text: re.fullmatch("ab?[xyz]{2}", text)),
    "GBNF": (Grammar("gbnf", 'root ::= "<" [0-9] ">"'), lambda text: re.fullmatch(r"<\d>", text)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_has_the_form_whatever_runs_beside_it(
    folder: Path, steps: Steps, constraints: Constraints, form: str
) -> None:
    grammar, is_right = FORMS[form]
    harness = Asking(folder, steps, constraints)
    harness.ask(1, max_new_tokens=40)
    for request, changes in ((2, {}), (3, {"temperature": 0.0}), (4, {"frequency_penalty": 1.0}), (5, {"mirostat": 2})):
        harness.ask_for(request, grammar, **changes)
    harness.run()
    alone = SchedulerHarness(
        steps, read_tokenizer(folder), ends=find_end_tokens(read_checkpoint(folder), harness.tokenizer)
    )
    alone.ask(1, max_new_tokens=40)
    alone.run()
    assert harness.text(1) == alone.text(1)
    for request in (2, 3, 4, 5):
        assert is_right(harness.text(request)), harness.text(request)
        assert harness.end(request).reason == "end"


def test_a_thought_may_be_as_it_likes_and_the_answer_after_it_has_the_form(
    folder: Path, steps: Steps, constraints: Constraints
) -> None:
    harness = Asking(folder, steps, constraints)
    rules = ThoughtRules(THINK, is_open=True, budget_tokens=6)
    harness.ask_for(1, Grammar("regex", "yes|no"), rules)
    harness.run()
    thought, _, answer = harness.text(1).partition("</think>")
    assert thought and answer.strip() in ("yes", "no")


BAD = [
    Grammar("json", '{"type": "foo"}'),
    Grammar("json", "{"),
    Grammar("json", '{"$ref": "http://example.org/a.json"}'),
    Grammar("json", '{"type": "string", "enum": []}'),
    Grammar("regex", "(a"),
    Grammar("lark", "start: nowhere"),
    Grammar("gbnf", "root ::= ("),
    schema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
]


@pytest.mark.parametrize("grammar", BAD, ids=lambda one: one.text[:30])
def test_a_form_that_cannot_be_is_refused_in_words(constraints: Constraints, grammar: Grammar) -> None:
    with pytest.raises(EngineError) as caught:
        constraints.make(grammar)
    assert caught.value.key == "grammar" and caught.value.params["why"]


def test_a_pattern_that_grows_without_end_reaches_a_limit_and_not_the_machines(constraints: Constraints) -> None:
    constraint = constraints.make(Grammar("regex", "(.*a.{1,3000}){20}b"))
    for token in read_tokenizer_of(constraints).encode("a" * 3000, add_special_tokens=False).ids:
        constraint.allowed()
        constraint.accept(token)
        if constraint.error is not None:
            break
    assert constraint.error is None or constraint.error.key == "grammar"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "options", "changes", "text"),
    [
        (Grammar("regex", "()"), {"min_tokens": 5}, {}, ""),
        (Grammar("regex", "()"), {"ignore_eos": True}, {}, ""),
        (Grammar("regex", "a{90}"), {}, {"dry_multiplier": 100.0, "dry_base": 10.0, "dry_allowed_length": 1}, "a" * 90),
    ],
)
def test_where_all_that_may_come_is_forbidden_otherwise_the_form_counts(
    folder: Path,
    steps: Steps,
    constraints: Constraints,
    grammar: Grammar,
    options: dict[str, Any],
    changes: dict[str, Any],
    text: str,
    temperature: float,
) -> None:
    """No token was left to draw, which ended the engine and with it everybody's answers."""
    harness = Asking(folder, steps, constraints)
    sampling = Sampling(temperature=temperature, top_p=1.0, max_new_tokens=120, seed=1, **changes)
    command = Generate(1, "Who is it?", sampling, options=RequestOptions(grammar=grammar, **options))
    harness.scheduler.submit(command, constraints.make(grammar))
    harness.run()
    assert (harness.text(1), harness.end(1).reason) == (text, "end")


def read_tokenizer_of(constraints: Constraints) -> Any:
    return constraints._tokenizer


def test_words_are_free_and_calls_between_them_are_as_their_schema_says(constraints: Constraints) -> None:
    call = {"type": "object", "properties": {"name": {"const": "f"}, "arguments": {"type": "object"}},
            "required": ["name", "arguments"], "additionalProperties": False}  # fmt: skip
    grammar = Grammar("calls", json.dumps({"anyOf": [call]}))
    whole = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    for text, is_right in [("a < b {", True), (f"hm {whole} ok {whole}", True), (whole[:-5], False),
                           ('<tool_call>\n{"name": "g"', False), ("<tool_call> x", False)]:  # fmt: skip
        constraint = constraints.make(grammar)
        for token in read_tokenizer_of(constraints).encode(text, add_special_tokens=False).ids:
            if not unpacked(constraint.allowed(), 384)[token]:
                break
            constraint.accept(token)
        else:
            ends = unpacked(constraint.allowed(), 384)[constraints._ends]
            assert bool(ends.any()) == is_right, text
            continue
        assert not is_right, text


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('{"name":"a","age":3}', True),
        ('{ "name": "a", "age": 3 }', True),
        ('{\n    "name": "a",\n    "age": 3\n}', True),
        ('{\n\t\t"name": "a",\n\t\t"age": 3}', True),
        ('{\n' + " " * 33, False),
        ('{\n' + "\t" * 9, False),
        ('{\n \t', False),
        ('{  ', False),
        ('{\n\n', False),
    ],
)  # fmt: skip
def test_blanks_are_a_space_or_one_line_with_an_indent(constraints: Constraints, text: str, is_right: bool) -> None:
    """Of 25 answers of the starter one was blanks and tabs until its limit came, so that it was cut off in the
    middle."""
    constraint, tokenizer = constraints.make(schema(PERSON)), read_tokenizer_of(constraints)
    refused = False
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        refused = not unpacked(constraint.allowed(), 384)[token]
        if refused:
            break
        constraint.accept(token)
    assert refused != is_right


def test_an_end_comes_only_where_the_form_is_whole(constraints: Constraints) -> None:
    constraint = constraints.make(Grammar("regex", "ab?"))
    (end, *_) = constraints._ends
    a, b = (read_tokenizer_of(constraints).token_to_id(one) for one in "ab")
    assert unpacked(constraint.allowed(), 384).nonzero().flatten().tolist() == [a]
    constraint.accept(a)
    allowed = unpacked(constraint.allowed(), 384)
    assert allowed[end] and allowed[b] and not constraint.is_over
    constraint.accept(b)
    assert constraint.is_over


def test_grammars_are_made_in_a_thread_and_one_that_was_cancelled_is_left(constraints: Constraints) -> None:
    made: queue.SimpleQueue[Prepared] = queue.SimpleQueue()
    thread = PreparationThread(constraints, None, made.put)
    for request, text in ((1, "a"), (2, "(")):
        options = RequestOptions(grammar=Grammar("regex", text))
        thread.submit(Generate(request, "x", Sampling(), options=options))
    results = {one.command.request: one for one in (made.get(timeout=60), made.get(timeout=60))}
    assert results[1].constraint is not None and results[1].error is None
    assert isinstance(results[2].error, EngineError)
    assert thread.take(1) and not thread.take(1) and not thread.take(7)


def test_a_grammar_beyond_all_sense_is_not_even_read() -> None:
    with pytest.raises(InputError):
        RequestOptions(grammar=Grammar("regex", "a" * (MAX_GRAMMAR_CHARS + 1)))
