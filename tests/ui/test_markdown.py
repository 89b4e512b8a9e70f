"""What models, people and files call things, made safe to show as Markdown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.hub.address import Address
from core.hub.source import Source
from ui.download.repository import page_url
from ui.shared.markdown import answer_markdown, escape, has_bad_scheme, shortened


@pytest.mark.parametrize("text", ["a_b_c", "*a*", "`x`", "$5 and $6", "[a](b)", "<b>", "# a", "~~a~~", "a|b", "a\\b",
                                  "https://a/b_c", "www.a_b.org"])  # fmt: skip
def test_a_name_has_no_markup_left(text: str) -> None:
    escaped = escape(text)
    assert escaped.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\") == text
    assert all(escaped[at - 1] == "\\" for at, letter in enumerate(escaped) if letter in "`*_[]<>#$~|")


def test_plain_text_is_left_as_it_is() -> None:
    assert escape("Llama-2-7B-chat (4 bit), 你好: a.b!") == "Llama-2-7B-chat (4 bit), 你好: a.b!"


def test_money_stays_money() -> None:
    assert answer_markdown("$5 and $6") == "\\$5 and \\$6"


def test_money_that_is_escaped_already_is_not_escaped_again() -> None:
    assert answer_markdown("\\$5") == "\\$5"


@pytest.mark.parametrize(
    "code",
    [
        "`$HOME`",
        "``a ` $b``",
        "```sh\necho $HOME\n```",
        "~~~\n![x](y) $1\n~~~",
        "````\n```\n$1\n```\n````",
        "```sh\necho $HOME and more that is still being written",
        "  ```\n  $1\n  ```",
    ],
)
def test_code_is_left_as_it_is(code: str) -> None:
    assert answer_markdown(f"{code}\n" if code.endswith(("```", "~~~")) else code).rstrip("\n") == code


def test_text_around_code_is_not_code() -> None:
    text = "$1\n```\n$2\n```\n$3 `$4` $5"
    assert answer_markdown(text) == "\\$1\n```\n$2\n```\n\\$3 `$4` \\$5"


def test_a_lone_backtick_opens_no_code() -> None:
    assert answer_markdown("a ` b $1\n\nc ` $2") == "a ` b \\$1\n\nc ` \\$2"


def test_a_span_of_code_is_no_longer_than_any_that_is_meant() -> None:
    """Else for each backtick that has no partner the rest of a paragraph is looked through: 5 s for 300,000 letters."""
    assert answer_markdown(f"`{'a' * 4000}$`") == f"`{'a' * 4000}$`"
    assert answer_markdown(f"`{'a' * 6000}$`") == f"`{'a' * 6000}\\$`"
    runs = "".join("`" * length + "a" for length in range(1, 770))
    assert answer_markdown(runs) == runs


def test_a_picture_becomes_a_link() -> None:
    """A picture is fetched as soon as it is shown, and its address can say what was said in the chat."""
    assert answer_markdown("see ![x](https://example.org/?q=secret)") == "see \\![x](https://example.org/?q=secret)"


def test_a_long_line_is_cut_with_an_ellipsis() -> None:
    assert shortened("a b\nc", 10) == "a b c"
    assert shortened("abcdefgh", 5) == "abcd…"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [("https://huggingface.co", "https://huggingface.co/a/b"), ("http://[::1]:8080/x", "http://[::1]:8080/x/a/b"),
     ("https://h/a)b(c", "https://h/a%29b%28c/a/b"), ("https://h/ <b>\"'", "https://h/%20%3Cb%3E%22%27/a/b"),
     ("https://镜像.example", "https://%E9%95%9C%E5%83%8F.example/a/b")],
)  # fmt: skip
def test_an_address_in_a_link_does_not_end_the_link(endpoint: str, url: str) -> None:
    assert page_url(Source(Address("a/b", "main"), endpoint)) == url


def targets(text: str) -> list[str]:
    """Where links and pictures in `text` lead, by a parser that refuses none."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    found, waiting = [], parser.parse(text)
    while waiting:
        token = waiting.pop()
        waiting += token.children or []
        found += [str(token.attrs[name]) for name in ("href", "src") if name in token.attrs]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "[c](data:text/html,<b>1</b>)",
        "[c](DaTa:text/html;base64,PGI+MTwvYj4=)",
        "[c](javascript:alert(1)) [d](vbscript:x) [e](file:///etc/passwd) [f](blob:http://x/1)",
        "[c]( \n data:text/html,1 )",
        '[c](data:text/html,1 "a title")',
        "[c](<data:text/html,a b>)",
        "[c](&#100;ata:text/html,1) [d](&#x64;ata:x) [e](data&colon;x) [f](&#0000100;ata:x)",
        "[c](data\\:text/html,1) [d](dat&Tab;a:x) [e](&NewLine;data:x)",
        "[c](data:x)(data:y)(javascript:z)",
        "[a [c](data:x) b](data:y)",
        "[![c](data:image/svg+xml,<svg/onload=alert(1)>)](data:text/html,1)",
        "[c][x]\n\n[x]: data:text/html,1",
        "[c][x]\n\n[x]:\n  <data:text/html,1>\n  'title'",
        "> [x]\n>\n> [x]:\n> javascript:alert(1)",
        "- [x]\n- [x]: vbscript:1",
        "[x][a b]\n\n[a\nb]: data:1",
        "<data:text/html,1> <javascript:alert(1)> <x-call:1>",
        "# [c](data:x)\n| a |\n|---|\n| [c](data:x) |",
        "*[c](data:x)* ~~[d](data:x)~~ **[e](ms-msdt:/id)**",
        "\\\\[c](data:x) \\[d](data:x)",
        "[c](data:(a(b)c)) [d](data:\\)x)",
        "a ` b\n \n[c](data:x) `",
        "`a\n- [c](javascript:alert(1))`",
        "\\`[c](data:x)`",
        "text\n    ```\n[c](data:x)",
        "``` a`b\n[c](data:x)",
        "> ```\n[c](data:x)",
        "- ```\n\n[c](data:x)",
        "``\n# [c](data:x)``",
    ],
)
def test_a_link_to_anything_but_a_page_or_a_mail_loses_its_address(text: str) -> None:
    """Such an address is a program, a page of its own making, or opens another program."""
    assert targets(text), "it is a link before"
    assert [target for target in targets(answer_markdown(text)) if has_bad_scheme(target)] == []


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://e.org/?q=secret)",
        "\\\\![x](https://e.org/?q=secret)",
        "`a\n- ![x](https://e.org/?q=secret)`",
        "a ` b\n \n![x](https://e.org/?q=secret) `",
        "![x]\n\n[x]: https://e.org/?q=secret",
        "[![x](https://e.org/?q=secret)](https://e.org)",
    ],
)
def test_no_picture_is_fetched_however_it_is_written(text: str) -> None:
    shown = MarkdownIt("commonmark").render(answer_markdown(text))
    assert "<img" in MarkdownIt("commonmark").render(text) and "<img" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "[a](https://e.org) [b](/path?x=a:b) [c](#part) [d](mailto:a@b.org) [e](tel:+49) [f](HTTP://e.org)",
        "<https://e.org> <a@b.org>",
        "[a][x]\n\n[x]: https://e.org/a:b 'data: javascript:'",
        "Note: data: is a scheme, javascript: too; std::vector<int> a < b: c",
        "[x] (data:y) and a[b] = c",
        "```md\n[c](data:text/html,1) ![x](y)\n[x]: javascript:1\n<data:x>\n```",
        "Write `[c](data:text/html,1)` or ``![x](data:`)``.",
        "- a\n\n  ```\n  ![x](y)\n  ```",
        "[c](data:text/html,",
    ],
)
def test_what_leads_to_a_page_and_what_is_code_stays(text: str) -> None:
    shown = answer_markdown(text)
    assert MarkdownIt("commonmark").render(shown) == MarkdownIt("commonmark").render(text)


def test_a_link_keeps_its_words_and_a_growing_answer_shows_no_link_before_it_is_whole() -> None:
    text = "See [the page](data:text/html,<b>1</b>) and (more)."
    assert answer_markdown(text) == "See [the page] and (more)."
    for length in range(len(text)):
        assert not any(map(has_bad_scheme, targets(answer_markdown(text[:length]))))


PARTS = st.sampled_from(["[a]", "(", ")", "](", "]:", "data:x", "java", "script:", "<", ">", "`", "```", "\n", "\n\n",
                         " ", "!", "\\", "- ", "> ", "&#58;", "'", '"', "https://e.org", "    "])  # fmt: skip


@given(st.lists(PARTS, max_size=14))
def test_whatever_the_pieces_nothing_bad_is_left_to_click(pieces: list[str]) -> None:
    shown = answer_markdown("".join(pieces))
    assert not any(map(has_bad_scheme, targets(shown)))
    assert "<img" not in MarkdownIt("commonmark", {"html": False}).render(shown)


@pytest.mark.parametrize(
    "piece", ["[c](data:", "]:", "<", "](<data:", "![[", "[c](data:x)", "` ", "\\", "> ", "*a **b "]
)
def test_an_endless_answer_is_shown_all_the_same(piece: str) -> None:
    shown = answer_markdown(piece * 2000 + "`![x](y)`")
    assert len(shown) < 100_000 and "`![x](y)`" in shown.replace("\\", "")


def test_what_is_too_long_to_look_at_is_shown_letter_by_letter() -> None:
    assert answer_markdown("[c](data:x)" * 50_000) == escape("[c](data:x)" * 50_000)
