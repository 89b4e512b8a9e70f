"""Answers of a wanted form: what may come next by a grammar, and grammars made ready beside the engine's loop.

llguidance compiles grammars and computes masks. A grammar is a stranger's text: it is compiled in a thread, within
limits, and what cannot be compiled fails its request alone.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from core.common.errors import EngineError
from core.common.panics import panics_as_errors, why_of
from core.common.values import printable
from core.engine.request_options import Grammar
from core.worker.json_schemas import ready_schema

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)
# Of compiled grammars so many are kept: programs ask with the same one again and again.
MAX_KEPT = 32
MAX_WHY_CHARS = 300
CALL_TAGS = ("<tool_call>", "</tool_call>")
# One space, or a new line with its indent, of spaces or of tabs: small models write blanks without end where they may.
WHITESPACE = r"( ?|\n {0,32}|\n\t{0,8})"
EXACT = {"whitespace_pattern": WHITESPACE}
# Of tools' schemas: keywords that cannot be held, such as `not` and `uniqueItems`, are left to the model.
AS_FAR_AS_CAN_BE = EXACT | {"lenient": True, "coerce_one_of": True}
# What llguidance says where nothing can be written, and where it advises its own options.
NOTHING_FITS, ONE_OF = "NoExtensionBias", "coerce_one_of"
# A grammar in GBNF is translated in Python, which holds up the engine's loop.
MAX_GBNF_CHARS = 2**16
# A lexer's states take up to 2 KiB each. With what llguidance limits by itself a mask takes 15 ms at the most.
MAX_LEXER_STATES, MAX_GRAMMAR_SYMBOLS = 30_000, 300_000


class Constraint:
    """One answer's grammar. It constrains while it `is_active`. For the worker's main thread."""

    def __init__(self, matcher: LLMatcher, grammar: Grammar) -> None:
        self._matcher, self._grammar = matcher, grammar
        self.is_active = True

    def allowed(self) -> torch.Tensor:
        """See TokenConstraint.allowed. Once a limit was reached only an end may come; `error` tells it."""
        import torch

        return torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def is_over(self) -> bool:
        """Whether nothing may come any more but an end."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> EngineError | None:
        """Why no further token can be judged: a grammar that is too large where the answer has come to."""
        return _error(self._matcher.get_error(), self._grammar) if self._matcher.is_error() else None


class Constraints:
    """Makes the constraints of one tokenizer's answers. For one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._ends = sorted(token for token in end_tokens if token < vocabulary)
        self._own: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def make(self, grammar: Grammar) -> Constraint:
        """Raises EngineError where the grammar cannot be compiled or is too large, or the tokenizer cannot be used."""
        matcher = self._kept.pop(grammar, None) or self._compile(grammar)
        self._kept[grammar] = matcher
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return Constraint(matcher.deep_copy(), grammar)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._own is None:
            self._own = self._read_tokenizer()
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, max_grammar_size=MAX_GRAMMAR_SYMBOLS)
        try:
            with panics_as_errors():
                matcher = LLMatcher(self._own, _definition(grammar), log_level=0, limits=limits)
                # Whether any token can begin, which for a contradiction none can.
                is_empty = not matcher.is_error() and not any(matcher.compute_bitmask())
        except Exception as error:  # The library's own, of many kinds, for what is no grammar at all.
            raise _error(why_of(error), grammar) from error
        if matcher.is_error() or is_empty:
            if grammar.kind == "calls":
                # Of the tags' grammar the error would show lines that nobody wrote.
                self._compile(replace(grammar, kind="call"))
            raise _error(matcher.get_error() if matcher.is_error() else NOTHING_FITS, grammar)
        return matcher

    def _read_tokenizer(self) -> LLTokenizer:
        """Takes a second for a large vocabulary."""
        from llguidance import LLTokenizer

        try:
            with panics_as_errors():
                ends = self._ends or None
                return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._vocabulary, eos_token=ends)
        except Exception as error:
            log.warning("grammars cannot be used with this tokenizer: %s", why_of(error))
            raise EngineError("grammar_tokenizer", why=why_of(error)) from error


def _definition(grammar: Grammar) -> str:
    """The grammar in llguidance's form. Raises ValueError."""
    from llguidance import LLMatcher, StructTag, grammar_from

    if grammar.kind in ("json", "call"):
        is_tool = grammar.kind == "call"
        schema = json.dumps(ready_schema(_parsed(grammar.text), is_tool))
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=AS_FAR_AS_CAN_BE if is_tool else EXACT))
    if grammar.kind == "calls":
        # A template that knows no tools belongs to a vocabulary without tokens for them.
        call = {**ready_schema(_parsed(grammar.text), is_tool=True), "x-guidance": AS_FAR_AS_CAN_BE}
        begin, end = CALL_TAGS
        tag = StructTag(trigger=begin, begin=f"{begin}\n", grammar=call, end=f"\n{end}")
        return str(LLMatcher.grammar_from_lark(StructTag.to_grammar([tag], assume_special=False)))
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind == "gbnf":
        if len(grammar.text) > MAX_GBNF_CHARS:
            raise ValueError(f"it has more than {MAX_GBNF_CHARS} characters")
        return str(grammar_from("gbnf", grammar.text))
    return str(LLMatcher.grammar_from_lark(grammar.text))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def _error(why: str, grammar: Grammar) -> EngineError:
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    told = printable(" ".join(lines))[:MAX_WHY_CHARS]
    if NOTHING_FITS in told:
        told = "no text satisfies it"
    elif ONE_OF in told:
        told = "alternatives of oneOf may not overlap; those of anyOf may"
    if grammar.kind in ("call", "calls"):
        return EngineError("grammar_tools", why=told)
    return EngineError("grammar", why=told)
