"""How the families of models write calls of tools, in one table, and how an answer that grows is read.

The marks are those of the models' own chat templates and cards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.chat.tools.calls import ToolCall, Tools, call_of, object_text, read_objects, written
from core.chat.tools.literals import GEMMA, NAME, PYTHON, read_members
from core.engine.detokenize import held_back

Reader = Callable[[str, Tools], Iterator[ToolCall]]
# Answers are read anew with each piece: what a pattern begins and does not find must not be looked for to the end.
PARAMETER = re.compile(
    r"<parameter=([^>\n]{1,256})>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|(?=</function>))", re.DOTALL
)
INVOKED = re.compile(
    r'<parameter name="([^"\n]{1,256})">(.*?)(?:</parameter>|(?=<parameter name=)|(?=</invoke>))', re.DOTALL
)
CHANNEL = re.compile(
    r"<\|channel\|>commentary to=functions\.([\w.\-]{1,256})(?![\w.\-])(?:(?!<\|channel\|>)[^{]){0,256}?<\|message\|>"
)
SPACE = re.compile(r"\s*")
MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family writes its calls.

    Its templates hold one of `signs`. A call begins with one of `begin`; `marks` are other texts of special tokens that
    `read` needs. `is_bare`: an answer that is an object of JSON with the name of a tool is a call, too. A call that is
    forced is written after `forced`, as an object of JSON.
    """

    name: str
    signs: tuple[str, ...]
    begin: tuple[str, ...]
    read: Reader
    marks: tuple[str, ...] = ()
    is_bare: bool = False
    forced: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The marks that have to stand in an answer's text although they are special tokens."""
        return (*self.begin, *self.marks)


def _objects(text: str, tools: Tools) -> Iterator[ToolCall]:
    """Objects of JSON, in a list or one after the other."""
    yield from filter(None, map(call_of, read_objects(text)))


def _tagged(text: str, tools: Tools) -> Iterator[ToolCall]:
    """<tool_call> around each object, or around a list of them."""
    for body in _bodies(text, "<tool_call>", "</tool_call>"):
        yield from _objects(body, tools)


def _functions(text: str, tools: Tools) -> Iterator[ToolCall]:
    """<function=NAME>, and in it <parameter=NAME> around each value as plain text."""
    return _elements(text, tools, "<function=", ">", "</function>", PARAMETER)


def _invokes(text: str, tools: Tools) -> Iterator[ToolCall]:
    """<invoke name="NAME">, and in it <parameter name="NAME"> around each value as plain text."""
    return _elements(text, tools, '<invoke name="', '">', "</invoke>", INVOKED)


def _elements(
    text: str, tools: Tools, begin: str, sign: str, end: str, parameter: re.Pattern[str]
) -> Iterator[ToolCall]:
    for piece in text.split(begin)[1:]:
        name, has_name, body = piece.partition(sign)
        if not has_name:
            return
        body, is_whole, _ = body.partition(end)
        given = [(key.strip(), _value(tools, name.strip(), key.strip(), value))
                 for key, value in parameter.findall(body + is_whole)]  # fmt: skip
        yield written(name.strip(), given, is_whole=bool(is_whole))


def _python_calls(text: str, tools: Tools) -> Iterator[ToolCall]:
    """NAME(KEY=VALUE, …) as Python writes it, one after the other, perhaps in a list."""
    place = 0
    while (begin := text.find("(", place)) >= 0:
        name = NAME.match(text[max(0, begin - MAX_NAME_CHARS) : begin][::-1])
        given, end = read_members(text, begin + 1, PYTHON, "=", ")")
        if name is None:
            return
        yield written(name[0][::-1], given, is_whole=end is not None)
        if end is None:
            return
        place = end


def _gemma(text: str, tools: Tools) -> Iterator[ToolCall]:
    """call:NAME and an object whose keys are bare and whose texts stand in quotes of their own."""
    for body in _bodies(text, "<|tool_call>", "<tool_call|>"):
        name, sign, _ = body.partition("{")
        if sign:
            given, end = read_members(body, len(name) + 1, GEMMA, ":", "}")
            yield written(name.strip().removeprefix("call:"), given, is_whole=end is not None)


def _keys_and_values(text: str, tools: Tools) -> Iterator[ToolCall]:
    """<tool_call>NAME, then <arg_key> and <arg_value> by turns."""
    for body, is_whole in _closed_bodies(text, "<tool_call>", "</tool_call>"):
        name, has_more, rest = body.partition("<arg_key>")
        if not has_more and not is_whole and "\n" not in name.strip(" "):
            continue
        name = name.strip().splitlines()[0].strip() if name.strip() else ""
        if not name:
            continue
        given = [(key.strip(), _value(tools, name, key.strip(), value)) for key, value in _arguments(has_more + rest)]
        yield written(name, given, is_whole)


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Each <arg_key> with the <arg_value> after it, where both are whole."""
    begin = text.find("<arg_key>")
    while begin >= 0 and (key_end := text.find("</arg_key>", begin)) >= 0:
        after = key_end + len("</arg_key>")
        space = SPACE.match(text, after)
        value_begin = space.end() if space else after
        if text.startswith("<arg_value>", value_begin):
            value_end = text.find("</arg_value>", value_begin)
            if value_end < 0:
                return
            yield text[begin + len("<arg_key>") : key_end], text[value_begin + len("<arg_value>") : value_end]
            after = value_end
        begin = text.find("<arg_key>", after)


def _deepseek(text: str, tools: Tools) -> Iterator[ToolCall]:
    """V3 and R1: function<sep>NAME and a fence of JSON; V3.1: NAME<sep>JSON."""
    for body in _bodies(text, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"):
        before, sign, after = body.partition("<｜tool▁sep｜>")
        if not sign:
            continue
        if before.strip() != "function":
            yield ToolCall(before.strip(), object_text(after))
            continue
        name, line_end, rest = after.partition("\n")
        if line_end:
            yield ToolCall(name.strip(), object_text(rest))


def _mistral(text: str, tools: Tools) -> Iterator[ToolCall]:
    """[TOOL_CALLS] with a list of objects; since 2025 with NAME[ARGS]JSON for each call."""
    for body in text.split("[TOOL_CALLS]")[1:]:
        name, sign, arguments = body.partition("[ARGS]")
        if sign:
            yield ToolCall(name.partition("[CALL_ID]")[0].strip(), object_text(arguments))
        elif body.lstrip().startswith(("[", "{")):
            yield from _objects(body, tools)


def _channels(text: str, tools: Tools) -> Iterator[ToolCall]:
    """A message of the channel "commentary" to functions.NAME."""
    found = list(CHANNEL.finditer(text))
    for place, one in enumerate(found):
        end = found[place + 1].start() if place + 1 < len(found) else len(text)
        yield ToolCall(one[1], object_text(text[one.end() : end]))


def _bodies(text: str, begin: str, end: str) -> Iterator[str]:
    """What stands between the marks, the last perhaps without its end, of which nothing is in it."""
    return (body for body, _ in _closed_bodies(text, begin, end))


def _closed_bodies(text: str, begin: str, end: str) -> Iterator[tuple[str, bool]]:
    """The same, each with whether it has its end."""
    for piece in text.split(begin)[1:]:
        body, sign, _ = piece.partition(end)
        yield (body, True) if sign else (body[: len(body) - held_back(body, (end,))], False)


def _value(tools: Tools, tool: str, name: str, text: str) -> object:
    return tools[tool].value_of(name, text) if tool in tools else text


# In this order a template's source is looked through.
FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat("gpt-oss", ("<|channel|>",), ("<|start|>assistant<|channel|>commentary", "<|channel|>commentary"),
               _channels, ("<|constrain|>", "<|message|>", "<|call|>", "<|end|>")),
    ToolFormat("DeepSeek", ("<｜tool▁call▁begin｜>",), ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _deepseek,
               ("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")),
    ToolFormat("Mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",), _mistral, ("[ARGS]", "[CALL_ID]")),
    ToolFormat("Command-R", ("<|START_ACTION|>",), ("<|START_ACTION|>",), _objects, ("<|END_ACTION|>",)),
    # Its first template.
    ToolFormat("Command-R 2024", ("Action:",), ("Action:",), _objects),
    ToolFormat("Seed-OSS", ("<seed:tool_call>",), ("<seed:tool_call>",), _functions, ("</seed:tool_call>",)),
    ToolFormat("MiniMax", ("<minimax:tool_call>",), ("<minimax:tool_call>",), _invokes, ("</minimax:tool_call>",)),
    ToolFormat("Gemma 4", ("<|tool_call>",), ("<|tool_call>",), _gemma, ("<tool_call|>", '<|"|>')),
    ToolFormat("LFM2", ("<|tool_call_start|>", "<|tool_list_start|>"), ("<|tool_call_start|>",), _python_calls,
               ("<|tool_call_end|>",)),
    ToolFormat("Olmo 3", ("<function_calls>",), ("<function_calls>",), _python_calls, ("</function_calls>",)),
    ToolFormat("Qwen3-Coder", ("<function=",), ("<tool_call>", "<function="), _functions, ("</tool_call>",)),
    ToolFormat("GLM", ("<arg_key>",), ("<tool_call>",), _keys_and_values,
               ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")),
    ToolFormat("Phi-4", ("<|/tool_call|>", "functools["), ("<|tool_call|>", "functools["), _objects,
               ("<|/tool_call|>",), is_bare=True),
    ToolFormat("Granite", ("<|tool_call|>",), ("<|tool_call|>", "<tool_call>"), _objects, is_bare=True),
    ToolFormat("Hermes", ("<tool_call>",), ("<tool_call>",), _tagged, ("</tool_call>",), is_bare=True,
               forced="<tool_call>\n"),
    ToolFormat("Llama", ("<|python_tag|>", '"parameters"'), ("<|python_tag|>",), _objects, is_bare=True),
)  # fmt: skip
BY_NAME = {one.name: one for one in FORMATS}
# What models are told that have no form of their own, and what those are read by that hide theirs.
GENERIC = BY_NAME["Hermes"]
# An answer that is one object of JSON, because it was made to be.
FORCED = ToolFormat("forced", (), (), _objects, is_bare=True)


def find_tool_format(source: str) -> ToolFormat:
    """The format of a chat template that takes tools."""
    return next((one for one in FORMATS if any(sign in source for sign in one.signs)), GENERIC)


def read_answer(format: ToolFormat, text: str, tools: Tools, is_done: bool) -> tuple[str, tuple[ToolCall, ...]]:
    """The words of an answer before its calls, and the calls, as far as they are certain by now.

    Neither shrinks while `text` grows. What looks like a call and never becomes one stays the answer's words.
    """
    begin = min((at for mark in format.begin if (at := text.find(mark)) >= 0), default=None)
    if begin is not None:
        calls = tuple(_finished(format.read(text[begin:], tools), is_done))
        return (text, ()) if is_done and not calls else (text[:begin].rstrip(), calls)
    if format.is_bare and text.lstrip().startswith(("{", "[{")):
        calls = tuple(call for call in _objects(text, tools) if call.name in tools)
        if calls:
            return "", tuple(_finished(iter(calls), is_done))
        first = next(read_objects(text))
        if not is_done and call_of(first) is None:
            return "", ()
    if is_done:
        return text, ()
    return text[: len(text) - held_back(text, format.begin)].rstrip(), ()


def _finished(calls: Iterator[ToolCall], is_done: bool) -> Iterator[ToolCall]:
    """A call without arguments has an empty object for them."""
    for call in calls:
        yield ToolCall(call.name, "{}") if is_done and not call.arguments else call
