"""Calls of tools: how each family writes them, read whole and letter by letter, and how they come into a prompt."""

from __future__ import annotations

import json

import pytest

from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.tools.calls import Tool, ToolCall
from core.chat.tools.formats import BY_NAME, FORMATS, find_tool_format, read_answer
from core.chat.tools.prompt import forced_grammar, takes_tools, with_tools_told

WEATHER = Tool("get_weather", "The weather.", {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
})  # fmt: skip
TIME = Tool("get_time", "", {"type": "object", "properties": {}})
TOOLS = {tool.name: tool for tool in (WEATHER, TIME)}
ARGUMENTS = '{"city": "Zürich", "days": 2}'
CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
PARAMETERS = f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}'

# By family: an answer with two calls, as its template writes them.
TWO = {
    "gpt-oss": "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    f"{ARGUMENTS}<|call|>"
    "<|start|>assistant<|channel|>commentary to=functions.get_time<|message|>{}<|call|>",
    "DeepSeek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    f"{ARGUMENTS}\n```"
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "Mistral": f'[TOOL_CALLS] [{CALL}, {{"name": "get_time", "arguments": {{}}}}]',
    "Command-R": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {ARGUMENTS}}},\n'
    '{"tool_call_id": "1", "tool_name": "get_time", "parameters": {}}]<|END_ACTION|>',
    "Command-R 2024": f'Action: ```json\n[{{"tool_name": "get_weather", "parameters": {ARGUMENTS}}},\n'
    '{"tool_name": "get_time", "parameters": {}}]```',
    "Qwen3-Coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
    "Seed-OSS": "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Zürich</parameter>\n<parameter=days>2"
    "</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=get_time>\n</function>\n</seed:tool_call>",
    "MiniMax": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="get_time">\n</invoke>\n</minimax:tool_call>',
    "Gemma 4": '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>,days:2}<tool_call|>'
    "<|tool_call>call:get_time{}<tool_call|>",
    "LFM2": "<|tool_call_start|>[get_weather(city='Zürich', days=2), get_time()]<|tool_call_end|>",
    "Olmo 3": '<function_calls>\nget_weather(city="Zürich", days=2)\nget_time()\n</function_calls>',
    "GLM": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>",
    "Phi-4": f'<|tool_call|>[{CALL}, {{"name": "get_time", "arguments": {{}}}}]<|/tool_call|>',
    "Granite": f'<|tool_call|>[{CALL}, {{"name": "get_time", "arguments": {{}}}}]',
    "Hermes": f"<tool_call>\n{CALL}\n</tool_call>\n"
    f'<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>',
    "Llama": f'<|python_tag|>{PARAMETERS}; {{"name": "get_time", "parameters": {{}}}}',
}


def test_every_family_of_the_table_is_tried() -> None:
    assert set(TWO) == {one.name for one in FORMATS}


@pytest.mark.parametrize("before", ["", "Let me see.\n\n"])
@pytest.mark.parametrize("family", TWO)
def test_calls_are_read_whole_and_only_grow_while_they_come(family: str, before: str) -> None:
    text, format = before + TWO[family], BY_NAME[family]
    words, calls = read_answer(format, text, TOOLS, is_done=True)
    assert words == before.strip()
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    assert [json.loads(call.arguments) for call in calls] == [json.loads(ARGUMENTS), {}]
    shown, seen = "", list[ToolCall]()
    for end in range(len(text) + 1):
        now, found = read_answer(format, text[:end], TOOLS, is_done=False)
        assert now.startswith(shown) and words.startswith(now)
        for old, new in zip(seen, found, strict=False):
            assert old.name == new.name and new.arguments.startswith(old.arguments)
        assert len(found) >= len(seen)
        shown, seen = now, list(found)
    for one, whole in zip(seen, calls, strict=True):
        assert one.name == whole.name and whole.arguments.startswith(one.arguments)


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "text", ["Plain words.\n", "a < b and {c: [1]}", '{"city": "Bern"}', "<tool", "[1, 2] is a list", ""]
)
def test_words_stay_words(format, text: str) -> None:
    assert read_answer(format, text, TOOLS, is_done=True) == (text, ())
    for end in range(len(text)):
        words, calls = read_answer(format, text[:end], TOOLS, is_done=False)
        assert text.startswith(words) and not calls


def test_an_object_of_json_is_a_call_only_where_it_names_a_tool() -> None:
    llama = BY_NAME["Llama"]
    assert read_answer(llama, PARAMETERS, TOOLS, True) == ("", (ToolCall("get_weather", ARGUMENTS),))
    other = '{"name": "Ada", "parameters": {}}'
    assert read_answer(llama, other, TOOLS, True) == (other, ())
    assert read_answer(llama, other[:20], TOOLS, False) == (other[:20], ())


def test_odd_calls_are_read_as_far_as_they_make_sense() -> None:
    hermes = BY_NAME["Hermes"]
    twice = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
    assert read_answer(hermes, f"<tool_call>{twice}</tool_call>", TOOLS, True)[1] == (
        ToolCall("get_weather", ARGUMENTS),
    )
    wrapped = f'<tool_call>{{"type": "function", "function": {CALL}}}</tool_call>'
    assert read_answer(hermes, wrapped, TOOLS, True)[1] == (ToolCall("get_weather", ARGUMENTS),)
    late = f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "get_weather"}}'
    assert read_answer(hermes, late, TOOLS, False)[1] == (ToolCall("get_weather", ARGUMENTS),)
    nothing = '<tool_call>{"name": "get_time"}</tool_call>'
    assert read_answer(hermes, nothing, TOOLS, True)[1] == (ToolCall("get_time", "{}"),)
    broken = "<tool_call>no JSON</tool_call>"
    assert read_answer(hermes, broken, TOOLS, True) == (broken, ())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'it\\'s'", "it's"),
        ("'it's, maybe'", "it's, maybe"),
        ('"a\\n\\u00e9 \\"b\\" \\\\"', 'a\né "b" \\'),
        ("''", ""),
        ("-1.5e3", -1500.0),
        ("True", True),
        ("null", None),
        ("['a', {'b': [1, None]}, []]", ["a", {"b": [1, None]}, []]),
        ('{"a": false, "b": "c)"}', {"a": False, "b": "c)"}),
    ],
)
def test_arguments_are_read_as_python_and_as_json_writes_them(written: str, value: object) -> None:
    """LFM2.5 writes objects as JSON and texts in single quotes, with nothing escaped."""
    call = f"<|tool_call_start|>[f(a={written}, b=1)]<|tool_call_end|>"
    _, calls = read_answer(BY_NAME["LFM2"], call, TOOLS, is_done=True)
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("f", {"a": value, "b": 1})]


@pytest.mark.parametrize("family", ["LFM2", "Qwen3-Coder"])
def test_half_a_character_in_an_argument_can_be_sent(family: str) -> None:
    half, whole = "\\ud83d", "\\ud83d\\ude00"
    tool = Tool("f", "", {"properties": {"a": {"type": "array"}, "b": {"type": "array"}}})
    text = {
        "LFM2": f"<|tool_call_start|>[f(a=['{half}'], b=['{whole}'])]<|tool_call_end|>",
        "Qwen3-Coder": f'<function=f><parameter=a>["{half}"]</parameter><parameter=b>["{whole}"]</parameter>'
        "</function>",
    }[family]
    _, (call,) = read_answer(BY_NAME[family], text, {"f": tool}, is_done=True)
    assert call.arguments.encode() and json.loads(call.arguments) == {"a": ["?"], "b": ["\U0001f600"]}


def test_gemmas_texts_may_hold_anything_but_their_end() -> None:
    call = '<|tool_call>call:f{a:<|"|>{"x": \'}\', \\n}<|"|>,b:[<|"|>c<|"|>,{d:true,<|"|>e f<|"|>:null}]}<tool_call|>'
    _, calls = read_answer(BY_NAME["Gemma 4"], call, TOOLS, is_done=True)
    assert [json.loads(one.arguments) for one in calls] == [
        {"a": "{\"x\": '}', \\n}", "b": ["c", {"d": True, "e f": None}]}
    ]


def test_a_template_tells_its_family() -> None:
    assert find_tool_format("{{ tools }}<tool_call>").name == "Hermes"
    assert find_tool_format("<tool_call><function=").name == "Qwen3-Coder"
    assert find_tool_format("<tool_call><arg_key>").name == "GLM"
    assert find_tool_format("<|tool_call|><|/tool_call|>").name == "Phi-4"
    assert find_tool_format("<seed:tool_call>\\n<function=").name == "Seed-OSS"
    assert find_tool_format("<|tool_list_start|>").name == "LFM2"
    assert find_tool_format("{% set begin = '<minimax:tool_call>' %}").name == "MiniMax"
    assert find_tool_format("<|tool_call>call:<tool_call|>").name == "Gemma 4"
    assert find_tool_format("nothing").name == "Hermes"
    assert takes_tools("{% if tools %}x{% endif %}") and takes_tools("{%- for t in tools %}{% endfor %}")
    assert not takes_tools("{{ messages }} tools {{ 1 }}")


def test_code_that_a_template_never_ends_is_looked_through_once() -> None:
    """A stranger's template once held up every page: each of its beginnings was looked through to the end."""
    assert not takes_tools("{%" * 2**18) and takes_tools("{%" * 2**18 + " if tools %}")
    assert not takes_tools("{% if x %} tools {{ y }} tools") and takes_tools("{{- x(tools)")


@pytest.mark.parametrize(
    ("family", "begin", "repeated"),
    [
        ("GLM", "<tool_call>f\n", "<arg_key>"),
        ("gpt-oss", "<|channel|>commentary", "<|channel|>commentary to=functions.f"),
        ("Qwen3-Coder", "<function=f>", "<parameter="),
        ("MiniMax", '<minimax:tool_call><invoke name="f">', '<parameter name="'),
        ("Gemma 4", "<|tool_call>call:f{a:", "["),
        ("LFM2", "<|tool_call_start|>[f(a=", "{'b':"),
        ("LFM2", "<|tool_call_start|>[", "f("),
        ("LFM2", "<|tool_call_start|>[f(a='", "' "),
        ("Olmo 3", "<function_calls>f(a='", "\\"),
    ],
)
def test_marks_that_are_never_closed_are_looked_for_once(family: str, begin: str, repeated: str) -> None:
    """An answer is read on the event loop: a model that was told to say one mark over and over once stopped it."""
    _, calls = read_answer(BY_NAME[family], begin + repeated * 2**17, TOOLS, is_done=False)
    assert all(not call.arguments for call in calls)


def test_a_call_like_the_one_before_it_is_whole_only_once_it_is_closed() -> None:
    call = "<tool_call>get_time\n<arg_key>city</arg_key><arg_value>Bern</arg_value>"
    _, calls = read_answer(BY_NAME["GLM"], f"{call}</tool_call>{call}", TOOLS, is_done=False)
    assert [one.arguments for one in calls] == ['{"city": "Bern"}', '{"city": "Bern"']


def test_a_template_is_given_tools_calls_and_results() -> None:
    source = (
        "{{ tools | length }}{% for m in messages %}|{{ m.role }}:{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function.arguments.city }}{% endif %}{% if m.tool_call_id %}{{ m.tool_call_id }}{% endif %}"
        "{% endfor %}"
    )
    template = ChatTemplate(source, "", "", tools=(WEATHER.definition,))
    assert template.render(CONVERSATION) == "1|user:Rain?|assistant:Zürich|tool:drycall7"


CONVERSATION: list[Turn] = [
    Turn(role="user", content="Rain?"),
    Turn(role="assistant", content="", tool_calls=[
        {"id": "call7", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}]),
    Turn(role="tool", content="dry", tool_call_id="call7"),
]  # fmt: skip


def test_a_template_that_joins_arguments_to_a_text_gets_one() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ 'args ' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(source, "", "").render(CONVERSATION).startswith('Rain?args {"city"')


def test_arguments_that_a_model_broke_off_do_not_end_the_chat() -> None:
    """They come back with each further request, and a template that goes through them once refused all of these."""
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for name, value in c.function.arguments | items %}[{{ name }}={{ value }}]{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(source, "", "").render(CONVERSATION) == "Rain?[city=Zürich]dry"
    user, called, result = CONVERSATION
    broken = called["tool_calls"][0] | {"function": {"name": "get_weather", "arguments": '{"city": "Zü'}}
    turns = [user, Turn(role="assistant", content="", tool_calls=[broken]), result]
    assert ChatTemplate(source, "", "").render(turns) == 'Rain?[arguments={"city": "Zü]dry'


def test_mistrals_templates_get_numbers_of_nine_letters() -> None:
    source = (
        "[TOOL_CALLS]{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.id }} {% endfor %}"
        "{{ m.tool_call_id }}{% endfor %}"
    )
    called, answered = ChatTemplate(source, "", "").render(CONVERSATION).removeprefix("[TOOL_CALLS]Rain?").split(" ")
    assert len(called) == 9 and called.isalnum() and answered == f"dry{called}"


def test_a_model_whose_template_knows_no_tools_is_told_of_them_in_words() -> None:
    system, user, called, result = with_tools_told(CONVERSATION, TOOLS)
    assert "get_weather" in system["content"] and "<tool_call>" in system["content"] and user == CONVERSATION[0]
    assert '"name": "get_weather"' in called["content"] and called["role"] == "assistant"
    assert result["role"] == "user" and "dry" in result["content"]
    own, *_ = with_tools_told([Turn(role="system", content="Be brief."), *CONVERSATION], TOOLS)
    assert own["content"].startswith("Be brief.") and "get_time" in own["content"]


def test_a_forced_call_follows_the_tools_schema_and_its_references() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "$defs": {"node": {"type": "object"}}}
    schema = json.loads(forced_grammar([TIME, Tool("plant", "", tree)]).text)
    second = schema["anyOf"][1]["properties"]
    assert second["name"] == {"const": "plant"}
    assert second["arguments"]["properties"]["next"]["$ref"] == "#/anyOf/1/properties/arguments/$defs/node"
