"""What the API has done, as Prometheus reads it. Only the event loop changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from core.engine.answer import Answer
from core.engine.protocol import EngineState

CONTENT_TYPE = "text/plain; version=0.0.4"
FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts since the process began."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens = {"prompt": 0, "completion": 0}
        self._buckets: Counter[float] = Counter()
        self._first_sum_s = 0.0
        self._num_first = 0

    def count_request(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def count_tokens(self, prompt: int, completion: int) -> None:
        self._tokens["prompt"] += prompt
        self._tokens["completion"] += completion

    def observe_first_token(self, seconds: float) -> None:
        """From the whole request to the first piece of text, the queue included."""
        self._num_first += 1
        self._first_sum_s += seconds
        for bound_s in FIRST_TOKEN_BUCKETS_S:
            self._buckets[bound_s] += seconds <= bound_s

    def text(self, state: EngineState, answers: Sequence[Answer]) -> str:
        """All of it, with what the engine does now; `answers` are those of the pages, too."""
        return "\n".join([*self._lines(state, answers), ""])

    def _lines(self, state: EngineState, answers: Sequence[Answer]) -> Iterator[str]:
        yield from _head("llamadeck_api_requests_total", "counter", "Requests by route and status; 499: client left.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'llamadeck_api_requests_total{{route="{_escaped(route)}",status="{status}"}} {count}'
        for name, count in self._tokens.items():
            yield from _head(f"llamadeck_api_{name}_tokens_total", "counter", f"Tokens of {name}s, API only.")
            yield f"llamadeck_api_{name}_tokens_total {count}"
        name = "llamadeck_api_first_token_seconds"
        yield from _head(name, "histogram", "From the whole request to the first text of the answer.")
        for bound_s in FIRST_TOKEN_BUCKETS_S:
            yield f'{name}_bucket{{le="{bound_s}"}} {self._buckets[bound_s]}'
        yield f'{name}_bucket{{le="+Inf"}} {self._num_first}'
        yield f"{name}_sum {self._first_sum_s:.6f}"
        yield f"{name}_count {self._num_first}"
        num_queued = sum(answer.phase == "queued" for answer in answers)
        yield from _head("llamadeck_answers_queued", "gauge", "Answers that wait for their turn, of pages and API.")
        yield f"llamadeck_answers_queued {num_queued}"
        yield from _head("llamadeck_answers_running", "gauge", "Answers that are read or written, of pages and API.")
        yield f"llamadeck_answers_running {len(answers) - num_queued}"
        yield from _head("llamadeck_model_loaded", "gauge", "1 for the model that answers; no line without one.")
        if state.phase == "ready" and state.model is not None:
            yield f'llamadeck_model_loaded{{model="{_escaped(state.model)}"}} 1'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
