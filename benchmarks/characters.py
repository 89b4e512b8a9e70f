"""How long thousands of characters take: to list them, to draw the page again, to add a thousand more.

Run as `python -m benchmarks.characters [--count 8000] [--add 1000]`. It makes a folder of its own. Times are seconds of
this process's CPU: what a disk takes is its own matter. The page is the real one, run by Streamlit's AppTest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

RUNS = 7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.characters", description=__doc__)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--add", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("models", "data", "characters"):
            (Path(folder) / name).mkdir()
            os.environ[f"LLAMADECK_{name.upper()}"] = str(Path(folder) / name)
        measure(options.count, options.add)
    return 0


def measure(count: int, num_added: int) -> None:
    # Their folders are read from the environment.
    from streamlit.testing.v1 import AppTest

    from core.common.paths import ROOT, characters_dir
    from core.personas.character import Character
    from core.personas.parse import write_yaml
    from core.personas.store import Characters
    from ui.characters.gallery import PER_PAGE
    from ui.shared.resources import characters, thumbnails

    for number in range(count):
        values = {"name": f"Character {number:05}", "greeting": "Hello, {{user}}.", "context": "{{char}} sings. " * 20,
                  "tags": [f"tag {number % 40}", "singer"]}  # fmt: skip
        (characters_dir() / f"Character {number:05}.yaml").write_text(write_yaml(values))
    store = Characters()
    say(f"list {count:,}, first time", timed(store.entries, 1))
    say(f"list {count:,} again", timed(store.entries))
    tab = AppTest.from_file(str(ROOT / "Home.py"), default_timeout=120)
    tab.run()
    tab.switch_page("pages/4_Characters.py")
    say("open the page, first time", timed(lambda: tab.run(), 1))
    # Its pictures are made once, in a thread of their own.
    entries = store.entries()[:PER_PAGE]
    made = timed(lambda: wait([thumbnails().get(characters(), entry) for entry in entries]), 1)
    say(f"make {PER_PAGE} pictures, once", made)
    tab.run()
    say("draw the page again", timed(lambda: tab.run()))
    tab.text_input(key="characters_search").set_value("00042")
    say("search for one", timed(lambda: tab.run(), 1))
    one = Character("New", greeting="Hello.", context="{{char}} sings.")
    begin = time.process_time()
    for number in range(num_added):
        store.add(replace(one, name=f"New {number:05}"))
    say(f"add {num_added:,}", time.process_time() - begin)


def timed(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median in seconds of CPU."""
    took = []
    for _ in range(runs):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return statistics.median(took)


def say(what: str, seconds: float) -> None:
    print(f"{what:<32} {seconds * 1000:10.1f} ms", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
