"""How many of the starter's answers end in a loop, with one repetition penalty and another.

`python -m benchmarks.starter_loops [PENALTY …]` asks 40 questions with each, through the engine, as a new chat does:
with what the checkpoint recommends for all else. `--show` prints the answers that loop.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from core.chat.presets import combine, read_recommended
from core.chat.template import read_template
from core.engine.answer import Answer
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.starter import build
from core.tokenizer.read import read_tokenizer

PENALTIES = (1.0, 1.05, 1.1, 1.15, 1.2)
CONTEXT_TOKENS, NEW_TOKENS, CHATS = 2048, 512, 4
LOAD_S = 600.0
# A loop says most of its runs of this many words again.
RUN_WORDS, LOOP_SHARE = 6, 1 / 3
QUESTIONS = """Explain why the sky is blue in two sentences.
Write a friendly reminder to a colleague.
Give me three ideas for a rainy Sunday.
What is the capital of France?
Tell me a story about a fox and a lighthouse.
How do I boil an egg?
Write a poem about autumn.
What is the difference between a virus and a bacterium?
List ten animals that live in the sea.
Who wrote Hamlet, and what is it about?
Explain photosynthesis to a child.
Plan a week of dinners for two.
What should I see in Rome in one day?
Write a short email asking for a day off.
Why do cats purr?
How does a bicycle stay upright?
Translate "good morning" into French, Spanish and German.
What is a prime number? Give examples.
Write a Python function that reverses a string.
Explain how rain forms.
Give me tips for sleeping better.
What happened in 1969?
Describe a market in the morning.
How do I learn to play the guitar?
What is gravity?
Write a dialogue between a baker and a customer.
Name the planets in order.
How do vaccines work?
What are the rules of chess?
Write a birthday message for my grandmother.
Why is the sea salty?
How can I save money every month?
Summarise the story of Cinderella.
What is machine learning?
Write a product description for a wooden chair.
How many legs does a spider have?
What is the best way to clean windows?
Tell me a joke.
Explain the water cycle step by step.
What makes a good friend?""".splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("penalties", nargs="*", type=float, default=PENALTIES, metavar="PENALTY")
    parser.add_argument("--show", action="store_true", help="print the answers that loop")
    arguments = parser.parse_args()
    folder = build.ensure_cached(lambda *_: None)
    runner = Runner()
    try:
        runner.load(folder, CONTEXT_TOKENS, CHATS)
        state = runner.wait_while_loading(LOAD_S)
        if state.phase != "ready":
            raise SystemExit(str(state.error))
        for penalty in arguments.penalties:
            sampling = combine(read_recommended(folder), {"repetition_penalty": penalty, "max_new_tokens": NEW_TOKENS})
            answers = ask(runner, folder, sampling)
            looping = [answer.text for answer in answers if is_loop(answer.text)]
            cut = sum(answer.reason == "length" for answer in answers)
            found = f"{len(looping):2} of {len(answers)} loop, {cut:2} cut at {NEW_TOKENS} tokens"
            print(f"penalty {penalty:4}: {found}", flush=True)
            if arguments.show:
                print(*looping, sep="\n---\n")
    finally:
        runner.close()


def ask(runner: Runner, folder: Path, sampling: Sampling) -> list[Answer]:
    """The finished answers to all questions, each question in a chat of its own."""
    template, tokenizer = read_template(folder), read_tokenizer(folder)
    answers = []
    for number, question in enumerate(QUESTIONS):
        prompt = template.render([{"role": "user", "content": question}])
        tokens = tokenizer.encode(prompt, add_special_tokens=False).ids
        answers.append(runner.generate(tuple(tokens), replace(sampling, seed=number)))
    for answer in answers:
        answer.wait()
        if answer.error is not None:
            raise answer.error
    return answers


def is_loop(text: str) -> bool:
    """Whether more than LOOP_SHARE of the runs of RUN_WORDS words are repeated; numbers of lists do not count."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    runs = Counter(tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1))
    return runs.total() > 0 and 1 - len(runs) / runs.total() > LOOP_SHARE


if __name__ == "__main__":
    main()
