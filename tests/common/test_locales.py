"""Both languages say the same things, and every text that the code asks for is there."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from core.common.i18n import LANGUAGES, catalogue
from core.common.paths import ROOT
from core.memory.kernels.registry import KERNELS

DASHBOARD = [ROOT / "Home.py", *sorted((ROOT / "pages").glob("*.py")), *sorted((ROOT / "ui").rglob("*.py"))]
CORE = sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
# Arguments of Streamlit's functions that are no text for people.
NO_TEXT = {"key", "icon", "type", "width", "height", "color", "gap", "avatar", "language", "label_visibility",
           "default", "persist_state", "layout", "size", "page_icon", "icon_image", "url_path", "page",
           "vertical_alignment", "horizontal_alignment", "on_click", "on_change", "on_submit", "on_select", "args",
           "selection_mode", "shortcut", "mime", "accept_file"}  # fmt: skip
# Functions whose plain arguments are no text for people either.
NO_TEXT_FUNCTIONS = {"chat_message", "grid", "space", "switch_page"}
# A name that is the same in every language.
NAMES = {"LlamaDeck"}
# What a text may hold beside words: icons, colours, punctuation.
MARKUP = re.compile(r":material/\w+:|:[a-z-]+(?=\[)|[^\w]|_")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def calls(paths: list[Path]) -> Iterator[tuple[str, ast.Call]]:
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def called(call: ast.Call) -> str:
    """The bare name of what is called: tr, markdown, DeckError."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def patterns(node: ast.expr) -> list[str]:
    """Every key that an expression may come to, as a regular expression: `tr(f"load.fact_{name}")` is one too."""
    match node:
        case ast.Constant(value=str(text)):
            return [re.escape(text)]
        case ast.IfExp():
            return patterns(node.body) + patterns(node.orelse)
        case ast.JoinedStr():
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            return ["".join(".+" if part is None else re.escape(part) for part in parts)]
    return []


def error_classes() -> set[str]:
    """Every class of core/ that comes from DeckError."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in CORE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }
    found = {"DeckError"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found


def raised_errors() -> list[tuple[str, str, set[str]]]:
    """Where in core/ an error is made, its key, and the names of its values."""
    classes = error_classes()
    found = []
    for place, call in calls(CORE):
        if called(call) in classes and call.args and None not in [keyword.arg for keyword in call.keywords]:
            names = {str(keyword.arg) for keyword in call.keywords}
            found += [(place, key.replace("\\", ""), names) for key in patterns(call.args[0])]
    return found


def test_a_locale_file_is_sections_of_names_of_texts() -> None:
    for language in LANGUAGES:
        sections = json.loads((ROOT / "locales" / f"{language}.json").read_text("utf-8"))
        for section, texts in sections.items():
            assert all(isinstance(text, str) and text.strip() for text in texts.values()), section


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    english, chinese = catalogue("en"), catalogue("zh")
    assert set(english) == set(chinese)
    differing = [key for key in english if placeholders(english[key]) != placeholders(chinese[key])]
    assert differing == []


def test_no_text_has_a_value_in_code() -> None:
    """A page escapes values as Markdown, and code would show the escapes: "echo a\\_b"."""
    in_code = re.compile(r"`[^`]*\{[^`]*`")
    found = [
        (language, key) for language in LANGUAGES for key, text in catalogue(language).items() if in_code.search(text)
    ]
    assert found == []


def test_chinese_texts_are_chinese() -> None:
    """Texts that are the same in both languages are names and measures, not forgotten translations."""
    english, chinese = catalogue("en"), catalogue("zh")
    same = [
        key for key in english if english[key] == chinese[key] and len(re.sub(r"{\w+}", "", english[key]).split()) > 2
    ]
    assert same == []


def test_every_text_that_a_page_asks_for_is_there() -> None:
    asked = [(place, call) for place, call in calls(DASHBOARD) if called(call) == "tr"]
    wanted = [(place, key) for place, call in asked for key in patterns(call.args[0])]
    assert len(wanted) > 50
    missing = [f"{place} {key}" for place, key in wanted if not any(re.fullmatch(key, k) for k in catalogue("en"))]
    assert missing == []


def test_every_text_gets_exactly_the_values_that_it_quotes() -> None:
    wrong = []
    for place, call in calls(DASHBOARD):
        names = {keyword.arg for keyword in call.keywords}
        if called(call) == "tr" and isinstance(call.args[0], ast.Constant):
            if placeholders(catalogue("en")[str(call.args[0].value)]) != names:
                wrong.append(place)
    assert wrong == []


def test_no_value_of_a_text_is_escaped_twice() -> None:
    """tr() escapes its values: what was escaped before shows its backslashes."""
    for where, call in calls(DASHBOARD):
        if called(call) == "tr":
            inner = [node for value in call.keywords for node in ast.walk(value) if isinstance(node, ast.Call)]
            assert not [node for node in inner if called(node) == "escape"], where


def test_every_error_of_core_has_a_sentence_with_exactly_its_values() -> None:
    errors = raised_errors()
    assert len(errors) > 30
    english = catalogue("en")
    # A key that is put together stands for all that it can be.
    meant = [
        (place, key, names, [one for one in english if re.fullmatch(f"error.{key}", one)])
        for place, key, names in errors
    ]
    assert [f"{place} {key}" for place, key, _, found in meant if not found] == []
    wrong = [
        f"{place} {one}" for place, _, names, found in meant for one in found if placeholders(english[one]) != names
    ]
    assert wrong == []


def test_no_text_is_left_that_nothing_asks_for() -> None:
    """A text is asked for by its key, in some sections by its name alone, or by a key that words are put into."""
    files = [*DASHBOARD, *CORE, ROOT / "serve.py", *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    files += [ROOT / "tests" / "support" / name for name in ("peers.py", "api_clients.py")]
    tables = [*(ROOT / "core").rglob("*.csv"), *(ROOT / "core").rglob("*.yaml")]
    words = set(re.findall(r"[^\W_]+", "\n".join(path.read_text("utf-8") for path in [*files, *tables])))
    nodes = [node for path in files for node in ast.walk(tree(path))]
    asked = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    asked.update(*(re.findall(r"[\w-]+", path.read_text("utf-8")) for path in tables))
    put_together = {key for node in nodes if isinstance(node, ast.JoinedStr) for key in patterns(node)}
    # f"error.{name}" says nothing of the name, which stands elsewhere.
    whole = {key for key in put_together if key.endswith(r"\..+")}
    by_name = {"bench", "cli", "doctor", "starter", *(key.removesuffix(r"\..+") for key in whole)}
    made = [re.compile(re.sub(r"(\.\+)+", "(.+)", key)) for key in put_together - whole if re.search("[a-z]{3}", key)]

    def is_asked(key: str) -> bool:
        section, name = key.split(".", 1)
        names = [key, name] if section in by_name else [key]
        put_in = [" ".join(found.groups()) for one in made for name in names if (found := one.fullmatch(name))]
        return not asked.isdisjoint(names) or any(words.issuperset(re.findall(r"[^\W_]+", one)) for one in put_in)

    assert [key for key in catalogue("en") if not is_asked(key)] == []
    assert not any(map(is_asked, ("home.steps", "kernel.exllama_v2", "error.kernel_compile", "doctor.compiler_no_c")))


@pytest.mark.parametrize("reason", [*(kernel.name for kernel in KERNELS), "asked_for", "no_c_compiler"])
def test_every_reason_for_a_kernel_has_a_sentence(reason: str) -> None:
    assert f"kernel.{reason}" in catalogue("en")


def test_no_page_holds_a_text_of_its_own() -> None:
    """Whatever goes into one of Streamlit's functions as text went through tr()."""
    found = []
    for place, call in calls(DASHBOARD):
        function = call.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "st":
            given = [] if function.attr in NO_TEXT_FUNCTIONS else call.args
            given = given + [keyword.value for keyword in call.keywords if keyword.arg not in NO_TEXT]
            found += [f"{place} {text}" for argument in given for text in own_words(argument)]
    assert found == []


def own_words(argument: ast.expr) -> Iterator[str]:
    """The texts in an argument that hold letters, outside of what is called or looked up in it."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        if MARKUP.sub("", argument.value) and argument.value not in NAMES and not argument.value.endswith(".py"):
            yield argument.value
    elif isinstance(argument, (ast.JoinedStr, ast.BinOp, ast.IfExp, ast.List, ast.Tuple)):
        for child in ast.iter_child_nodes(argument):
            if isinstance(child, ast.expr):
                yield from own_words(child)
