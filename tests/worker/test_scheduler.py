"""The engine's loop over steps without a model: what is emitted, in which order, and for which tokens it asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer

from core.common.paths import ROOT
from core.engine.detokenize import TextStream
from core.engine.protocol import Failed, Finished, Generate, PromptStarted
from core.engine.request_options import Grammar, RequestOptions
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules
from core.engine.thought_formats import THINK
from core.worker.decode.steps import PendingTokens
from tests.support.scheduler_harness import PROMPT, FakeSteps, FakeTokens, SchedulerHarness


@pytest.fixture
def harness(tokenizer: Tokenizer) -> SchedulerHarness:
    return SchedulerHarness(FakeSteps(), tokenizer)


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, core.worker.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_steps_that_run_ahead_answer_the_same_with_one_step_in_flight(tokenizer: Tokenizer, runs_ahead: bool) -> None:
    steps = FakeSteps(2, runs_ahead=runs_ahead)
    harness, plain = SchedulerHarness(steps, tokenizer), SchedulerHarness(FakeSteps(2), tokenizer)
    for one in (harness, plain):
        for request in (1, 2, 3):
            one.ask(request, PROMPT * request, max_new_tokens=7 * request)
    while not harness.scheduler.is_idle:
        harness.scheduler.step()
        assert steps.num_in_flight <= int(runs_ahead)
    plain.run()
    for request in (1, 2, 3):
        assert harness.text(request) == plain.text(request)
        assert harness.end(request).stats.num_tokens == 7 * request


class NotedTokens(FakeTokens):
    def __init__(self, inner: FakeTokens, slots: Sequence[int], notes: list[str]) -> None:
        self._inner, self._slots, self._notes = inner, slots, notes

    def draw_rest(self) -> None:
        self._notes.append(f"draw {self._slots}")

    def wait(self) -> list[int | None]:
        return self._inner.wait()

    def logprobs(self) -> list[None]:
        return self._inner.logprobs()


class NotedSteps(FakeSteps):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(3, runs_ahead=True)
        self.notes = notes

    def decode(self, slots: Sequence[int]) -> PendingTokens:
        self.notes.append(f"step {list(slots)}")
        return NotedTokens(super().decode(slots), list(slots), self.notes)


class NotedGrammar:
    """Lets everything come."""

    is_active, is_over, error = True, False, None

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def accept(self, token: int) -> None:
        self._notes.append("accept")


def test_a_grammar_runs_ahead_with_all_others_and_is_told_each_token_before_the_next_is_drawn(
    tokenizer: Tokenizer,
) -> None:
    """Answers with a grammar once had every second step alone: half the speed for them, and no step ahead for one."""
    notes: list[str] = []
    harness = SchedulerHarness(NotedSteps(notes), tokenizer)
    sampling, options = Sampling(temperature=0.0, max_new_tokens=8), RequestOptions(grammar=Grammar("regex", ".*"))
    harness.scheduler.submit(Generate(1, PROMPT, sampling, options=options), NotedGrammar(notes))
    harness.ask(2, max_new_tokens=20)
    harness.run()
    assert harness.end(1).stats.num_tokens == 8 and harness.end(2).stats.num_tokens == 20
    both = [place for place, note in enumerate(notes) if note == "step [0, 1]"]
    assert len(both) >= 5
    for place in both[:-1]:
        assert notes[place : place + 3] == ["step [0, 1]", "accept", "draw [0, 1]"]


def test_logits_that_are_no_numbers_fail_their_answer_and_empty_its_slot(tokenizer: Tokenizer) -> None:
    """Keys and values that led there are not used again."""
    steps = FakeSteps(1, nan_at=40)
    harness = SchedulerHarness(steps, tokenizer)
    harness.ask(1, max_new_tokens=100)
    harness.run()
    (failed,) = [event for event in harness.events if isinstance(event, Failed)]
    assert failed.error.key == "not_a_number" and harness.text(1)
    harness.ask(2, max_new_tokens=2)
    harness.run()
    assert harness.end(2).stats.reused_tokens == 0


def test_an_answer_begins_grows_and_ends(harness: SchedulerHarness) -> None:
    harness.ask(1)
    harness.run()
    assert isinstance(harness.events[0], PromptStarted)
    assert isinstance(harness.events[-1], Finished)
    assert harness.end(1).reason == "length"
    assert harness.end(1).stats.num_tokens == 12
    assert harness.end(1).stats.prompt_tokens == harness.events[0].prompt_tokens > 4
    assert harness.text(1)


def test_a_prompt_that_was_read_before_is_not_read_again(harness: SchedulerHarness) -> None:
    harness.ask(1)
    harness.run()
    harness.ask(2)
    harness.run()
    assert harness.end(2).stats.reused_tokens == harness.end(2).stats.prompt_tokens - 1
    assert harness.text(1) == harness.text(2)


def test_requests_beyond_the_slots_wait_their_turn(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(1), tokenizer)
    for request in (1, 2, 3):
        harness.ask(request, max_new_tokens=5)
    harness.run()
    ends = [event.request for event in harness.events if isinstance(event, Finished)]
    begins = [event.request for event in harness.events if isinstance(event, PromptStarted)]
    assert ends == begins == [1, 2, 3]


def test_a_page_does_not_wait_for_the_many_requests_of_a_client(tokenizer: Tokenizer) -> None:
    """One program's requests once stood before everybody else's: in the order in which they came."""
    harness = SchedulerHarness(FakeSteps(1), tokenizer)
    for request in (1, 2, 3, 4):
        harness.ask(request, client="key one", max_new_tokens=2)
    harness.scheduler.step()
    harness.ask(5, client="key two", max_new_tokens=2)
    harness.ask(6, max_new_tokens=2)
    harness.scheduler.cancel(3)
    harness.run()
    begins = [event.request for event in harness.events if isinstance(event, PromptStarted)]
    assert begins == [1, 6, 2, 5, 4]


def test_a_long_prompt_does_not_keep_another_answer_waiting(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(2, 256), tokenizer, chunk=4)
    harness.ask(1, "Hello", max_new_tokens=5)
    harness.scheduler.step()
    harness.ask(2, PROMPT * 12, max_new_tokens=5)
    while not any(isinstance(event, Finished) for event in harness.events):
        harness.scheduler.step()
    assert harness.end(1).reason == "length"
    assert harness.text(1) and not harness.text(2)
    harness.run()
    assert harness.end(2).stats.prompt_tokens > 10 * 4


def test_cancel_ends_an_answer_before_its_next_token(harness: SchedulerHarness) -> None:
    harness.ask(1, max_new_tokens=100)
    for _ in range(12):
        harness.scheduler.step()
    harness.scheduler.cancel(1)
    drawn = harness.end(1).stats.num_tokens
    harness.run()
    assert harness.end(1).reason == "cancelled"
    assert 0 < drawn < 100
    assert harness.scheduler.is_idle


def test_cancel_reaches_a_request_that_waits_and_one_that_is_being_read(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(1), tokenizer, chunk=4)
    harness.ask(1)
    harness.ask(2)
    harness.scheduler.step()
    harness.scheduler.cancel(2)
    harness.scheduler.cancel(1)
    harness.scheduler.cancel(99)
    assert harness.scheduler.is_idle
    assert harness.end(1).reason == harness.end(2).reason == "cancelled"
    assert harness.end(1).stats.num_tokens == 0


def test_a_stop_string_ends_the_answer_and_is_not_shown(harness: SchedulerHarness) -> None:
    harness.ask(1, max_new_tokens=30)
    harness.run()
    whole = harness.text(1)
    stop = whole[8:11]
    harness.ask(2, max_new_tokens=30, stop=(stop,))
    harness.run()
    assert harness.end(2).reason == "stop"
    assert harness.text(2) == whole[: whole.index(stop)]


def test_an_end_token_ends_the_answer(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(), tokenizer)
    harness.ask(1, max_new_tokens=6)
    harness.run()
    tokens = harness.tokenizer.encode(harness.text(1), add_special_tokens=False).ids
    ending = SchedulerHarness(FakeSteps(), tokenizer, ends=range(384))
    ending.ask(1)
    ending.run()
    assert tokens
    assert ending.end(1).reason == "end"
    assert ending.text(1) == ""


def test_a_full_context_ends_the_answer(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(context_tokens=40), tokenizer)
    harness.ask(1, max_new_tokens=500)
    harness.run()
    stats = harness.end(1).stats
    assert harness.end(1).reason == "context"
    assert stats.prompt_tokens + stats.num_tokens == 40


def test_a_prompt_that_fills_the_context_is_read_alone_or_leaves_room_for_a_token(tokenizer: Tokenizer) -> None:
    harness = SchedulerHarness(FakeSteps(context_tokens=40), tokenizer)
    harness.ask(1, tuple(range(3, 43)), max_new_tokens=1, options=RequestOptions(is_prompt_alone=True))
    harness.ask(2, tuple(range(3, 42)), max_new_tokens=500)
    harness.run()
    assert harness.end(1).stats.prompt_tokens == 40
    assert harness.end(2).reason == "context" and harness.end(2).stats.num_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "key"), [("", "prompt_empty"), ((), "prompt_empty"), (tuple(range(3, 43)), "prompt_too_long")]
)
def test_a_prompt_that_cannot_be_answered_fails_at_once(tokenizer: Tokenizer, prompt, key: str) -> None:
    harness = SchedulerHarness(FakeSteps(context_tokens=40), tokenizer)
    harness.ask(1, prompt)
    (event,) = harness.events
    assert isinstance(event, Failed)
    assert event.error.key == key
    assert harness.scheduler.is_idle


def test_an_answer_that_the_tokenizer_panics_at_fails_alone(tokenizer: Tokenizer) -> None:
    """The panic ended the process, and with it every other chat's answer."""

    class Panicking:
        """Turns three tokens into text and then panics."""

        num_left = 3

        def decode(self, tokens: list[int], **_: object) -> str:
            self.num_left -= 1
            if self.num_left < 0:
                raise type("PanicException", (BaseException,), {})("index out of bounds")
            return "x" * len(tokens)

    harness = SchedulerHarness(FakeSteps(), tokenizer)
    harness.ask(1)
    harness.ask(2)
    next(iter(harness.scheduler._waiting)).stream = TextStream(Panicking(), ())  # type: ignore[arg-type]
    harness.run()
    (failed,) = [event for event in harness.events if isinstance(event, Failed)]
    assert failed.request == 1 and "index out of bounds" in str(failed.error)
    assert [event.request for event in harness.events if isinstance(event, Finished)] == [2]


# Thoughts -----------------------------------------------------------------------------------------------------------

CLOSING = THINK.closing


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_thought_over_its_budget_is_ended_and_the_answer_follows(tokenizer: Tokenizer, runs_ahead: bool) -> None:
    steps = FakeSteps(2, runs_ahead=runs_ahead)
    harness = SchedulerHarness(steps, tokenizer)
    num_closing = len(tokenizer.encode(CLOSING, add_special_tokens=False).ids)
    harness.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=5), max_new_tokens=40)
    harness.ask(2, max_new_tokens=40)
    harness.run()
    thought, mark, answer = harness.text(1).partition(CLOSING)
    assert mark and len(thought) == 5 and len(answer) == 40 - 5 - num_closing
    # What follows depends on all before it, as with a prompt that held the thought and its end.
    plain = SchedulerHarness(FakeSteps(1), tokenizer)
    plain.ask(1, PROMPT + thought + CLOSING, max_new_tokens=len(answer))
    plain.run()
    assert plain.text(1) == answer
    stats, other = harness.end(1).stats, harness.end(2).stats
    assert (stats.num_tokens, stats.prompt_tokens) == (40, other.prompt_tokens) and harness.end(1).reason == "length"
    assert harness.text(2) != "" and CLOSING not in harness.text(2)


@pytest.mark.parametrize(
    ("rules", "length"),
    [
        (ThoughtRules(budget_tokens=5), 40),  # Nothing is thought.
        (ThoughtRules(is_open=True, budget_tokens=50), 40),
        (ThoughtRules(is_open=True), 40),
    ],
)
def test_a_thought_within_its_budget_is_left_alone(harness: SchedulerHarness, rules: ThoughtRules, length: int) -> None:
    harness.ask(1, thought=rules, max_new_tokens=length)
    harness.run()
    assert CLOSING not in harness.text(1) and len(harness.text(1)) == length


def test_a_thought_that_leaves_no_room_for_an_answer_ends_with_the_context(tokenizer: Tokenizer) -> None:
    num_prompt = len(tokenizer.encode(PROMPT, add_special_tokens=False).ids)
    harness = SchedulerHarness(FakeSteps(1, context_tokens=num_prompt + 8), tokenizer)
    harness.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=5), max_new_tokens=100)
    harness.run()
    assert harness.end(1).reason == "context" and len(harness.text(1)) == 5
    harness.ask(2, max_new_tokens=2)
    harness.run()
    assert harness.end(2).stats.num_tokens == 2


def test_a_thought_that_leaves_no_token_for_an_answer_ends_with_its_length(tokenizer: Tokenizer) -> None:
    longest = 5 + len(tokenizer.encode(CLOSING, add_special_tokens=False).ids)
    harness = SchedulerHarness(FakeSteps(1), tokenizer)
    harness.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=5), max_new_tokens=longest)
    harness.run()
    assert harness.end(1).reason == "length" and harness.end(1).stats.num_tokens <= longest


def test_a_cancelled_thought_ends_as_any_answer(harness: SchedulerHarness) -> None:
    harness.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=3), max_new_tokens=100)
    while CLOSING not in harness.text(1):
        harness.scheduler.step()
    harness.scheduler.cancel(1)
    assert harness.end(1).reason == "cancelled" and harness.scheduler.is_idle


def test_a_stop_string_in_a_thought_ends_nothing_and_one_in_the_answer_does(tokenizer: Tokenizer) -> None:
    """A thought that tried a line with a character's name ended there, and the answer was empty."""
    plain = SchedulerHarness(FakeSteps(1), tokenizer)
    plain.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=5), max_new_tokens=40)
    plain.run()
    thought, _, answer = plain.text(1).partition(CLOSING)
    for word in (thought[1:3], answer[3:6]):
        text = thought + CLOSING + answer.partition(word)[0]
        harness = SchedulerHarness(FakeSteps(1), tokenizer)
        harness.ask(1, thought=ThoughtRules(is_open=True, budget_tokens=5), max_new_tokens=40, stop=(word,))
        harness.run()
        assert harness.text(1) == text
