"""What the engine is asked for one prompt, and what of its answers is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.api.tool_use import ToolUse
from core.chat.tools.calls import ToolCall
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import MAX_SEED, Sampling
from core.engine.thought import Parts, ThoughtRules, ThoughtSplitter


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, which gets `num_choices` answers, each with `echo` before it.

    `continues`: the answers go on from the prompt's last word. The name of `speaker` before an answer is cut off; None
    leaves the text as it comes. By `thought` what the model thinks is told apart; None leaves it in the text. Of all
    answers the `num_kept` likeliest are sent, None: each. `tells_logprobs`: those in `options` are sent, too.
    Calls of `tools` are told apart. `is_prompt_alone`: nothing of the answers is sent, only what is told of the prompt.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    num_choices: int
    continues: bool = False
    echo: str = ""
    speaker: str | None = None
    thought: ThoughtRules | None = None
    options: RequestOptions = PLAIN
    num_kept: int | None = None
    tells_logprobs: bool = False
    tools: ToolUse | None = None
    is_prompt_alone: bool = False

    def sampling_of(self, choice: int) -> Sampling:
        """The settings of one choice: choices of one seed differ, and are the same every time."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) & MAX_SEED)

    def visible_message(self, text: str, is_done: bool) -> tuple[Parts, tuple[ToolCall, ...]]:
        """The parts of the message, and the calls of tools in it, that are certain: see `visible_parts`."""
        parts = self.visible_parts(text, is_done)
        if self.tools is None:
            return parts, ()
        words, calls = self.tools.read(parts.answer, is_done)
        return replace(parts, answer=words), calls

    def visible_parts(self, text: str, is_done: bool) -> Parts:
        """The parts of the message that an answer's `text` makes certain. None shrinks while the text grows, but where
        the rules let an end without a beginning make a thought of an answer."""
        if self.is_prompt_alone:
            return Parts(answer=self.echo)
        if self.thought is None:
            return Parts(answer=self.echo + text if self.speaker is None else self._without_name(text, is_done))
        splitter = ThoughtSplitter(self.thought)
        splitter.push(text)
        parts = splitter.end() if is_done else splitter.parts
        return parts if self.speaker is None else replace(parts, answer=self._without_name(parts.answer, is_done))

    def _without_name(self, text: str, is_done: bool) -> str:
        if self.speaker is None:
            return text
        text, mark = text.lstrip(), f"{self.speaker}:" if self.speaker else ""
        if not is_done and mark.startswith(text):
            return ""
        return text.removeprefix(mark).lstrip()
