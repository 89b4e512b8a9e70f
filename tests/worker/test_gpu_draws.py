"""On a GPU: what requests ask of their draws, in CUDA graphs that run ahead. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from core.engine.protocol import Finished, Generate, Load, PromptScored, TextChunk
from core.engine.request_options import Grammar, RequestOptions
from core.engine.sampling_params import Sampling
from core.worker.constraints import Constraints
from core.worker.load import LoadedEngine
from core.worker.scheduler import Scheduler
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_engines import gpu_engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PERSON = Grammar("json", json.dumps({
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}))  # fmt: skip
FEW = tuple((token, 60.0) for token in range(80, 90))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedEngine]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(folder, Recipe(hidden=512, intermediate=1024, num_heads=8, group_size=128, context_tokens=512))
    with gpu_engines() as engines:
        yield engines.open(folder, Load(folder, 512, 4))


class Asking:
    def __init__(self, engine: LoadedEngine) -> None:
        self.events: list[Any] = []
        self._constraints = Constraints(engine.tokenizer, engine.steps.vocabulary, engine.end_tokens)
        self._scheduler = Scheduler(
            engine.steps, engine.tokenizer, engine.end_tokens, engine.chunk_tokens, self.events.append
        )

    def ask(self, request: int, options: RequestOptions, prompt: Any = "Who is it?", **changes: Any) -> None:
        sampling = Sampling(**{"temperature": 0.0, "max_new_tokens": 24, "seed": request, **changes})
        constraint = self._constraints.make(options.grammar) if options.grammar is not None else None
        self._scheduler.submit(Generate(request, prompt, sampling, options=options), constraint)

    def run(self) -> None:
        with torch.inference_mode():
            while not self._scheduler.is_idle:
                self._scheduler.step()

    def text(self, request: int) -> str:
        return "".join(one.text for one in self.events if isinstance(one, TextChunk) and one.request == request)

    def tokens(self, request: int) -> list[Any]:
        chunks = [one for one in self.events if isinstance(one, TextChunk) and one.request == request]
        return [token for chunk in chunks for token in chunk.tokens]

    def reason(self, request: int) -> str:
        (end,) = [one for one in self.events if isinstance(one, Finished) and one.request == request]
        return str(end.reason)


def test_forms_are_kept_beside_answers_that_run_ahead_and_change_nothing_in_them(engine: LoadedEngine) -> None:
    alone = Asking(engine)
    alone.ask(1, RequestOptions(), max_new_tokens=60)
    alone.run()
    together = Asking(engine)
    together.ask(1, RequestOptions(), max_new_tokens=60)
    kinds: list[dict[str, Any]] = [{"temperature": 1.0}, {"temperature": 1.0, "frequency_penalty": 1.0}, {}]
    for request in range(2, 11):
        together.ask(request, RequestOptions(grammar=PERSON), max_new_tokens=200, **kinds[request % 3])
    together.run()
    assert together.text(1) == alone.text(1)
    for request in range(2, 11):
        assert set(json.loads(together.text(request))) == {"name", "age"} and together.reason(request) == "end"


@pytest.mark.parametrize(
    "changes", [{"presence_penalty": 1.0, "frequency_penalty": 2.0}, {"dry_multiplier": 20.0, "dry_allowed_length": 1}]
)
def test_penalties_change_an_answer_that_repeats_itself(engine: LoadedEngine, changes: dict[str, Any]) -> None:
    asking = Asking(engine)
    asking.ask(1, RequestOptions(logit_bias=FEW, logprobs=0))
    asking.ask(2, RequestOptions(logit_bias=FEW, logprobs=0), **changes)
    asking.run()
    plain, changed = ([one.chosen.token for one in asking.tokens(request)] for request in (1, 2))
    assert set(plain) | set(changed) <= {token for token, _ in FEW}
    assert len(set(changed)) > len(set(plain)) and len(changed) == len(plain) == 24


def test_a_prompts_chances_are_those_of_its_beginnings(engine: LoadedEngine) -> None:
    prompt = tuple(range(70, 110))
    asking = Asking(engine)
    asking.ask(1, RequestOptions(logprobs=2, prompt_logprobs=True), prompt, max_new_tokens=1)
    asking.ask(2, RequestOptions(logprobs=2), prompt[:25], max_new_tokens=1)
    asking.run()
    scores = [token for one in asking.events if isinstance(one, PromptScored) for token in one.tokens]
    (first,) = asking.tokens(2)
    assert [one.chosen.token for one in scores] == list(prompt)
    assert scores[25].top[0].token == first.top[0].token
    assert scores[25].top[0].logprob == pytest.approx(first.top[0].logprob, abs=0.05)
