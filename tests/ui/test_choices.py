"""The words by which a browser tells choices."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ui.shared.choices import told_apart


def test_only_those_of_the_same_name_are_called_by_their_keys_too() -> None:
    assert told_apart({"": "Nobody", "a": "Ada", "b": "Bo", "c": "Ada", "d": "Nobody"}) == {
        "": "Nobody", "a": "Ada (a)", "b": "Bo", "c": "Ada (c)", "d": "Nobody (d)"}  # fmt: skip


@given(st.dictionaries(st.text("ab ()", max_size=3), st.text("ab ()", max_size=6), max_size=8))
def test_each_choice_has_words_of_its_own(names: dict[str, str]) -> None:
    words = told_apart(names)
    assert list(words) == list(names) and len(set(words.values())) == len(names)
    assert all(word.startswith(names[key]) for key, word in words.items())
