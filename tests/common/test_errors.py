"""Errors that people read: every one has its sentence in both languages, and crosses a process as it is."""

from __future__ import annotations

import ast
import copy
import json
import multiprocessing
import pickle
import string

import pytest

from core.chat.template import TemplateError
from core.common.errors import CheckpointError, DeckError, EngineError, InputError, StarterError
from core.common.i18n import LANGUAGES, catalogue
from core.common.paths import ROOT

KINDS = [DeckError, CheckpointError, EngineError, StarterError, InputError, TemplateError]
KIND_NAMES = {kind.__name__ for kind in KINDS}
PREFIX = "error."


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def sentences(language: str) -> dict[str, str]:
    texts = catalogue(language)
    return {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}


def keys_of(argument: ast.expr) -> list[str]:
    """The keys that an error's first argument can be: a text, or one of two."""
    if isinstance(argument, ast.IfExp):
        return [*keys_of(argument.body), *keys_of(argument.orelse)]
    return [argument.value] if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else []


def raised_errors() -> list[tuple[str, str, set[str]]]:
    """(place, key, names of the values) of every error that the program makes with its key written there."""
    found = []
    for path in sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("cli/**/*.py"), *ROOT.glob("ui/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KIND_NAMES:
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                found += [(place, key, names) for key in keys_of(node.args[0])]
    return found


RAISED = raised_errors()


def test_the_errors_of_the_program_are_found() -> None:
    assert len(RAISED) > 40


@pytest.mark.parametrize(("place", "key", "names"), RAISED, ids=[key for _, key, _ in RAISED])
def test_every_error_has_a_sentence_in_both_languages_with_its_own_values(
    place: str, key: str, names: set[str]
) -> None:
    for language in LANGUAGES:
        assert key in sentences(language), f"{place}: {language} has no sentence for {key}"
        assert placeholders(sentences(language)[key]) <= names


def test_both_languages_quote_the_same_values() -> None:
    english, chinese = sentences("en"), sentences("zh")
    assert set(english) == set(chinese)
    differing = {key for key in english if placeholders(english[key]) != placeholders(chinese[key])}
    assert differing == set()


@pytest.mark.parametrize("key", sorted(sentences("en")))
def test_a_sentence_is_whole(key: str) -> None:
    for language, ends in (("en", "."), ("zh", "。")):
        sentence = sentences(language)[key]
        assert sentence == sentence.strip()
        assert sentence.endswith((ends, f"{ends})", f"{ends}）"))


def test_an_error_reads_as_its_sentence() -> None:
    error = CheckpointError("bits", folder="Llama", bits="5")
    assert "Llama" in str(error) and "5" in str(error)
    assert error.sentence("en") == str(error)
    assert "Llama" in error.sentence("zh")
    assert error.sentence("zh") != str(error)


@pytest.mark.parametrize("value", ["{x}", "{", "}", "{0}", "{folder.__class__}", "%s", "模型", "a\nb"])
def test_a_value_is_quoted_letter_by_letter(value: str) -> None:
    error = CheckpointError("no_config", folder=value)
    for language in LANGUAGES:
        assert value in error.sentence(language)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_pickled_and_copied_whole(kind: type[DeckError]) -> None:
    error = kind("truncated", folder="模型", file="model.safetensors", actual=10, expected=2**40)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert (other.key, other.params) == (error.key, error.params)
        assert str(other) == str(error)


def fail(pipe) -> None:
    """Runs in another process."""
    try:
        raise CheckpointError("no_config", folder="模型") from OSError("what lies behind it")
    except DeckError as error:
        pipe.send(error)


def test_an_error_crosses_a_process_and_is_read_in_the_readers_language() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=fail, args=(there,))
    process.start()
    there.close()
    error = here.recv()
    process.join()
    assert isinstance(error, CheckpointError)
    assert error.sentence("zh") == CheckpointError("no_config", folder="模型").sentence("zh")


def test_errors_of_one_kind_are_caught_as_any() -> None:
    for kind in KINDS:
        with pytest.raises(DeckError):
            raise kind("nothing_loaded")


def test_an_unknown_key_is_shown_rather_than_raised() -> None:
    assert str(DeckError("no_such_key", value=1)) == "error.no_such_key"


def test_no_two_texts_of_a_locale_file_have_one_key() -> None:
    """JSON takes the last of two equal keys in silence, so that a corrected sentence may never be seen."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in items]
        assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
        return dict(items)

    for language in LANGUAGES:
        json.loads((ROOT / "locales" / f"{language}.json").read_text("utf-8"), object_pairs_hook=pairs)
