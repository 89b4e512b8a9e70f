"""The texts that a model is calibrated on, and those that its perplexity is measured on.

The set that ships: dialogues (core/quantize/samples, and those of the starter), the program's own documents and
sentences in English and Chinese, and its own code. All of it was written for this program, under its licence. The
held-out texts were written for this purpose, lie nowhere else in the set, and are read for nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint.text_config import text_config
from core.common.errors import InputError
from core.common.files import regular_size
from core.common.paths import ROOT
from core.common.values import is_whole, printable
from core.starter.quantize import TEXT_END, TEXTS
from core.tokenizer.read import read_tokenizer

SAMPLES = Path(__file__).with_name("samples")
HELD_OUT = {"en": SAMPLES / "held_out_en.txt", "zh": SAMPLES / "held_out_zh.txt"}
ROW_TOKENS = 512
# On a CPU every row costs minutes for a large model; a GPU has what gptqmodel asks for.
NUM_ROWS = {"cpu": 64, "cuda": 256}
# With less than this GPTQ's Hessian tells of the text rather than of the model.
MIN_TOKENS = 2048
PIECE_CHARS = 50_000
MAX_FILE_BYTES = 16_000_000
DOCUMENTS = (
    "README.md",
    "docs/usage.md",
    "docs/models.md",
    "docs/serving.md",
    "docs/characters.md",
    "docs/architecture.md",
)
CODE = ("core/worker/scheduler.py", "core/worker/model/repack.py", "core/hub/transport.py", "core/chat/queries.py",
        "core/worker/kernels/cuda/common.cuh", "core/worker/kernels/cuda/draw.cu", "core/gpu/nvml.py",
        "ui/chat/composer.py", "core/access/gate.py", "core/memory/fit.py")  # fmt: skip
CHINESE = re.compile(r"[\u4e00-\u9fff]")
MARK = re.compile(r"<\|im_(?:start|end)\|>")
ROLES = ("system", "user", "assistant")
Dialogue = tuple[tuple[str, str], ...]
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Texts by kind; `dialogues` as (role, text), which the model's own template puts into words."""

    dialogues: tuple[Dialogue, ...]
    texts: Mapping[str, tuple[str, ...]]


def shipped_set() -> CalibrationSet:
    starter = TEXTS.read_text("utf-8").split(TEXT_END)
    own = "\n%%\n".join(path.read_text("utf-8") for path in sorted(SAMPLES.glob("dialogues_*.txt"))).split(TEXT_END)
    chats = [text for text in (*starter, *own) if MARK.search(text)]
    prose = [text for text in starter if not MARK.search(text)]
    english = [*prose, *map(_read, DOCUMENTS), *_paragraphs(_sentences("en"))]
    chinese = _paragraphs(text for text in _sentences("zh") if CHINESE.search(text))
    return CalibrationSet(
        dialogues=tuple(parse_dialogue(text) for text in chats),
        texts={"en": tuple(filter(None, english)), "zh": tuple(chinese), "code": tuple(filter(None, map(_read, CODE)))},
    )


def parse_dialogue(text: str) -> Dialogue:
    """What was written between ChatML's marks, without the system message that names another model."""
    parts = (part.strip() for part in MARK.split(text))
    turns = [part.partition("\n") for part in parts if part.partition("\n")[0] in ROLES]
    return tuple((role, words) for role, _, words in turns if role != "system")


def read_file(path: Path) -> tuple[str, ...]:
    """The texts of a person's own file: paragraphs, or the "text" of each line of JSON Lines. Raises InputError."""
    try:
        # A pipe is empty when the child process reads it too, and a device may have no end.
        if regular_size(path) > MAX_FILE_BYTES:
            raise InputError("calibration_large", file=printable(str(path)), limit_mb=MAX_FILE_BYTES // 1_000_000)
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError("calibration_file", file=printable(str(path)), why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise InputError("calibration_encoding", file=printable(str(path))) from error
    if path.suffix.lower() == ".jsonl":
        return tuple(_json_lines(path, text))
    return tuple(filter(None, (part.strip() for part in re.split(r"\n\s*\n", text))))


def _json_lines(path: Path, text: str) -> Iterator[str]:
    # Not splitlines(): JSON writes Unicode's other ends of lines, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            words = value["text"]
            if not isinstance(words, str):
                raise TypeError("no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError("calibration_line", file=printable(str(path)), line=number) from error
        # Half a character, which only an escape can bring, is no text for a tokenizer.
        yield words.encode("utf-8", "replace").decode("utf-8")


def check_calibration(path: Path, folder: Path | None) -> None:
    """Raise InputError where the file at `path` cannot be calibrated on.

    `folder` has the model's tokenizer. Where it is None, of a model that has to be fetched or converted first, a file
    is refused that is too short for every tokenizer. Raises CheckpointError where the tokenizer cannot be read.
    """
    if folder is not None:
        tokenizer = read_tokenizer(folder)
        require_enough(path, lambda text: tokenizer.encode(text).ids)
        return
    # No token is less than a byte.
    if (count := sum(len(text.encode()) for text in read_file(path))) < MIN_TOKENS:
        raise InputError("calibration_bytes", file=printable(str(path)), count=count, needed=MIN_TOKENS)


def require_enough(path: Path, encode: Encode) -> None:
    """Raise InputError where the file at `path` has too few tokens to calibrate on."""
    count = 0
    for text in read_file(path):
        # A text of megabytes need not become tokens to its end.
        for begin in range(0, len(text), PIECE_CHARS):
            count += len(encode(text[begin : begin + PIECE_CHARS]))
            if count >= MIN_TOKENS:
                return
    raise InputError("calibration_short", file=printable(str(path)), count=count, needed=MIN_TOKENS)


def row_tokens(config: Mapping[str, object]) -> int:
    """How long a row of calibration is for a model with this config.json."""
    longest = text_config(config).get("max_position_embeddings")
    return min(ROW_TOKENS, longest) if is_whole(longest) and longest > 1 else ROW_TOKENS


def make_rows(sets: Sequence[Sequence[str]], encode: Encode, length: int, num_rows: int) -> list[list[int]]:
    """At most `num_rows` rows of `length` tokens, as many of each kind as there are of the others, as far as each goes.

    A kind's texts follow one another; the last row of a kind may be shorter.
    """
    kinds = [_rows(texts, encode, length) for texts in sets]
    # One row of each in turn: a kind that ends leaves its place to the others.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return list(itertools.islice((row for row in turns if row), num_rows))


def _rows(texts: Iterable[str], encode: Encode, length: int) -> Iterator[list[int]]:
    row: list[int] = []
    for text in texts:
        row += encode(text)
        while len(row) >= length:
            yield row[:length]
            row = row[length:]
    # What is left may be too short to be of use.
    if len(row) >= min(32, length):
        yield row


def _read(name: str) -> str:
    path = ROOT / name
    return path.read_text("utf-8") if os.path.isfile(path) else ""


def _sentences(language: str) -> Iterator[str]:
    """Every longer sentence of the program's pages, without the places where values go."""

    def walk(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for one in value.values():
                yield from walk(one)
        elif isinstance(value, str) and len(value) > 20:
            yield re.sub(r"\{(\w+)[^}]*\}", r"\1", value)

    yield from walk(json.loads(_read(f"locales/{language}.json") or "{}"))


def _paragraphs(sentences: Iterable[str]) -> list[str]:
    found = list(sentences)
    return ["\n".join(found[begin : begin + 12]) for begin in range(0, len(found), 12)]
