"""Thoughts: found by their marks in a text that comes in pieces of any size, and no character is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.thought import Parts, ThoughtRules, ThoughtSplitter
from core.engine.thought import split_thought as split
from core.engine.thought_formats import FORMATS, THINK, ThoughtFormat, find_format

BY_NAME = {one.name: one for one in FORMATS}
LOOSE = ThoughtRules(may_lack_opening=True)
OPEN = ThoughtRules(is_open=True)
rules = st.builds(ThoughtRules, st.sampled_from(FORMATS), st.booleans(), st.booleans())


def pieces_of(one: ThoughtFormat) -> st.SearchStrategy[str]:
    """Texts of marks, whole and broken, code, quotes and blanks."""
    words = ["a", " ", "\n", "\n\n", "`", '"', "```", "\n```\n", "\n~~~", "    ", "<", "</", "|>", "assistant", "x y"]
    broken = [mark[:place] for mark in one.marks for place in (1, len(mark) // 2, len(mark) - 1)]
    return st.lists(st.sampled_from([*words, *one.marks, *broken]), max_size=24).map("".join)


@given(rules.flatmap(lambda one: st.tuples(st.just(one), pieces_of(one.format), st.data())))
def test_no_character_is_lost_and_pieces_of_any_size_give_the_same_parts(
    drawn: tuple[ThoughtRules, str, st.DataObject],
) -> None:
    one, text, data = drawn
    whole = split(text, one)
    assert whole.whole == text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    splitter = ThoughtSplitter(one)
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        splitter.push(text[begin:end])
        assert text.startswith(splitter.parts.whole)
    assert splitter.end() == whole


@given(rules.flatmap(lambda one: st.tuples(st.just(one), pieces_of(one.format))))
def test_character_by_character_nothing_shrinks_but_an_answer_that_becomes_a_thought(
    drawn: tuple[ThoughtRules, str],
) -> None:
    one, text = drawn
    splitter, before = ThoughtSplitter(one), Parts()
    for character in text:
        splitter.push(character)
        now = splitter.parts
        is_turned = before.answer != "" and now.thought.startswith(before.answer) and not before.thought
        assert now.thought.startswith(before.thought)
        assert now.answer.startswith(before.answer) or (one.may_lack_opening and is_turned)
        before = now
    assert splitter.end() == split(text, one)


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name + "".join(one.answer))
@pytest.mark.parametrize("mark", [0, -1])
def test_every_format_is_split_at_every_place(one: ThoughtFormat, mark: int) -> None:
    answer, ending = (one.answer[0] if one.answer else ""), (one.answer_end[0] if one.answer_end else "")
    text = f"{one.open[mark]}\nHm, 2.\n{one.close[mark]}\n\n{answer}Two: 2.{ending}"
    for place in range(len(text) + 1):
        splitter = ThoughtSplitter(ThoughtRules(one))
        splitter.push(text[:place])
        splitter.push(text[place:])
        parts = splitter.end()
        assert (parts.thought, parts.answer, parts.whole) == ("Hm, 2.", "Two: 2.", text)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("Hello", "", "Hello"),
        ("", "", ""),
        ("\n\n", "", "\n\n"),
        ("  \n<think>hm</think>Hi", "hm", "Hi"),
        ("<think>\n\n</think>\n\nHi", "", "Hi"),
        ("<think>\nhm", "hm", ""),
        ("<think>\n<think>\nhm\n</think>\nHi", "hm", "Hi"),
        ("<think>\n\n</think>\n\n<think>\nhm\n</think>\nHi", "hm", "Hi"),
        ("<think>a</think>\n<think>b</think>\nHi", "a</think>\n<think>b", "Hi"),
        ("<think>The tag `</think>` ends it.\n</think>\n\nHi", "The tag `</think>` ends it.", "Hi"),
        ("<think>\n```\n<think>x\n</think>\n```\nok\n</think>\nHi", "```\n<think>x\n</think>\n```\nok", "Hi"),
        # A fence that is never closed does not swallow the answer.
        ("<think>\n```\nx\n</think>\nHi", "```\nx", "Hi"),
        ("<think>hm</think>Hi <think>again</think>", "hm", "Hi <think>again</think>"),
        ("A <think>tag</think> is one.", "", "A <think>tag</think> is one."),
        ("`<think>` opens.", "", "`<think>` opens."),
        ("<thinker>x", "", "<thinker>x"),
        ("x < y </think> z", "", "x < y </think> z"),
    ],
)
def test_the_first_thing_in_a_text_is_a_thought(text: str, thought: str, answer: str) -> None:
    parts = split(text, ThoughtRules())
    assert (parts.thought, parts.answer) == (thought, answer)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("So 2.\n</think>\n\nTwo.", "So 2.", "Two."),
        ("So 2.</think>\nTwo.", "So 2.", "Two."),
        ("</think>\n\nTwo.", "", "Two."),
        ("The tag </think> ends it.", "", "The tag </think> ends it."),
        ("Write `</think>`\nthen.", "", "Write `</think>`\nthen."),
        ("```\n</think>\n```\nends it.", "", "```\n</think>\n```\nends it."),
        ("Like this:\n<think>\nx\n</think>\nend", "", "Like this:\n<think>\nx\n</think>\nend"),
        ("So 2.\n</think>\nTwo.\n</think>\n", "So 2.", "Two.\n</think>\n"),
    ],
)
def test_an_end_without_a_beginning_ends_a_thought_on_a_line_of_its_own(text: str, thought: str, answer: str) -> None:
    parts = split(text, LOOSE)
    assert (parts.thought, parts.answer) == (thought, answer)
    assert split(text, ThoughtRules()).thought == ""


def test_a_thought_that_the_prompt_opened_goes_to_its_mark() -> None:
    assert split("hm\n</think>\n\nHi", OPEN) == Parts("", "hm", "\n</think>\n\n", "Hi")
    assert split("<think>\nhm</think>Hi", OPEN) == Parts("<think>\n", "hm", "</think>", "Hi")
    assert split("hm", OPEN) == Parts("", "hm")


@pytest.mark.parametrize(
    "text", ["<think>", "<think>\n", "<think></think>", "<think>a</think>", "</think>\n", "`</think>`"]
)
def test_a_text_of_nothing_but_marks_is_split_like_any(text: str) -> None:
    """A model that repeats itself without end ended with an error."""
    many = text * 3000
    for one in (ThoughtRules(), LOOSE, OPEN):
        assert split(many, one).whole == many


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name + "".join(one.answer))
@pytest.mark.parametrize(
    "end", ["hm", "a\n```\n{open} b", "a\n```\nb\n```", "a\n~~~\nb", "say `", "a\n```\n{close} b `"]
)
def test_a_thought_can_be_ended_wherever_it_is(one: ThoughtFormat, end: str) -> None:
    """An answer that followed a mark within a block of code, or in quotes, was taken for the thought."""
    splitter = ThoughtSplitter(ThoughtRules(one))
    splitter.push(f"{one.open[0]}\n" + end.format(open=one.open[0], close=f"`{one.close[0]}`"))
    assert splitter.is_thinking
    splitter.push(splitter.closing + "`x` is it.")
    parts = splitter.end()
    assert parts.answer == "`x` is it." and parts.thought.startswith(end[:3].rstrip("\n`"))


def test_it_is_told_while_a_thought_goes_on() -> None:
    splitter = ThoughtSplitter(ThoughtRules())
    told = []
    for piece in ("<thi", "nk>", "hm", "\n</think>", "\n", "Hi"):
        splitter.push(piece)
        told.append(splitter.is_thinking)
    assert told == [False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("source", "tokens", "name"),
    [
        ("{{ '<think>\\n\\n</think>' }}", (), "think"),
        ("{{ content.split('</think>')[-1] }}", (), "think"),
        ("{{ '<|channel>thought\\n<channel|>' }}", (), "channel"),
        ("'<|channel|>analysis<|message|>' + x + '<|end|>' '<|start|>assistant<|channel|>final<|message|>'", (),
         "channels"),
        ("{{ '<seed:think>' }} {{ '</seed:think>' }}", (), "seed:think"),
        ("[THINK] [/THINK]", (), "[THINK]"),
        ("Here is my thought process: … Here is my response:", (), "Granite"),
        ("<thought> </thought>", (), "thought"),
        ("{{ messages }}", ("<think>", "</think>"), "think"),
        ("{{ messages }}", ("[THINK]", "[/THINK]"), "[THINK]"),
    ],
)  # fmt: skip
def test_a_format_is_known_by_the_template_or_the_tokens(source: str, tokens: tuple[str, ...], name: str) -> None:
    found = find_format(source, tokens)
    assert found is not None and found.name == name


def test_a_model_that_does_not_think_has_no_format() -> None:
    assert find_format("{{ messages }}", ("<|end|>", "<s>")) is None


def test_answers_in_tags_of_their_own_lose_them() -> None:
    hunyuan = next(one for one in FORMATS if one.answer == ("<answer>",))
    text = "<think>\nhm\n</think>\n<answer>\nHi\n</answer>"
    assert split(text, ThoughtRules(hunyuan)) == Parts("<think>\n", "hm", "\n</think>\n<answer>\n", "Hi", "\n</answer>")
    assert split("<answer>\nHi", ThoughtRules(hunyuan)).answer == "Hi"
    assert BY_NAME["channels"].closing.endswith("final<|message|>") and THINK.closing == "\n</think>\n\n"


def test_tags_around_the_results_of_tools_are_not_those_of_answers() -> None:
    """MiniMax's results of tools stand in the tags of Granite's answers: a thought that was ended for the model was
    followed by one of them."""
    minimax = "<think>{{ m.thought }}</think>{{ '\n<response>' }}{{ m.content }}{{ '</response>' }}"
    assert find_format(minimax) == THINK
    told = "Thoughts stand in <think></think>, then <response></response>."
    cut = "<think>{% if '</think>' in c and '</answer>' in c %}{{ c.split('<answer>')[-1] }}{% endif %}"
    assert [find_format(source).answer for source in (told, cut)] == [("<response>",), ("<answer>",)]
