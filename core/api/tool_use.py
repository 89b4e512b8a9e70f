"""The tools of one request: how its prompt tells of them, which calls are forced, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.api.errors import ApiError
from core.api.schema import ChatRequest
from core.api.tool_fields import tool_of
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.tools.calls import ToolCall, Tools
from core.chat.tools.formats import FORCED, GENERIC, ToolFormat, find_tool_format, read_answer
from core.chat.tools.prompt import forced_grammar, free_grammar, takes_tools, with_tools_told
from core.engine.request_options import Grammar


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`own_template`: the model's template tells of tools. Where a call `is_forced` the prompt ends with `begun`, the
    call's beginning. `grammar` is what the answer is held to. `is_single`: only one call is wanted."""

    tools: Tools
    format: ToolFormat
    own_template: bool
    is_single: bool = False
    is_forced: bool = False
    grammar: Grammar | None = None
    begun: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """See RequestOptions.shown."""
        return self.format.shown if self.tools and not self.is_forced else ()

    def put(self, template: ChatTemplate, turns: Sequence[Turn]) -> tuple[ChatTemplate, list[Turn]]:
        """The template and the turns by which a prompt tells of the tools."""
        if not self.own_template:
            return template, with_tools_told(turns, self.tools)
        definitions = tuple(tool.definition for tool in self.tools.values())
        source = template.tool_source if definitions and template.tool_source else template.source
        return replace(template, source=source, tools=definitions), list(turns)

    def begin(self, prompt: str, may_begin: bool) -> tuple[ToolUse, str]:
        """What follows a `prompt` that forces a call: the call's beginning, where the model's form has one and the
        answer `may_begin` there. A model that thinks first writes the call alone after its thought."""
        if not self.is_forced:
            return self, prompt
        begun = self.format.forced if may_begin else ""
        return replace(self, begun=begun, format=self.format if begun else FORCED), prompt + begun

    def read(self, text: str, is_done: bool) -> tuple[str, tuple[ToolCall, ...]]:
        """The words and the calls of an answer, see read_answer."""
        if not self.tools:
            return text, ()
        words, calls = read_answer(self.format, self.begun + text, self.tools, is_done)
        return words, calls[:1] if self.is_single or self.is_forced else calls


def read_tools(request: ChatRequest, template: ChatTemplate, is_remote: bool = False) -> ToolUse | None:
    """What a request says of tools; None where it says nothing of them. is_remote: the model is on another server,
    which is asked for no grammar. Raises ApiError."""
    choice, tools = request.tool_choice, {field.function.name: tool_of(field) for field in request.tools or ()}
    if choice is not None and choice.mode == "required" and not tools:
        raise ApiError("api_field", field="tool_choice", why="there are no tools to call")
    if choice is not None and choice.name is not None and choice.name not in tools:
        raise ApiError("api_field", field="tool_choice", why="there is no tool of that name")
    if choice is not None and choice.allowed is not None:
        missing = next((name for name in choice.allowed if name not in tools), None)
        if missing is not None:
            raise ApiError("api_field", field="tool_choice", why=f"there is no tool {missing[:100]}")
        tools = {name: tools[name] for name in choice.allowed}
    has_earlier = any(message.role == "tool" or message.tool_calls for message in request.messages)
    is_off = not tools or (choice is not None and choice.mode == "none")
    if is_off and not has_earlier:
        return None
    source = template.tool_source or template.source or ""
    own = bool(template.source) and takes_tools(source)
    format = find_tool_format(source) if own else GENERIC
    use = ToolUse({} if is_off else tools, format, own, is_single=request.parallel_tool_calls is False)
    if is_off:
        return use
    if request.grammar is not None:
        raise ApiError("api_field", field="response_format", why="an answer of a given form cannot call tools")
    if choice is not None and choice.mode == "required":
        wanted = [tools[choice.name]] if choice.name is not None else list(tools.values())
        return replace(use, is_forced=True, grammar=forced_grammar(wanted))
    if not own and not is_remote:
        # The model was never taught to call tools: what it begins to call is held to the tool's schema.
        use = replace(use, grammar=free_grammar(list(tools.values())))
    return use
