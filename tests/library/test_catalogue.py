"""The catalogue against what is published of these repositories, and the many ways in which people name them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError, InputError
from core.common.paths import ROOT
from core.hub.address import Address, check_address, parse_address
from core.library.catalogue import CatalogueEntry, checkpoint, entries, find
from core.memory.model_shape import read_shape

CHAT = "TheBloke/Llama-2-70B-Chat-GPTQ"
ENTRIES = entries()


def name_of(entry: CatalogueEntry) -> str:
    return entry.name


def header_bytes(checkpoint: Checkpoint) -> int:
    """The length of the header that safetensors writes for these tensors: compact JSON, padded to 8 bytes."""
    begin = min(tensor.begin for tensor in checkpoint.tensors.values())
    header = {
        name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.begin - begin, tensor.end - begin],
        }
        for name, tensor in checkpoint.tensors.items()
    }
    return -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8


# What is known -------------------------------------------------------------------------------------------------------


def test_all_six_repositories_have_their_branches() -> None:
    counts = {repo: [entry.repo for entry in ENTRIES].count(repo) for repo in {entry.repo for entry in ENTRIES}}
    assert counts == {
        "TheBloke/Llama-2-7B-GPTQ": 4,
        "TheBloke/Llama-2-7B-Chat-GPTQ": 4,
        "TheBloke/Llama-2-13B-GPTQ": 8,
        "TheBloke/Llama-2-13B-chat-GPTQ": 8,
        "TheBloke/Llama-2-70B-GPTQ": 8,
        "TheBloke/Llama-2-70B-Chat-GPTQ": 8,
    }
    assert len({entry.name for entry in ENTRIES}) == 40


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_the_tensors_and_their_header_are_the_files_size_to_the_byte(entry: CatalogueEntry) -> None:
    found = checkpoint(entry)
    assert 8 + header_bytes(found) + found.size_bytes == entry.file_bytes


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_the_size_is_the_published_one_to_the_printed_digit(entry: CatalogueEntry) -> None:
    assert f"{entry.file_bytes / 1e9:.2f} GB" == entry.published


def test_the_one_size_that_was_published_in_bytes_is_met_exactly() -> None:
    """The first model card of the chat repository printed 35332232264.00 GB by mistake."""
    assert find(CHAT).file_bytes == 35_332_232_264
    assert header_bytes(checkpoint(find(CHAT))) == 345_152


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_a_branchs_name_says_what_its_quantization_is(entry: CatalogueEntry) -> None:
    quantization = entry.quantization
    if entry.branch != "main":
        named = f"gptq-{quantization.bits}bit-{quantization.group_size}g-actorder_{quantization.is_permuted}"
        assert entry.branch == named
    assert checkpoint(entry).quantization == quantization


def test_the_main_branches_are_quantized_as_their_cards_say() -> None:
    labels = {entry.repo: entry.quantization.label for entry in ENTRIES if entry.branch == "main"}
    assert {labels.pop("TheBloke/Llama-2-70B-GPTQ"), labels.pop(CHAT)} == {"4 bit, no groups, act-order"}
    assert set(labels.values()) == {"4 bit, group 128"}


@pytest.mark.parametrize(
    ("text", "parameters", "kv_heads"),
    [
        ("Llama-2-7B-GPTQ", 6_476_005_376, 32),
        ("Llama-2-13B-GPTQ", 12_687_769_600, 40),
        ("Llama-2-70B-GPTQ", 68_451_041_280, 8),
    ],
)
def test_every_entry_has_the_shapes_of_llama_2(text: str, parameters: int, kv_heads: int) -> None:
    found = checkpoint(find(text))
    shape = read_shape(found)
    assert sum(matrix.in_features * matrix.out_features * count for matrix, count in shape.matrices) == parameters
    heads = [(one.num_kv_heads, one.head_dim) for one in shape.attentions]
    assert (heads, shape.vocabulary) == ([(kv_heads, 128)], 32000)
    assert (found.max_context_tokens, found.architecture) == (4096, "LlamaForCausalLM")


def test_a_matrix_at_three_bits_has_its_packed_shape() -> None:
    tensors = checkpoint(find(CHAT, "gptq-3bit-64g-actorder_True")).tensors
    matrix = "model.layers.79.mlp.down_proj"
    assert tensors[f"{matrix}.qweight"].shape == (2688, 8192)
    assert tensors[f"{matrix}.qzeros"].shape == (448, 768)
    assert tensors[f"{matrix}.scales"].shape == (448, 8192)
    assert tensors[f"{matrix}.g_idx"].shape == (28672,)


def test_a_checkpoint_is_made_once_and_is_not_on_disk() -> None:
    found = checkpoint(find(CHAT))
    assert checkpoint(find("llama-2-70b-chat-gptq")) is found
    assert found.name == CHAT
    with pytest.raises(CheckpointError) as caught:
        print(found.folder)
    assert (caught.value.key, caught.value.params) == ("not_on_disk", {"name": CHAT})


def test_the_catalogue_is_answered_without_an_http_client_or_torch() -> None:
    code = "import sys, core.library.catalogue as c; c.checkpoint(c.find('Llama-2-70B-GPTQ')); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"httpx2", "huggingface_hub", "yaml", "torch", "numpy", "asyncio"} & set(modules.split())


# How it is found -----------------------------------------------------------------------------------------------------

BRANCH = "gptq-4bit-32g-actorder_True"


@pytest.mark.parametrize(
    "text",
    [
        "TheBloke/Llama-2-70B-Chat-GPTQ",
        "TheBloke/Llama-2-70B-chat-GPTQ",
        "thebloke/llama-2-70b-CHAT-gptq",
        "Llama-2-70B-chat-GPTQ",
        "  Llama-2-70B-chat-GPTQ/ \n",
        "TheBloke/Llama-2-70B-chat-GPTQ:main",
        "https://huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ",
        "https://huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ/",
        "http://hf.co/TheBloke/Llama-2-70B-Chat-GPTQ?library=transformers#model",
        "huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ",
        "https://hf-mirror.com/TheBloke/Llama-2-70B-Chat-GPTQ/tree/main",
        "https://huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ/blob/main/config.json",
        "https://huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ.git",
        "https://huggingface.co/TheBloke/Llama-2-70B-Chat-GPTQ/discussions/5",
    ],
)
def test_a_repository_is_found_as_people_write_it(text: str) -> None:
    assert find(text).name == CHAT


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        (CHAT, BRANCH),
        (CHAT, BRANCH.upper()),
        (f"{CHAT}:{BRANCH}", None),
        (f"Llama-2-70B-chat-GPTQ : {BRANCH}", None),
        (f"{CHAT}:{BRANCH}", BRANCH),
        (f"https://huggingface.co/{CHAT}/tree/{BRANCH}", None),
        (f"https://huggingface.co/{CHAT}/resolve/{BRANCH}/model.safetensors?download=true", BRANCH),
    ],
)
def test_a_branch_is_found_as_people_write_it(text: str, revision: str | None) -> None:
    entry = find(text, revision)
    assert (entry.name, entry.quantization.group_size) == (f"{CHAT}:{BRANCH}", 32)


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_every_entry_is_found_by_its_own_name(entry: CatalogueEntry) -> None:
    assert find(entry.name) is entry


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("TheBloke/Llama-2-7B-GPQT", "TheBloke/Llama-2-7B-GPTQ"),
        ("Llama 2 70B chat", CHAT),
        ("meta-llama/Llama-2-13b-chat-hf", "TheBloke/Llama-2-13B-chat-GPTQ"),
    ],
)
def test_an_unknown_repository_is_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        find(text)
    assert caught.value.key == "unknown_catalogue"
    assert str(caught.value.params["near"]).split(", ")[0] == near


@pytest.mark.parametrize("text", ["", ":", "/", "?", "https://", "http://[::1", "a" * 100_000, "\ud800", "TheBloke"])
def test_what_names_nothing_is_refused_in_words_that_can_be_shown(text: str) -> None:
    with pytest.raises(InputError) as caught:
        find(text)
    assert len(str(caught.value).encode()) < 1000


def test_another_owners_repository_of_the_same_name_is_not_taken_for_it() -> None:
    with pytest.raises(InputError):
        find("somebody/Llama-2-70B-Chat-GPTQ")


def test_an_unknown_branch_is_answered_with_the_nearest_of_its_repository() -> None:
    with pytest.raises(InputError) as caught:
        find(CHAT, "gptq-3bit-128g")
    assert caught.value.key == "unknown_branch"
    near = str(caught.value.params["near"]).split(", ")
    assert near[:2] == ["gptq-3bit-128g-actorder_True", "gptq-3bit-128g-actorder_False"]


def test_two_different_branches_are_a_contradiction() -> None:
    with pytest.raises(InputError) as caught:
        find(f"{CHAT}:{BRANCH}", "main")
    assert (caught.value.key, caught.value.params) == ("two_revisions", {"first": BRANCH, "second": "main"})


def test_an_address_on_the_hub_is_taken_apart() -> None:
    assert parse_address("https://hf.co/a/b/tree/refs%2Fpr%2F1") == Address("a/b", "refs/pr/1")
    assert parse_address("a/b:refs/pr/1") == Address("a/b", "refs/pr/1")
    assert parse_address("https://huggingface.co/a/b/tree/feature/a") == Address("a/b", "feature/a")
    assert parse_address("https://hf.co/a/b/tree/feature/a/?x=1#y") == Address("a/b", "feature/a")
    assert parse_address("https://hf.co/a/b/commits/feature/a") == Address("a/b", "feature/a")
    assert parse_address("https://hf.co/a/b/blob/feature/a/config.json") == Address("a/b", "feature/a")
    assert parse_address("https://hf.co/a/b/resolve/main/more/config.json?download=true") == Address("a/b", "main")
    assert parse_address("https://hf.co/a/b/tree/main/more") == Address("a/b", "main")
    assert parse_address(f"https://hf.co/a/b/commit/{'0a' * 20}") == Address("a/b", "0a" * 20)
    assert parse_address("https://hf.co/a/b/discussions/1") == Address("a/b", "main")
    assert parse_address("https://hf.co/a/b.git") == Address("a/b", "main")
    assert str(parse_address("gpt2")) == "gpt2"


@pytest.mark.parametrize("repo", ["", "a/b/c", "../b", "a/..", "a b", "a/b?x", "a/b#x", "-a/b", "模型/b", "a" * 300])
def test_what_can_be_no_repository_is_refused_before_anybody_is_asked(repo: str) -> None:
    with pytest.raises(InputError) as caught:
        check_address(Address(repo, "main"))
    assert caught.value.key == "repo_name"


@pytest.mark.parametrize("revision", ["", ".", "..", "a b", "a\nb", "a\0", "r" * 300])
def test_what_can_be_no_branch_is_refused_before_anybody_is_asked(revision: str) -> None:
    with pytest.raises(InputError) as caught:
        check_address(Address("a/b", revision))
    assert caught.value.key == "revision_name"
