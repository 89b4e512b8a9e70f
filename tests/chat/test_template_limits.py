"""Chat templates that try to take the house down: each ends in a sentence, soon, and without a byte of ours."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.chat import template as templates
from core.chat.template import ChatTemplate, TemplateError, TemplateLimitError
from core.chat.template_messages import Turn
from core.chat.truncation import PromptParts
from core.chat.turn_rendering import Names, render_turns
from core.common.sandbox import LimitReached, Sandbox, SandboxError, SandboxLimits, _Child, close_all

SAID = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TIME, MEMORY, OUTPUT, WORDS = "chat_template_time", "chat_template_memory", "chat_template_output", "chat_template"
HOSTILE = {
    # Computing without an end.
    "loops in loops": (ENDLESS, {TIME}),
    "loops that write": (
        "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
        {TIME, MEMORY},
    ),
    "a power": ("{{ 7 ** (10 ** 9) % 2 }}", {TIME, MEMORY}),
    "powers of powers": (
        "{% set n = namespace(v=3) %}{% for i in range(99) %}{% set n.v = n.v ** 3 %}{% endfor %}",
        {TIME},
    ),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        {TIME, WORDS},
    ),
    "a loop that calls itself": (
        "{% for a in [[1, 1]] recursive %}{{ loop([a, a]) if loop.depth < 40 }}{% endfor %}",
        {TIME, WORDS},
    ),
    "words in a width of one": (
        "{{ ('a ' * 400000) | wordwrap(1) | wordwrap(1) | wordwrap(1) }}",
        {TIME, MEMORY, OUTPUT},
    ),
    "splits of splits": (
        "{% set t = 'a ' * 200000 %}{% for i in range(9999) %}{% set x = t.split() | join | list %}{% endfor %}",
        {TIME, MEMORY},
    ),
    "groups": (
        "{% for i in range(999) %}{{ (range(90000) | groupby('real') | list)[0] is none }}{% endfor %}",
        {TIME, MEMORY},
    ),
    "a number of 10,000 digits": ("{{ (9 ** 10000) ~ '' }}", {WORDS}),
    # Much out of little.
    "a product of a text": ("{{ ('ab' * 900000000)[:5] }}", {MEMORY}),
    "a product of a list": ("{{ ([1] * 900000000) | length }}", {MEMORY}),
    "a width": ("{{ '%1000000000d' % 1 }}", {MEMORY}),
    "a precision": ("{{ '%.1000000000f' % 1 }}", {MEMORY, WORDS}),
    "format's width": ("{{ '{:999999999}'.format(1) }}", {MEMORY}),
    "the filter format": ("{{ '%999999999s' | format('x') }}", {MEMORY}),
    "center": ("{{ 'x' | center(10 ** 9) }}", {MEMORY}),
    "ljust": ("{{ 'x'.ljust(10 ** 9) }}", {MEMORY}),
    "indent": ("{{ ('a\\n' * 9000) | indent(10 ** 6) }}", {MEMORY}),
    "replace": ("{{ ('a' * 90000) | replace('a', 'b' * 90000) }}", {MEMORY}),
    "replace of nothing": ("{{ ('a' * 90000).replace('', 'b' * 90000) }}", {MEMORY}),
    "expandtabs": ("{{ '\\t'.expandtabs(2 ** 30) }}", {MEMORY}),
    "zfill": ("{{ '1'.zfill(10 ** 9) }}", {MEMORY}),
    "batch": ("{{ range(9) | batch(10 ** 9, 'x') | list }}", {MEMORY, TIME}),
    "doubling": (
        "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        {MEMORY},
    ),
    "lists in lists": (
        "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        {MEMORY},
    ),
    "JSON of lists in lists": (
        "{% set n = namespace(t=['x']) %}{% for i in range(60) %}{% set n.t = [n.t, n.t] %}{% endfor %}"
        "{{ n.t | tojson }}",
        {MEMORY, TIME},
    ),
    "JSON with an indent": ("{{ [1] | tojson(indent=10 ** 9) }}", {MEMORY}),
    "a shift": ("{{ 2 ** (8 * 10 ** 9) }}", {MEMORY, TIME, WORDS}),
    "a prompt of two million letters": ("{{ 'a' * 2000000 }}", {OUTPUT}),
    "a joined prompt": ("{{ ['abcdefgh'] * 400000 | int | abs }}", {OUTPUT, MEMORY}),
    # Hard to read.
    "a constant that is folded": ("{{ 'a' * 100 * 100 * 100 * 100 * 100 * 100 }}", {MEMORY}),
    "a power that is folded": ("{{ 9 ** (9 ** 9) }}", {TIME, MEMORY}),
    "brackets": ("{{ " + "[" * 5000 + "]" * 5000 + " }}", {WORDS, MEMORY, TIME, "chat_template_ended"}),
    "conditions": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, {WORDS, MEMORY, TIME, "chat_template_ended"}),
    "a long sum": ("{{ " + "1 + " * 30000 + "1 }}", {WORDS, MEMORY, TIME, "chat_template_ended"}),
    "many blocks": ("".join(f"{{% set v{n} = {n} %}}" for n in range(40000)), {TIME, MEMORY}),
}


started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def small_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes of the test's own, with limits that are reached soon. Where a template shall end for the memory that it
    takes, its time is long: a busy machine gives memory slowly."""
    callspec = getattr(request.node, "callspec", None)
    is_of_time = callspec is None or TIME in callspec.params.get("wanted", {TIME})
    renderer = templates.TemplateRenderer(SandboxLimits(cpu_s=0.25 if is_of_time else 20.0, memory_mib=96, wait_s=60.0))
    monkeypatch.setattr(templates, "_renderer", renderer)
    start = subprocess.Popen
    monkeypatch.setattr(
        "core.common.sandbox.subprocess.Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1]
    )
    started.clear()
    yield
    renderer.close()


def ask(text: str = "hi") -> list[Turn]:
    return [Turn(role="user", content=text)]


@pytest.mark.parametrize(("source", "wanted"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_in_a_sentence_and_takes_nothing_of_ours(source: str, wanted: set[str]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError) as caught:
            ChatTemplate(source, "<s>", "</s>", "Evil-7B").render(ask())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.key in wanted
    assert peak_bytes < 20 * 2**20
    if caught.value.key != WORDS:
        assert "Evil-7B" in caught.value.sentence("en") and "Evil-7B" in caught.value.sentence("zh")


def test_a_process_that_keeps_what_it_took_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of what Python takes goes back to the system, some does not: idle processes kept half a gigabyte each."""
    template = ChatTemplate(SAID, "", "", "small")
    for _ in range(2):
        assert template.render(ask()) == "[user]hi"
    assert len(started) == 1
    monkeypatch.setattr("core.common.sandbox.KEPT_MIB", 1)
    for _ in range(2):
        assert template.render(ask()) == "[user]hi"
    assert len(started) == 2 and started[0].poll() is not None and started[1].poll() is not None


def test_a_template_of_ten_megabytes_is_refused_or_read_within_the_limits() -> None:
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages[0].content }}" * 400_000, "", "", "long").render(ask())


def test_what_was_stopped_is_not_computed_again_for_every_chat_that_is_no_shorter() -> None:
    template = ChatTemplate(ENDLESS, "", "", "slow")
    for text in ("hi", "hi", "hello", "hello again"):
        with pytest.raises(TemplateLimitError):
            template.render(ask(text))
    assert len(started) == 1


def test_a_chat_that_is_too_much_does_not_take_the_template_from_shorter_ones() -> None:
    """A client's ten thousand lines reached the limit; a person's one line was then refused as well."""
    quadratic = "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}" + SAID
    template = ChatTemplate(quadratic, "", "", "quadratic")
    with pytest.raises(TemplateLimitError):
        template.render([Turn(role="user", content="x")] * 20_000)
    assert template.render(ask()) == "[user]hi"


def test_others_do_not_wait_behind_a_template_that_hangs() -> None:
    """Eight chats with one template that hangs are all told so after its first stop, beside them another answers."""
    endless, plain = ChatTemplate(ENDLESS, "", "", "slow"), ChatTemplate(SAID, "", "", "plain")
    is_asked = threading.Event()

    def hang(number: int) -> str:
        is_asked.set()
        with pytest.raises(TemplateLimitError) as caught:
            endless.render(ask("x" * (number + 1)))
        return caught.value.key

    with ThreadPoolExecutor(8) as pool:
        hanging = [pool.submit(hang, number) for number in range(8)]
        is_asked.wait()
        assert plain.render(ask()) == "[user]hi"
        keys = {one.result() for one in hanging}
    assert keys <= {TIME}


def test_a_limit_is_said_at_once_and_no_other_form_of_the_chat_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def render(self: object, source: str, values: object, size: object) -> str:
        tried.append(values)
        raise LimitReached("memory")

    monkeypatch.setattr(templates.TemplateRenderer, "render", render)
    parts = PromptParts((Turn(role="assistant", content="Hello."), *ask()), system="Be brief.")
    with pytest.raises(TemplateLimitError):
        render_turns(ChatTemplate(SAID, "", "", "m"), parts, Names("You", "Ada"), "Be brief.")
    assert len(tried) == 1


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ ''|attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% set f = '{0.__class__}'.format %}{{ f('') }}",
        "{{ ['{0.__class__}'] | map('format', '') | first }}",
        "{{ namespace.__init__.__globals__['__builtins__'] }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_sandbox_still_holds(source: str) -> None:
    """What it does not refuse shows nothing: an attribute that is not there."""
    try:
        text = ChatTemplate(source, "", "").render(ask())
    except TemplateError:
        return
    assert not any(word in text for word in ("class", "root:", "builtin", "object", "module"))


def test_a_template_sees_nothing_of_our_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it to get out of its sandbox, it would find no password in its process."""
    monkeypatch.setenv("LLAMADECK_PASSWORD", "open sesame")
    ChatTemplate(SAID, "", "").render(ask())
    (process,) = started
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"open sesame" not in environment and b"LLAMADECK" not in environment


def test_the_first_chat_finds_a_process_ready() -> None:
    templates._renderer.warm()
    templates._renderer.warm()
    assert len(started) == 1
    assert ChatTemplate(SAID, "", "", "m").render(ask()) == "[user]hi"
    assert len(started) == 1
    assert ChatTemplate(SAID + "!", "", "", "other").render(ask()) == "[user]hi!"
    assert len(started) == 2


def test_a_process_that_is_killed_is_replaced() -> None:
    template = ChatTemplate(SAID, "", "", "m")
    assert template.render(ask()) == "[user]hi"
    started[0].kill()
    started[0].wait()
    assert template.render(ask()) == "[user]hi"
    assert len(started) == 2


def test_a_process_that_does_not_read_is_given_up_and_replaced() -> None:
    """Stopped, it neither reads nor answers; the clock ends it, and says that it was not the template."""
    sandbox = Sandbox("core.chat.template_child", SandboxLimits(1.0, 96, wait_s=30.0), 1)
    assert sandbox.ask("k", SAID, {"messages": ask()}, 100) == "[user]hi"
    sandbox.limits = SandboxLimits(1.0, 96, wait_s=1.0)
    os.kill(started[0].pid, 19)  # SIGSTOP
    with pytest.raises(LimitReached) as caught:
        sandbox.ask("k", SAID, {"messages": ask("x" * 4_000_000)}, 100)
    assert caught.value.kind == "busy"
    assert started[0].poll() is not None
    sandbox.close()


def test_children_are_limited_in_number_and_end_when_they_are_let_go() -> None:
    sandbox = Sandbox("core.chat.template_child", SandboxLimits(1.0, 96, 30.0), 2)
    for number in range(4):
        sandbox.ask(number, SAID, {"messages": ask()}, 100)
    assert [process.poll() is None for process in started] == [False, False, True, True]
    sandbox.close()
    assert all(process.poll() is not None for process in started)


def test_nobody_waits_for_the_end_of_a_child_that_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may not let go of a process for a while; those who ask others go on meanwhile."""
    sandbox = Sandbox("core.chat.template_child", SandboxLimits(1.0, 96, 30.0), 1)
    sandbox.ask("first", SAID, {"messages": ask()}, 100)
    end, others_wait = _Child.end, []

    def end_and_look(child: _Child) -> None:
        others_wait.append(sandbox._choosing.locked())
        end(child)

    monkeypatch.setattr(_Child, "end", end_and_look)
    assert sandbox.ask("second", SAID, {"messages": ask()}, 100) == "[user]hi"
    assert others_wait and not any(others_wait)
    assert started[0].poll() is not None
    sandbox.close()


def test_at_the_end_a_child_that_computes_is_ended_too() -> None:
    sandbox = Sandbox("core.chat.template_child", SandboxLimits(60.0, 96, 60.0), 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(sandbox.ask, "k", ENDLESS, {"messages": ask()}, 100)
        while not started or not asked.running():
            time.sleep(0.01)
        close_all()
        with pytest.raises(LimitReached):
            asked.result()
    assert all(process.poll() is not None for process in started)


def test_a_childs_own_words_are_cut_and_it_goes_on() -> None:
    sandbox = Sandbox("core.chat.template_child", SandboxLimits(1.0, 96, 30.0), 1)
    with pytest.raises(SandboxError) as caught:
        sandbox.ask("k", "{{ raise_exception('\ud800' ~ messages) }}", {"messages": "x" * 9000}, 100)
    assert 0 < len(str(caught.value)) <= 200
    with pytest.raises(SandboxError):
        sandbox.ask("k", "", {"messages": "y"}, 100)
    assert len(started) == 1
    sandbox.close()
