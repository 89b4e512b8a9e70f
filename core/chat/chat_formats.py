"""The formats of chats that checkpoints of 2023 were trained on without a template in their files.

Sources: each model's own card or code, and FastChat's `conversation.py` for Vicuna, Alpaca and their like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoint.headers import read_json
from core.common.errors import CheckpointError

Frame = tuple[str, str]
HELPFUL = "gives helpful, detailed, and polite answers to the user's questions."
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What stands before and after the words of each speaker. An answer begins without the frame's last space.

    `begin` is the text before everything, or before each question where `begins_each`. `system` holds where nothing
    else is told. With `is_system_asked` the first question holds the system text, as in Llama-2. `stop` ends an answer.
    """

    name: str
    user_frame: Frame
    assistant_frame: Frame
    system_frame: Frame = ("", "\n\n")
    system: str = ""
    begin: str = ""
    begins_each: bool = False
    is_system_asked: bool = False
    stop: tuple[str, ...] = ()
    # Of a checkpoint's name: this format's.
    pattern: re.Pattern[str] | None = field(default=None, compare=False)

    @property
    def source(self) -> str:
        """The format as a chat template."""
        return _ASKED.format(**self._texts()) if self.is_system_asked else _TOLD.format(**self._texts())

    def _texts(self) -> dict[str, str]:
        texts = {
            "begin": "" if self.begins_each else self.begin,
            "begin_turn": self.begin if self.begins_each else "",
            "system": self.system,
            "open": self.assistant_frame[0].rstrip(" "),
        }
        for name, frame in (("s", self.system_frame), ("u", self.user_frame), ("a", self.assistant_frame)):
            texts |= {f"{name}0": frame[0], f"{name}1": frame[1]}
        return {name: json.dumps(text) for name, text in texts.items()}


# A system text has a frame of its own before the first question.
_TOLD = (
    "{{{{ {begin} }}}}{{% if messages and messages[0]['role'] != 'system' and {system} %}}"
    "{{{{ {s0} + {system} + {s1} }}}}{{% endif %}}"
    "{{% for m in messages %}}"
    "{{% if m['role'] == 'system' %}}{{% if m['content'] | trim %}}{{{{ {s0} + m['content'] | trim + {s1} }}}}"
    "{{% endif %}}"
    "{{% elif m['role'] == 'user' %}}{{{{ {u0} + m['content'] | trim + {u1} }}}}"
    "{{% else %}}{{{{ {a0} + m['content'] | trim + {a1} }}}}{{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ {open} }}}}{{% endif %}}"
)
# The system text is the beginning of the first question; a greeting answers one without words.
_ASKED = (
    "{{{{ {begin} }}}}{{% set n = namespace(head='', is_first=true) %}}"
    "{{% for m in messages if m['role'] == 'system' %}}{{% if m['content'] %}}"
    "{{% set n.head = n.head + m['content'] %}}{{% endif %}}{{% endfor %}}"
    "{{% if n.head %}}{{% set n.head = {s0} + n.head + {s1} %}}{{% endif %}}"
    "{{% for m in messages if m['role'] != 'system' %}}"
    "{{% if m['role'] == 'user' %}}"
    "{{{{ {begin_turn} + {u0} + (n.head + m['content']) | trim + {u1} }}}}{{% set n.head = '' %}}"
    "{{% else %}}{{% if n.is_first %}}{{{{ {begin_turn} + {u0} + n.head | trim + {u1} }}}}{{% set n.head = '' %}}"
    "{{% endif %}}{{{{ {a0} + m['content'] | trim + {a1} }}}}{{% endif %}}"
    "{{% set n.is_first = false %}}{{% endfor %}}"
)


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_IM: Mapping[str, Any] = {
    "system_frame": ("<|im_start|>system\n", "<|im_end|>\n"),
    "user_frame": ("<|im_start|>user\n", "<|im_end|>\n"),
    "assistant_frame": ("<|im_start|>assistant\n", "<|im_end|>\n"),
    "stop": ("<|im_end|>", "<|im_start|>"),
}
# In the order in which a checkpoint's name is looked for among them.
FORMATS: tuple[ChatFormat, ...] = (
    ChatFormat("Llama-2", ("[INST] ", " [/INST]"), (" ", " </s>"), ("<<SYS>>\n", "\n<</SYS>>\n\n"), begin="<s>",
               begins_each=True, is_system_asked=True, pattern=_named(r"llama-?2.*chat|code-?llama.*instruct")),
    ChatFormat("Llama-3", ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
               ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
               ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"), begin="<|begin_of_text|>",
               stop=("<|eot_id|>",), pattern=_named(r"llama-?3.*instruct")),
    ChatFormat("Vicuna", ("USER: ", " "), ("ASSISTANT: ", "</s>"), ("", " "),
               f"A chat between a curious user and an artificial intelligence assistant. The assistant {HELPFUL}",
               "<s>", stop=("USER:", "</s>"),
               pattern=_named(r"vicuna|wizard-?lm.*(13b|30b|33b|70b)|airoboros|longchat|samantha")),
    ChatFormat("Zephyr", ("<|user|>\n", "</s>\n"), ("<|assistant|>\n", "</s>\n"), ("<|system|>\n", "</s>\n"),
               stop=("<|user|>", "</s>"), pattern=_named(r"Zephyr")),
    ChatFormat("Tulu", ("<|user|>\n", "\n"), ("<|assistant|>\n", "\n"), ("<|system|>\n", "\n"), begin="<s>",
               stop=("<|user|>", "</s>"), pattern=_named(r"Tulu")),
    ChatFormat("Phi-3", ("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "<|end|>\n"), ("<|system|>\n", "<|end|>\n"),
               stop=("<|end|>",), pattern=_named(r"phi-?3")),
    ChatFormat("OpenChat", ("GPT4 Correct User: ", "<|end_of_turn|>"), ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
               ("", "<|end_of_turn|>"), begin="<s>", stop=("<|end_of_turn|>",),
               pattern=_named(r"openchat|starling")),
    ChatFormat("ChatML", **_IM, pattern=_named(r"(^|[^a-z])yi-.*chat|openhermes|hermes-2|dolphin|orca-2|internlm2")),
    ChatFormat("Mistral", ("[INST] ", " [/INST]"), (" ", "</s>"), ("", "\n\n"), begin="<s>", is_system_asked=True,
               pattern=_named(r"mi[sx]tral.*instruct")),
    ChatFormat("Gemma", ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"), ("", "<end_of_turn>\n"),
               ("", "\n\n"), begin="<bos>", is_system_asked=True, stop=("<end_of_turn>",),
               pattern=_named(r"gemma.*-it([^a-z]|$)")),
    ChatFormat("Qwen-1", **_IM, system="You are a helpful assistant.", pattern=_named(r"qwen.*chat")),
    ChatFormat("Baichuan-2", ("<reserved_106>", ""), ("<reserved_107>", ""), ("", ""), stop=("<reserved_106>",),
               pattern=_named(r"baichuan-?2.*chat")),
    ChatFormat("Baichuan", ("<reserved_102>", ""), ("<reserved_103>", ""), ("", ""), stop=("<reserved_102>",),
               pattern=_named(r"baichuan.*chat")),
    ChatFormat("InternLM", ("<|User|>:", "<eoh>\n"), ("<|Bot|>:", "<eoa>\n"), ("<|System|>:", "\n"), begin="<s>",
               stop=("<eoa>", "<|User|>"), pattern=_named(r"internlm.*chat")),
    ChatFormat("DeepSeek Coder", ("### Instruction:\n", "\n"), ("### Response:\n", "\n<|EOT|>\n"), ("", "\n"),
               stop=("<|EOT|>", "### Instruction"), pattern=_named(r"deepseek-?coder.*instruct")),
    ChatFormat("DeepSeek", ("User: ", "\n\n"), ("Assistant: ", "<｜end▁of▁sentence｜>"),
               begin="<｜begin▁of▁sentence｜>", stop=("\nUser:",), pattern=_named(r"deepseek.*chat")),
    ChatFormat("Guanaco", ("### Human: ", "\n"), ("### Assistant: ", "\n"), ("", "\n"), begin="<s>",
               stop=("### Human",), pattern=_named(r"guanaco|openassistant|stable-?vicuna")),
    ChatFormat("Orca", ("### User:\n", "\n\n"), ("### Assistant:\n", "\n\n"), ("### System:\n", "\n\n"), begin="<s>",
               stop=("### User",), pattern=_named(r"beluga|orca|solar.*instruct")),
    ChatFormat("Alpaca", ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"), system=INSTRUCTION, begin="<s>",
               stop=("### Instruction",),
               pattern=_named(r"alpaca|wizard-?(lm|coder|math)|hermes|mythomax|chronos|platypus|stheno|alpasta")),
    ChatFormat("User: / Assistant:", ("User: ", "\n"), ("Assistant: ", "\n"), stop=("\nUser:",),
               pattern=_named(r"falcon.*instruct")),
)  # fmt: skip
BY_NAME: Mapping[str, ChatFormat] = {one.name: one for one in FORMATS}
IM_TOKENS = frozenset(("<|im_start|>", "<|im_end|>"))


def find_format(folder: Path) -> ChatFormat | None:
    """The format of the checkpoint in `folder`, by its special tokens, then by its name; None where neither tells.

    Raises CheckpointError for a file that cannot be read.
    """
    named = next((one for one in FORMATS if one.pattern is not None and one.pattern.search(folder.name)), None)
    if named is not None and named.name in ("Qwen-1", "ChatML"):
        return named
    return BY_NAME["ChatML"] if added_tokens(folder) >= IM_TOKENS else named


def added_tokens(folder: Path) -> set[str]:
    """The texts of the tokens that the tokenizer's files add to its vocabulary."""
    config = read_json(folder / "tokenizer_config.json") or {}
    found = set((read_json(folder / "added_tokens.json") or {}).keys())
    added, listed = config.get("added_tokens_decoder"), config.get("additional_special_tokens")
    found |= _contents(list(added.values()) if isinstance(added, dict) else [])
    found |= _contents(listed)
    if not found:
        with suppress(CheckpointError):  # It may be larger than what is read here.
            found |= _contents((read_json(folder / "tokenizer.json") or {}).get("added_tokens"))
    return found


def _contents(tokens: object) -> set[str]:
    found = [one.get("content") if isinstance(one, dict) else one for one in tokens] if isinstance(tokens, list) else []
    return {one for one in found if isinstance(one, str)}
