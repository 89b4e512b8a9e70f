"""Schemas that programs really send: what they say beside the form must not cost them the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.chat.tools.calls import Tool
from core.chat.tools.prompt import forced_grammar, free_grammar
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import EngineError
from core.engine.request_options import Grammar
from core.tokenizer.read import read_tokenizer
from core.worker.constraints import Constraints
from core.worker.end_tokens import find_end_tokens
from core.worker.json_schemas import FORMATS, ready_schema
from tests.support.checkpoints import Recipe, make_checkpoint


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Constraints:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(folder, Recipe(num_layers=1))
    tokenizer = read_tokenizer(folder)
    return Constraints(tokenizer, 384, find_end_tokens(read_checkpoint(folder), tokenizer))


def takes(constraints: Constraints, grammar: Grammar, text: str) -> bool:
    """Whether an answer may be `text`, and end there."""
    constraint = constraints.make(grammar)
    matcher = constraint._matcher
    tokens = constraints._tokenizer.encode(text, add_special_tokens=False).ids
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def one(**about: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": about}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        # OpenAPI's formats are remarks; that of a date is none.
        (one(type="string", format="binary"), '{"a": "x"}', '{"a": 1}'),
        (one(type="string", format="uri-reference"), '{"a": "x"}', '{"a": 1}'),
        (one(type="string", format="date"), '{"a": "2026-11-30"}', '{"a": "x"}'),
        # Go and Java write down the fields that they do not use.
        (one(type="integer", minimum=None, enum=None, description=None), '{"a": 1}', '{"a": "x"}'),
        (one(type="object", properties=None, required=None), '{"a": {}}', '{"a": 1}'),
        # Zod's records.
        (one(type="object", propertyNames={"type": "string"}, additionalProperties={"const": 1}),
         '{"a": {"b": 1}}', '{"a": {"b": 2}}'),
        # OpenAPI 3.0.
        (one(type="integer", minimum=5, exclusiveMinimum=True, maximum=7, exclusiveMaximum=False),
         '{"a": 7}', '{"a": 5}'),
        # A property may have the name of a keyword, and a value may look like a schema.
        ({"type": "object", "properties": {"format": {"const": "x"}, "pattern": {"type": "null"}},
          "required": ["format", "pattern"], "additionalProperties": False},
         '{"format": "x", "pattern": null}', '{"format": "y", "pattern": null}'),
        (one(const={"format": "odd", "x": None}), '{"a": {"format": "odd", "x": null}}', '{"a": {"x": null}}'),
        (one(const=None), '{"a": null}', '{"a": 1}'),
        ({}, '["anything"]', "no JSON"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_left_out_and_the_form_counts(
    constraints: Constraints, schema: Any, right: str, wrong: str
) -> None:
    grammar = Grammar("json", json.dumps(schema))
    assert takes(constraints, grammar, right) and not takes(constraints, grammar, wrong)


def test_the_formats_that_count_are_those_that_the_compiler_knows(constraints: Constraints) -> None:
    for name in FORMATS:
        constraints.make(Grammar("json", json.dumps({"type": "string", "format": name})))


@pytest.mark.parametrize(
    "about",
    [
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "integer", "not": {"const": 3}},
        {"type": "integer", "if": {"const": 1}, "then": {"maximum": 1}},
        {"type": "string", "pattern": "^(?!x)[a-z]+$"},
        {"type": "string", "pattern": r"^(a|b)\1$"},
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}},
    ],
)
@pytest.mark.parametrize("make", [forced_grammar, free_grammar])
def test_a_tool_is_held_to_its_schema_as_far_as_can_be(constraints: Constraints, make: Any, about: Any) -> None:
    """One keyword that no automaton can hold, in one of an agent's many tools, had every request of it refused."""
    tools = [Tool("plain", "", one(type="boolean")), Tool("odd", "", one(**about))]
    constraints.make(make(tools))
    plain = '{"name": "plain", "arguments": {"a": true}}'
    assert takes(constraints, forced_grammar(tools), plain)
    assert not takes(constraints, forced_grammar(tools), '{"name": "odd", "arguments": {"a": {}}}')
    # An answer that was promised a form has all of it, or is refused.
    with pytest.raises(EngineError) as caught:
        constraints.make(Grammar("json", json.dumps(one(**about))))
    assert caught.value.key == "grammar" and "coerce" not in str(caught.value.params["why"])


def test_a_tools_references_lead_into_its_own_schema_whatever_it_is_called(constraints: Constraints) -> None:
    """With `$id`, as TypeBox writes it, a reference was looked for below that name, and the request was refused."""
    named = {"$id": "https://example.org/tool", **one(**{"$ref": "#/$defs/A"}), "$defs": {"A": {"const": 3}}}
    marked = {**one(**{"$ref": "#three"}), "$defs": {"A": {"$anchor": "three", "const": 3}}}
    nested = one(anyOf=[{"$ref": "#"}, {"type": "null"}])
    for schema, arguments in ((named, '{"a": 3}'), (marked, '{"a": 3}'), (nested, '{"a": {"a": null}}')):
        grammar = forced_grammar([Tool("f", "", schema)])
        assert takes(constraints, grammar, f'{{"name": "f", "arguments": {arguments}}}')
        assert not takes(constraints, grammar, '{"name": "f", "arguments": {"a": 4}}')


@pytest.mark.parametrize("make", [forced_grammar, free_grammar])
def test_a_tool_that_cannot_be_is_told_as_a_tools_fault(constraints: Constraints, make: Any) -> None:
    """The error spoke of response_format, which nobody had sent, and showed lines of a grammar of ours."""
    with pytest.raises(EngineError) as caught:
        constraints.make(make([Tool("f", "", one(type="any"))]))
    assert caught.value.key == "grammar_tools" and caught.value.params["why"] == "Invalid type: any"


def test_a_schema_that_leads_only_to_itself_is_refused_in_words(constraints: Constraints) -> None:
    loop = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    with pytest.raises(EngineError) as caught:
        constraints.make(Grammar("json", json.dumps(loop)))
    assert caught.value.params["why"] == "no text satisfies it"


def test_a_schema_deeper_than_any_form_is_refused_in_words(constraints: Constraints) -> None:
    deep = '{"items":' * 30_000 + "{}" + "}" * 30_000
    with pytest.raises(EngineError) as caught:
        constraints.make(Grammar("json", deep))
    assert caught.value.key == "grammar"


def test_what_a_schema_says_otherwise_stays() -> None:
    schema = {"type": "object", "title": "T", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": True}}
    assert ready_schema(schema) == schema
    assert ready_schema({"pattern": "(?=a)"}) == {"pattern": "(?=a)"} and ready_schema({"pattern": "(?=a)"}, True) == {}
