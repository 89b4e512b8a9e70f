"""The usual GPUs, to plan for one before it is there, from core/gpu/known_gpus.csv."""

from __future__ import annotations

import csv
import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.common.errors import InputError

TABLE = Path(__file__).with_name("known_gpus.csv")

READ_LENGTH = 200
QUOTED_LENGTH = 60
NUM_SUGGESTIONS = 3
SPELLED_ALIKE = 0.6
# The box says 48 GB, tools say 46 or 45: a size this near is meant. The sizes of one GPU differ by more.
SIZE_TOLERANCE = 0.07
# "2x A40", "2 × RTX 4090": so many cards of one kind.
COUNTED = re.compile(r"\s*([1-8])\s*[x×*]\s*(?=\S)", re.IGNORECASE)
USUAL = ("RTX 3060 12GB", "RTX 4090", "A40")

# Words that tell no GPU from another.
NOISE = frozenset("nvidia geforce rtx gtx tesla quadro gpu gpus graphics card edition generation nvlink".split())
ECC_OFF = re.compile(r"\b(?:non|no|without)[\s_-]*ecc\b|\becc[\s:=_-]*(?:off|disabled)\b")
ECC_ON = re.compile(r"\becc(?:[\s:=_-]*(?:on|enabled))?\b")
SIZE = re.compile(r"(?<![a-z0-9.])(\d{1,3})\s*(?:gib|gb|g)(?![a-z0-9])")
FORM = re.compile(r"(?<![a-z])(pci-?e|sxm|nvl)\d?(?![a-z0-9])")
MEMORY_KIND = re.compile(r"(?<![a-z])(?:hbm|gddr)\d[a-z]?(?![a-z0-9])")
WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """A GPU as one can buy or rent it, in one size and with one ECC setting.

    `total_mib` is what NVML reports; `total_from` says how that is known (seen, once or computed).
    `ecc` is None where ECC takes no memory from the GPU. `bandwidth_gb_s` is NVIDIA's peak in 10^9 bytes/s.
    """

    name: str
    nvml_names: tuple[str, ...]
    memory_gb: int
    ecc: bool | None
    form: str
    total_mib: int
    total_from: str
    bandwidth_gb_s: float
    compute_capability: tuple[int, int]
    is_rare: bool
    also: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wish:
    """A GPU as somebody wrote it: the words that name it, in any order, and what was said besides."""

    words: tuple[str, ...]
    memory_gb: int | None
    ecc: bool | None
    form: str


@cache
def known_gpus() -> tuple[KnownGpu, ...]:
    """All GPUs of the table, in its order: GeForce, laptops, data centre and workstation."""
    lines = TABLE.read_text("utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    return tuple(_known_gpu(row) for row in rows)


def lookup(text: str) -> KnownGpu:
    """The GPU that `text` names, as people write it: "A40", "rtx3060 12g", "4090", "NVIDIA A100-SXM4-80GB".

    Where a GPU comes in two sizes, or with ECC on or off, the one with less memory counts unless said.
    Raises InputError "unknown_gpu", with the nearest names, where there is no such GPU.
    """
    return min(_meant(text), key=lambda gpu: (gpu.total_mib, gpu.bandwidth_gb_s))


def split_count(text: str) -> tuple[int, str]:
    """How many cards `text` asks for, and which: (2, "A40") of "2x A40"."""
    found = COUNTED.match(text)
    return (int(found[1]), text[found.end() :]) if found else (1, text)


def also_meant(text: str) -> tuple[KnownGpu, ...]:
    """The other cards that `text` names as well as the one that lookup() takes: of another size or form.

    Those with ECC on or off are left out: it is one card. Raises as lookup() does.
    """
    taken, others = lookup(text), dict[tuple[int, str], KnownGpu]()
    for gpu in sorted(_meant(text), key=lambda gpu: gpu.total_mib):
        if (gpu.memory_gb, gpu.form) != (taken.memory_gb, taken.form):
            others.setdefault((gpu.memory_gb, gpu.form), gpu)
    return tuple(others.values())


def _meant(text: str) -> list[KnownGpu]:
    plain = _plain(text)
    wish = _wish(plain)
    named = _by_nvml_name().get(plain.removeprefix("nvidia "))
    gpus = named or [gpu for gpu in _by_words().get(wish.words, ()) if _fits(gpu, wish)]
    usual = [gpu for gpu in gpus if wish.ecc or not gpu.is_rare]
    if not usual:
        raise InputError("unknown_gpu", name=text.strip()[:QUOTED_LENGTH], near=", ".join(_near(plain, wish)))
    return usual


def _known_gpu(row: dict[str, str]) -> KnownGpu:
    major, minor = row["capability"].split(".")
    return KnownGpu(
        name=row["name"],
        nvml_names=tuple(row["nvml"].split("|")),
        memory_gb=int(row["memory_gb"]),
        ecc={"on": True, "off": False, "": None}[row["ecc"]],
        form=row["form"],
        total_mib=int(row["total_mib"]),
        total_from=row["total_from"],
        bandwidth_gb_s=float(row["bandwidth_gb_s"]),
        compute_capability=(int(major), int(minor)),
        is_rare=row["rare"] == "yes",
        also=tuple(filter(None, row["also"].split("|"))),
    )


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text[:READ_LENGTH]).lower().split())


@cache
def _by_nvml_name() -> dict[str, tuple[KnownGpu, ...]]:
    gpus: dict[str, tuple[KnownGpu, ...]] = {}
    for gpu in known_gpus():
        for name in gpu.nvml_names:
            key = _plain(name).removeprefix("nvidia ")
            gpus[key] = (*gpus.get(key, ()), gpu)
    return gpus


@cache
def _by_words() -> dict[tuple[str, ...], tuple[KnownGpu, ...]]:
    gpus: dict[tuple[str, ...], tuple[KnownGpu, ...]] = {}
    for gpu in known_gpus():
        for words in {_wish(_plain(name)).words for name in (gpu.name, *gpu.nvml_names, *gpu.also)}:
            gpus[words] = (*gpus.get(words, ()), gpu)
    return gpus


def _wish(plain: str) -> _Wish:
    is_off, is_on = ECC_OFF.search(plain), ECC_ON.search(plain)
    size, form = SIZE.search(plain), FORM.search(plain)
    return _Wish(
        words=tuple(sorted(_naming_words(plain))),
        memory_gb=int(size[1]) if size else None,
        ecc=False if is_off else True if is_on else None,
        form=form[1].replace("-", "") if form else "",
    )


def _naming_words(plain: str) -> list[str]:
    for said_besides in (ECC_OFF, ECC_ON, SIZE, FORM, MEMORY_KIND):
        plain = said_besides.sub(" ", plain)
    return [word for word in WORD.findall(plain) if word not in NOISE]


def _fits(gpu: KnownGpu, wish: _Wish) -> bool:
    has_size = wish.memory_gb is None or abs(wish.memory_gb - gpu.memory_gb) <= SIZE_TOLERANCE * gpu.memory_gb
    has_ecc = wish.ecc is None or gpu.ecc is None or wish.ecc == gpu.ecc
    has_form = not wish.form or not gpu.form or wish.form == gpu.form
    return has_size and has_ecc and has_form


def _near(plain: str, wish: _Wish) -> list[str]:
    """Names to try instead: the same GPU in the sizes that it has, else what is spelled alike, else some."""
    same = [gpu.name for gpu in _by_words().get(wish.words, ()) if not gpu.is_rare]
    spellings = {"".join(_naming_words(_plain(gpu.name))): gpu.name for gpu in reversed(known_gpus())}
    alike = difflib.get_close_matches("".join(_naming_words(plain)), spellings, NUM_SUGGESTIONS, SPELLED_ALIKE)
    return same[:NUM_SUGGESTIONS] or [spellings[spelling] for spelling in alike] or list(USUAL)
