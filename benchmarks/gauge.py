"""How long the gauge takes to follow a slider, as the browser sees it: from the key press to the bar's new figures.

Run as `python -m benchmarks.gauge [--moves 40]`. A dashboard of its own, with the stand-in driver's GPUs and a 7B of
which only the header is on disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.support.dashboard import CHROMIUM, FLAGS, dashboard, make_hollow_model
from tests.support.nvml_standin import Standin, compile_library

MODEL = "7B"
PAUSE_MS = 400
WATCH = """() => {
    const bar = () => [...document.querySelectorAll('[role="img"]')].map(one => one.innerText).join();
    addEventListener('keydown', () => {
        const begin = performance.now(), before = bar();
        const look = () => bar() !== before ? window.took = performance.now() - begin : requestAnimationFrame(look);
        window.took = null;
        look();
    }, true);
}"""


def measure(num_moves: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_hollow_model(home / "models" / MODEL, "TheBloke/Llama-2-7B-Chat-GPTQ")
        for name in ("library", "driver"):
            (home / name).mkdir()
        standin = Standin(home / "driver", compile_library(home / "library"))
        standin.use("two_4090")
        environment = standin.environment() | {
            "LLAMADECK_MODELS": str(home / "models"),
            "LLAMADECK_DATA": str(home / "data"),
        }
        with dashboard(environment) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_context(locale="en-US").new_page()
            page.goto(f"{url}/Load_Model")
            thumb = page.locator(f".st-key-gauge_context_{MODEL}").get_by_role("slider")
            thumb.wait_for()
            thumb.focus()
            page.evaluate(WATCH)
            times = []
            for move in range(num_moves):
                page.wait_for_timeout(PAUSE_MS)
                thumb.press("ArrowLeft" if move % 20 < 10 else "ArrowRight")
                times.append(page.wait_for_function("window.took").json_value())
            browser.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=40)
    times = measure(parser.parse_args().moves)
    print(f"slider to bar: median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms, {len(times)} moves")


if __name__ == "__main__":
    main()
