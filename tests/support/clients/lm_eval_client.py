"""lm-evaluation-harness over two tasks of choices that are written here: prints {task: [accuracy, how many]}.

Started with the server's address, the model's name and the folder of its tokenizer, in an environment that has it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
URL, MODEL, FOLDER = sys.argv[1:]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin", "Spain": "Madrid",
            "Egypt": "Cairo", "Russia": "Moscow", "England": "London"}  # fmt: skip
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "light": "dark", "fast": "slow", "happy": "sad",
             "rich": "poor", "early": "late"}  # fmt: skip
TASKS = {
    "deck_capitals": ("The capital of {} is", CAPITALS),
    "deck_opposites": ("The opposite of {} is", OPPOSITES),
}
NUM_CHOICES = 4


def write_task(folder: Path, name: str, question: str, pairs: dict[str, str]) -> None:
    answers, rows = list(pairs.values()), []
    for place, (asked, answer) in enumerate(pairs.items()):
        # The right one is not always the first.
        choices = [answers[(place + by) % len(answers)] for by in range(NUM_CHOICES)]
        choices = choices[-place % NUM_CHOICES :] + choices[: -place % NUM_CHOICES]
        rows.append({"question": question.format(asked), "choices": choices, "answer": choices.index(answer)})
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    # YAML takes JSON as it is.
    (folder / f"{name}.yaml").write_text(json.dumps(task), "utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        for task, (question, pairs) in TASKS.items():
            write_task(folder, task, question, pairs)
        settings = {"model": MODEL, "base_url": f"{URL}/v1/completions", "tokenizer": FOLDER, "max_retries": 1,
                    "tokenizer_backend": "huggingface", "num_concurrent": 2}  # fmt: skip
        found: Any = simple_evaluate(
            model="local-completions",
            model_args=settings,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=name, include_defaults=False),
            bootstrap_iters=0,
        )
        results = {task: [found["results"][task]["acc,none"], found["n-samples"][task]["effective"]] for task in TASKS}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
