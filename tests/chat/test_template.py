"""Chat templates: every construct of the wild renders as in transformers, and Llama-2's own format is Meta's."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from core.chat.template import ChatTemplate, TemplateError, read_template
from core.chat.template_messages import Turn
from core.common.errors import CheckpointError
from tests.support.chat_templates import CHATML, DEFAULT_SYSTEM, GEMMA, LLAMA3, MISTRAL, OWN_LLAMA2, PHI, QWEN3

CONSTRUCTS = """
{%- macro line(role, text='-') %}{{ role | upper }}: {{ text | replace('\\n', ' ') }}{% endmacro %}
{%- for message in messages %}
{%- if loop.index0 > 3 %}{% break %}{% endif %}
{%- if message.role == 'system' %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ line(message.role, message.content) }}
{%- if not loop.first and loop.previtem.role != message.role %} changed{% endif %}
{%- endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | tojson }}
{{ {'b': '<&>é"', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}
{{ {'b': 'é'} | tojson(ensure_ascii=true, indent=2) }}
{{ dict(a=1).get('a') }} {{ 'a' ~ 1 }} {{ (messages | last).content[:5] }} {{ undefined_name }}{{ none }}
{%- set counts = namespace(n=0) %}{% for message in messages if message.role == 'user' %}
{%- set counts.n = counts.n + 1 %}{% endfor %} {{ counts.n }} {{ tools is none }} {{ documents is none }}
{{- documents is defined }} {# a comment #}
"""

TEMPLATES = {
    "ChatML": CHATML,
    "default system text": DEFAULT_SYSTEM,
    "Llama-3": LLAMA3,
    "Mistral": MISTRAL,
    "Gemma": GEMMA,
    "Phi": PHI,
    "Qwen3": QWEN3,
    "every construct": CONSTRUCTS,
}
SYSTEM = Turn(role="system", content="You are brief. ")
ASK = Turn(role="user", content="  Hi <b> & 你好 😀\n{{ 7 * 7 }} ")
SAY = Turn(role="assistant", content=" <think>hm</think>\n\nHello! ")
ASK_MORE = Turn(role="user", content='And "you"?')
CHATS = {
    "one question": [ASK],
    "system text": [SYSTEM, ASK],
    "three turns": [ASK, SAY, ASK_MORE],
    "system text and three turns": [SYSTEM, ASK, SAY, ASK_MORE],
}


def rendered_by_transformers(source: str, turns: list[Turn]) -> str:
    (text,), _ = render_jinja_template(
        [turns], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return text


@pytest.mark.parametrize("turns", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_renders_as_in_transformers(source: str, turns: list[Turn]) -> None:
    if source == GEMMA and turns[0]["role"] == "system":
        with pytest.raises(TemplateError, match="System role not supported"):
            ChatTemplate(source, "<s>", "</s>").render(turns)
        return
    text = ChatTemplate(source, "<s>", "</s>").render(turns)
    assert text == rendered_by_transformers(source, turns)
    assert "你好" in text and "<b> & " in text


def test_what_a_person_types_is_no_template() -> None:
    assert "{{ 7 * 7 }}" in ChatTemplate(CHATML, "", "").render([ASK])


def test_a_template_without_tools_is_told_that_there_are_none() -> None:
    """Left undefined, `tools is not none` was true, and Mistral's template announced tools that nobody gave."""
    assert "[AVAILABLE_TOOLS]" not in ChatTemplate(MISTRAL, "<s>", "</s>").render([ASK])


def test_a_template_may_ask_for_the_date() -> None:
    assert datetime.now().strftime("%Y") in ChatTemplate(LLAMA3, "<s>", "").render([ASK])


def test_a_templates_own_refusal_is_quoted() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(MISTRAL, "<s>", "</s>").render([ASK, ASK_MORE])
    assert caught.value.key == "chat_template"
    assert "roles must alternate" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% nonsense %}",
        "{{ 'open",
        "{% generation %}",
        "{{ missing.attribute.of.it }}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ 'x' | nofilter }}",
        "{{ range(10 ** 9) | list }}",
        "{{ (2.0 ** 9999) }}",
        "{{ '%d' % 'x' }}",
        "{{ strftime_now(5) }}",
        "{{ missing | tojson }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update(role='x') }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('') }}",
        "{{ raise_exception() }}",
        "{% if 1 %}" * 120 + "{% endif %}" * 120,
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "(" * 5 + "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
    ],
    ids=lambda source: source[:40],
)
def test_a_template_that_fails_says_so_and_nothing_worse(source: str) -> None:
    """A division by zero, endless recursion and too deep nesting once came through as tracebacks."""
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, "", "").render([ASK])
    assert 0 < len(str(caught.value.params["why"])) <= 200


def test_an_error_of_a_megabyte_is_cut() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('x' * 1000000) }}", "", "").render([ASK])
    assert len(str(caught.value)) < 400


def test_a_template_cannot_change_the_chat() -> None:
    turns = [Turn(role="user", content="Hi")]
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages.clear() }}", "", "").render(turns)
    assert turns == [{"role": "user", "content": "Hi"}]


# Where a template is found ------------------------------------------------------------------------------------------


def write_settings(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_folder_without_any_template_says_that_its_format_is_unknown(tmp_path: Path) -> None:
    """It was spoken to in Llama-2's format, whatever it was."""
    assert read_template(tmp_path) == ChatTemplate(None, "", "")
    with pytest.raises(TemplateError) as caught:
        read_template(tmp_path).render([Turn(role="user", content="Hi")])
    assert caught.value.key == "chat_format_unknown" and tmp_path.name in caught.value.sentence("zh")


def test_the_tokenizers_settings_hold_the_template(tmp_path: Path) -> None:
    write_settings(tmp_path, chat_template=CHATML, bos_token="<s>", eos_token="<|im_end|>")
    assert read_template(tmp_path) == ChatTemplate(CHATML, "<s>", "<|im_end|>")


def test_special_tokens_may_be_objects_or_lie_in_their_own_file(tmp_path: Path) -> None:
    write_settings(tmp_path, bos_token={"__type": "AddedToken", "content": "<s>", "lstrip": False}, eos_token=None)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "other", "eos_token": {"content": "</s>"}}')
    template = read_template(tmp_path)
    assert (template.bos_token, template.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize("token", [None, 5, [], {}, {"content": None}, True])
def test_a_special_token_that_is_no_text_is_none(tmp_path: Path, token: Any) -> None:
    write_settings(tmp_path, bos_token=token, chat_template=MISTRAL)
    assert read_template(tmp_path).bos_token == ""


def test_a_template_file_of_its_own_goes_first(tmp_path: Path) -> None:
    write_settings(tmp_path, chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("{{ '新' }}{{ messages[0].content }}", "utf-8")
    assert read_template(tmp_path).render([ASK_MORE]) == '新And "you"?'


def test_a_json_file_of_its_own_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert read_template(tmp_path).source == CHATML


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "chat", "template": "C"}], "C"),
        ([{"name": ["x"], "template": "L"}, "text", None], "L"),
        ([], None),
        ([{"name": "default"}], None),
        ([{"name": "default", "template": 5}], None),
        ({"default": "D"}, None),
        ("", None),
        (" \n", None),
        (5, None),
    ],
)
def test_of_several_named_templates_the_default_is_taken(tmp_path: Path, found: Any, wanted: str | None) -> None:
    """With no default among them the model was spoken to in Llama-2's format; a name that was a list raised."""
    write_settings(tmp_path, chat_template=found)
    assert read_template(tmp_path).source == wanted


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]", b"null"])
def test_settings_that_cannot_be_read_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_template(tmp_path)
    assert caught.value.key == "bad_json"


def test_a_template_file_that_cannot_be_read_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    """It was passed over in silence, and the model was spoken to in another format than its own."""
    write_settings(tmp_path, chat_template=CHATML)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError):
        read_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError):
        read_template(tmp_path)


def test_an_empty_template_file_gives_way_to_the_settings(tmp_path: Path) -> None:
    write_settings(tmp_path, chat_template=CHATML)
    (tmp_path / "chat_template.jinja").write_text("")
    assert read_template(tmp_path).source == CHATML


# Llama-2's own format -----------------------------------------------------------------------------------------------


def meta_format(turns: list[tuple[str, str]]) -> str:
    """What Meta's reference encodes, written out: questions and answers in turn, a system text at most in front."""
    if turns[0][0] == "system":
        head = f"<<SYS>>\n{turns[0][1]}\n<</SYS>>\n\n" + turns[1][1]
        turns = [("user", head), *turns[2:]]
    contents = [content.strip() for _, content in turns]
    pairs = zip(contents[:-1:2], contents[1::2], strict=True)
    return "".join(f"<s>[INST] {ask} [/INST] {say} </s>" for ask, say in pairs) + f"<s>[INST] {contents[-1]} [/INST]"


def render_llama2(turns: list[Turn]) -> str:
    return ChatTemplate(OWN_LLAMA2, "", "").render(turns)


def test_llama_2s_strings_are_exact() -> None:
    system = Turn(role="system", content="Be kind.")
    ask, say, more = (
        Turn(role="user", content="Hi"),
        Turn(role="assistant", content="Hello."),
        Turn(role="user", content="Bye"),
    )
    assert render_llama2([ask]) == "<s>[INST] Hi [/INST]"
    assert render_llama2([system, ask]) == "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]"
    assert render_llama2([system, ask, say, more]) == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"
    )


@pytest.mark.parametrize("turns", CHATS.values(), ids=CHATS.keys())
def test_llama_2s_format_is_metas_also_in_its_white_space(turns: list[Turn]) -> None:
    """Meta strips system text and question together: what stands before a first question's words stays there."""
    assert render_llama2(turns) == meta_format([(turn["role"], turn["content"]) for turn in turns])


def test_a_system_text_comes_into_the_first_question_alone() -> None:
    text = render_llama2([SYSTEM, ASK, SAY, ASK_MORE])
    assert text.count("<<SYS>>") == 1
    assert text.index("<<SYS>>") < text.index("Hi")


def test_an_empty_system_text_leaves_no_trace() -> None:
    assert render_llama2([Turn(role="system", content=""), ASK_MORE]) == '<s>[INST] And "you"? [/INST]'


def test_a_chat_that_begins_with_a_greeting_still_begins_like_one() -> None:
    """The greeting stood before the first <s>, and the system text came after it."""
    greeting = Turn(role="assistant", content="I am Ada.")
    assert render_llama2([Turn(role="system", content="You are Ada."), greeting, ASK_MORE]) == (
        '<s>[INST] <<SYS>>\nYou are Ada.\n<</SYS>> [/INST] I am Ada. </s><s>[INST] And "you"? [/INST]'
    )


def test_nothing_said_is_nothing_rendered() -> None:
    assert render_llama2([]) == ""
    assert render_llama2([SYSTEM]) == ""


# Templates that take a text in another form -------------------------------------------------------------------------

PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("text", ["Hi", "a", "us", "你", "?", "assistant"])
def test_a_template_that_takes_parts_only_gets_parts(text: str) -> None:
    """The prompt had no word of the chat, and nobody looked."""
    template = ChatTemplate(PARTS, "", "")
    assert template.render([Turn(role="user", content=text)]) == f"<user>{text}<assistant>"
    turns = [Turn(role="user", content=text), Turn(role="assistant", content="Well")]
    assert template.render_open(turns)[0] == f"<user>{text}<assistant>Well"


def test_a_template_that_concatenates_parts_gets_parts() -> None:
    source = "{{ messages[0]['content'][0]['text'] + '!' }}"
    assert ChatTemplate(source, "", "").render([ASK_MORE]) == 'And "you"?!'


def test_a_template_that_leaves_the_question_out_is_refused() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ messages | length }}<assistant>", "", "", "Odd-7B").render([ASK])
    assert caught.value.key == "chat_template_question" and "Odd-7B" in caught.value.sentence("zh")


@pytest.mark.parametrize("change", ["upper", "tojson", "trim", "tojson(ensure_ascii=true)", "replace(' ', '_')"])
def test_a_question_that_a_template_writes_in_its_own_way_is_there(change: str) -> None:
    source = f"{{% for m in messages %}}{{{{ m.content | {change} }}}}{{% endfor %}}"
    for content in ("Grüße an 你好", " What?\n", "é"):
        assert ChatTemplate(source, "", "").render([Turn(role="user", content=content)])


# Special tokens -----------------------------------------------------------------------------------------------------

TOKENS = "{{ messages[0].content }} {{ bos_token }} {{ eos_token }} {{ unk_token }} {{ pad_token }} {{ image_token }}"


def tokens_of(folder: Path) -> list[str]:
    return read_template(folder).render([Turn(role="user", content="x")]).split(" ")[1:]


def test_a_template_gets_every_special_token(tmp_path: Path) -> None:
    write_settings(tmp_path, chat_template=TOKENS, bos_token="<b>", eos_token={"content": "</b>"}, unk_token="<?>",
                   pad_token=None, extra_special_tokens={"image_token": "<img>"}, add_bos_token=True)  # fmt: skip
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<p>"}, "unk_token": "no"}')
    assert tokens_of(tmp_path) == ["<b>", "</b>", "<?>", "<p>", "<img>"]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("LlamaTokenizer", "<s> </s> <unk>"), ("LlamaTokenizerFast", "<s> </s> <unk>"), ("GemmaTokenizer", "<bos> <eos>"),
     ("Qwen2Tokenizer", " <|endoftext|> <|endoftext|> <|endoftext|>"), ("PreTrainedTokenizerFast", "  "), (5, "  ")],
)  # fmt: skip
def test_a_tokenizers_class_says_what_its_files_do_not(tmp_path: Path, kind: Any, wanted: str) -> None:
    write_settings(tmp_path, chat_template=TOKENS, tokenizer_class=kind)
    assert " ".join(tokens_of(tmp_path)).startswith(wanted)


def test_a_class_does_not_say_again_what_is_taken_away(tmp_path: Path) -> None:
    write_settings(tmp_path, chat_template=TOKENS, tokenizer_class="LlamaTokenizer", bos_token=None)
    assert tokens_of(tmp_path)[:2] == ["", "</s>"]
