"""How one chat is put to the model that answers: what was said, who speaks, the mode and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.chat.character_prompt import CharacterPrompt
from core.chat.group import Group, assistant_turn
from core.chat.model_prompt import ModelPrompt
from core.chat.modes import PromptStyle, notebook_parts
from core.chat.question import content_of, cut_to_room, with_files
from core.chat.records import Message, Mode
from core.chat.template_messages import Turn
from core.chat.thinking import Thinking
from core.chat.truncation import ComposedPrompt, ContextError, FittedPrompt, PromptParts, Voice, fit_to_context
from core.documents.document import Document
from core.engine.request_options import AdapterUse
from core.engine.sampling_params import Sampling
from core.personas.lorebook import LeftOut, Lore

# Where less lore than this is too much, there is none.
LEAST_LORE_TOKENS = 64
# Files that are cut leave the rest for what is asked about them next: a message that does not fit is left out whole.
FILES_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads. `begins_at` is the index of the oldest message in it: where the model's memory begins.

    `lore` is what the chat called up, `left_out` what of that is not in it. `begun` is what the answer begins with that
    the prompt holds already.
    """

    parts: PromptParts
    fitted: FittedPrompt
    begins_at: int
    left_out: tuple[LeftOut, ...] = ()
    begun: str = ""
    lore: tuple[Lore, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptContext:
    """All that a chat's prompt depends on, except its messages."""

    model: ModelPrompt
    context_tokens: int
    mode: Mode
    character: CharacterPrompt
    sampling: Sampling
    group: Group | None = None
    thinking: Thinking = field(default_factory=Thinking)
    adapter: AdapterUse | None = None

    @property
    def style(self) -> PromptStyle:
        names = self.character.names
        names = names.with_others(self.group.others) if self.group is not None else names
        template = self.model.template
        if self.thinking.variables:
            template = replace(template, variables=self.thinking.variables)
        return PromptStyle(self.mode, template, names, self.model.counter.opening)

    @property
    def speaker(self) -> str:
        """Who answers, as the history keeps it; empty where it can be nobody else."""
        return self.group.speaker if self.group is not None and self.group.is_group else ""

    def turns_of(self, messages: Sequence[Message]) -> list[Turn]:
        return self.group.turns(messages) if self.group is not None else turns_of(messages)

    def asked(self, text: str, files: Sequence[Document] = ()) -> Turn:
        """What the person says next."""
        content = with_files(text, files)
        return self.group.asked(content) if self.group is not None else Turn(role="user", content=content)

    def files_that_fit(self, turns: Sequence[Turn], text: str, files: Sequence[Document]) -> tuple[Document, ...]:
        """The `files` of a question after `turns`: as they are where all fit, else as much of their beginnings as does.

        Raises ContextError where not even the question itself fits, TemplateError.
        """
        try:
            self.prepare([*turns, self.asked(text, files)])
        except ContextError as error:
            if error.key != "message_too_long":
                raise
            room = int(int(error.params["limit"]) * FILES_SHARE)
            return cut_to_room(files, text, room, self.model.counter.count)
        return tuple(files)

    def prepare(
        self, turns: Sequence[Turn], voice: Voice = "assistant", start: str = "", must_keep_last: bool = True
    ) -> Prompt:
        """The prompt for the next message, which begins with `start`. Messages without a word are left out.

        `must_keep_last`: False where a question is still to come, for which the last message may be left out as well.
        Raises ContextError, TemplateError.
        """
        spoken = [(index, turn) for index, turn in enumerate(turns) if turn["content"].strip()]
        prompt = self._prepare(spoken, voice, start, must_keep_last, is_full=False)
        if prompt.begins_at == 0:
            return prompt
        return self._prepare(spoken, voice, start, must_keep_last, is_full=True)

    def prepare_text(self, text: str) -> Prompt:
        """The prompt that continues a notebook's text. Raises ContextError."""
        parts = notebook_parts(text)
        fitted = self._fit(parts)
        return Prompt(parts, fitted, fitted.first_kept)

    def _prepare(
        self, spoken: list[tuple[int, Turn]], voice: Voice, start: str, must_keep_last: bool, is_full: bool
    ) -> Prompt:
        turns = [turn for _, turn in spoken]
        composed, parts, fitted = self._compose_to_fit(turns, voice, start, must_keep_last, is_full)
        begun = self.style.begun(fitted.prompt, parts)
        if fitted.first_kept == 0:
            return Prompt(parts, fitted, 0, composed.left_out, begun, composed.lore)
        kept = [index for index in composed.message_indexes[fitted.first_kept :] if index is not None]
        begins_at = spoken[kept[0]][0] if kept else spoken[-1][0] + 1
        return Prompt(parts, fitted, begins_at, composed.left_out,
                      begun, composed.lore)  # fmt: skip

    def _compose_to_fit(
        self, turns: Sequence[Turn], voice: Voice, start: str, must_keep_last: bool, is_full: bool
    ) -> tuple[ComposedPrompt, PromptParts, FittedPrompt]:
        """Lore goes before a chat is refused: where the prompt is too long, less and less of it is tried."""
        most_lore_tokens = self.context_tokens
        while True:
            composed = self.character.compose(turns, is_full, model=self.model.name, context_tokens=self.context_tokens,
                                              most_lore_tokens=most_lore_tokens)  # fmt: skip
            parts = replace(composed.parts, voice=voice, start=start)
            try:
                num_last = _num_last(composed.message_indexes) - (0 if must_keep_last else 1)
                return composed, parts, self._fit(parts, num_last)
            except ContextError:
                if composed.lore_tokens == 0:
                    raise
                most_lore_tokens = composed.lore_tokens // 4 if composed.lore_tokens > LEAST_LORE_TOKENS else 0

    def _fit(self, parts: PromptParts, num_last: int = 1) -> FittedPrompt:
        model, answer_tokens = self.model, self.sampling.max_new_tokens
        return fit_to_context(parts, self.style.render, model.counter.count, self.context_tokens, answer_tokens,
                              model.count_prompt, num_last)  # fmt: skip


def _num_last(message_indexes: Sequence[int | None]) -> int:
    """How many turns the last message and the lore after it are."""
    after = next((place for place, index in enumerate(reversed(message_indexes)) if index is not None), 0)
    return after + 1


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    return [
        Turn(role="user", content=content_of(one)) if one.role == "user" else assistant_turn(one) for one in messages
    ]
