"""What models, people and files call things, made safe to show as Markdown."""

from __future__ import annotations

import pytest

from core.hub.address import Address
from core.hub.source import Source
from ui.download_repository import page_url
from ui.markdown import answer_markdown, escape, shortened


@pytest.mark.parametrize("text", ["a_b_c", "*a*", "`x`", "$5 and $6", "[a](b)", "<b>", "# a", "~~a~~", "a|b", "a\\b"])
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
