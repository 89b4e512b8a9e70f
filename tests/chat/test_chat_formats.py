"""Checkpoints without a template: the format by their tokens, by their name, or as a person chose it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.chat.chat_formats import BY_NAME, FORMATS, ChatFormat, find_format
from core.chat.model_prompt import choose_format, chosen_format
from core.chat.template import ChatTemplate, read_template
from core.chat.template_messages import Turn
from core.chat.turn_rendering import turn_end

SYSTEM, ASK, SAY, MORE = (
    Turn(role="system", content="Be brief."),
    Turn(role="user", content="Hi"),
    Turn(role="assistant", content="Hello"),
    Turn(role="user", content="Bye"),
)
ALL = {
    "ChatML": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
              "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "Vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "Alpaca": "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n"
              "### Response:\n",
    "Llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "Mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "Zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n"
              "<|assistant|>\n",
    "Baichuan-2": "Be brief.<reserved_106>Hi<reserved_107>Hello<reserved_106>Bye<reserved_107>",
    "OpenChat": "<s>Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello"
                "<|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
    "Gemma": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
             "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_formats_strings_are_exact(name: str) -> None:
    assert ChatTemplate(BY_NAME[name].source, "", "").render([SYSTEM, ASK, SAY, MORE]) == ALL[name]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_format_takes_every_chat_and_goes_on(form: ChatFormat) -> None:
    template = ChatTemplate(form.source, "", "")
    for turns in ([ASK], [SYSTEM, ASK], [SAY, ASK], [SYSTEM, SAY, ASK], [ASK, SAY, MORE]):
        prompt = template.render(turns)
        places = [prompt.index(turn["content"]) for turn in turns]
        assert places == sorted(places)
        opened = template.render_begun(turns, "Well, I")
        assert opened.endswith("Well, I") and opened.startswith(prompt)
    assert turn_end(template)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("TheBloke_vicuna-7B-v1.5-GPTQ", "Vicuna"),
        ("TheBloke_Llama-2-7B-Chat-GPTQ", "Llama-2"),
        ("TheBloke_CodeLlama-7B-Instruct-GPTQ", "Llama-2"),
        ("Qwen_Qwen-7B-Chat-Int4", "Qwen-1"),
        ("TheBloke_Yi-34B-Chat-GPTQ", "ChatML"),
        ("TheBloke_Baichuan2-13B-Chat-GPTQ", "Baichuan-2"),
        ("baichuan-inc_Baichuan-13B-Chat", "Baichuan"),
        ("TheBloke_Wizard-Vicuna-13B-Uncensored-GPTQ", "Vicuna"),
        ("TheBloke_WizardLM-13B-V1.2-GPTQ", "Vicuna"),
        ("TheBloke_WizardCoder-15B-1.0-GPTQ", "Alpaca"),
        ("TheBloke_Nous-Hermes-Llama2-GPTQ", "Alpaca"),
        ("TheBloke_MythoMax-L2-13B-GPTQ", "Alpaca"),
        ("TheBloke_OpenHermes-2.5-Mistral-7B-GPTQ", "ChatML"),
        ("TheBloke_Mistral-7B-Instruct-v0.1-GPTQ", "Mistral"),
        ("TheBloke_Mixtral-8x7B-Instruct-v0.1-GPTQ", "Mistral"),
        ("TheBloke_zephyr-7B-beta-GPTQ", "Zephyr"),
        ("TheBloke_openchat_3.5-GPTQ", "OpenChat"),
        ("TheBloke_guanaco-7B-GPTQ", "Guanaco"),
        ("TheBloke_StableBeluga2-70B-GPTQ", "Orca"),
        ("TheBloke_deepseek-coder-6.7B-instruct-GPTQ", "DeepSeek Coder"),
        ("TheBloke_deepseek-llm-7B-chat-GPTQ", "DeepSeek"),
        ("TheBloke_internlm-chat-7b", "InternLM"),
        ("TheBloke_falcon-7b-instruct-GPTQ", "User: / Assistant:"),
        ("TheBloke_Llama-2-7B-GPTQ", None),
        ("some-chat-7B", None),
        ("Mistral-7B-v0.1-GPTQ", None),
        ("gemma-2b", None),
    ],
)
def test_a_name_tells_the_format(tmp_path: Path, folder: str, name: str | None) -> None:
    (tmp_path / folder).mkdir()
    found = find_format(tmp_path / folder)
    assert (found.name if found else None) == name


TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
DECODER = {str(at): {"content": one} for at, one in enumerate(TOKENS)}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": DECODER},
        ),
        ("tokenizer_config.json", {"additional_special_tokens": TOKENS}),
        ("added_tokens.json", {one: at for at, one in enumerate(TOKENS)}),
        ("tokenizer.json", {"added_tokens": [{"id": 1, "content": one} for one in TOKENS]}),
    ],
)
def test_special_tokens_tell_chatml_wherever_they_stand(tmp_path: Path, file: str, content: object) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    template = read_template(tmp_path)
    assert (template.format, template.stop) == ("ChatML", ("<|im_end|>", "<|im_start|>"))
    assert template.render([ASK]).startswith("<|im_start|>user\nHi")


@pytest.mark.parametrize("content", [{"added_tokens": 5}, {"added_tokens": [5, None]}, {}])
def test_odd_lists_of_tokens_tell_nothing(tmp_path: Path, content: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert find_format(tmp_path) is None


def test_what_a_person_chose_goes_before_the_name_and_not_before_a_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    folder = tmp_path / "my-vicuna"
    folder.mkdir()
    choose_format("my-vicuna", "Alpaca")
    assert chosen_format("my-vicuna") == "Alpaca" and chosen_format("other") == ""
    assert read_template(folder, "Alpaca").format == "Alpaca" and read_template(folder, "gone").format == "Vicuna"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_template(folder, "Alpaca").format == ""


def test_a_default_system_text_gives_way_to_a_chats_own() -> None:
    vicuna = ChatTemplate(BY_NAME["Vicuna"].source, "", "")
    assert vicuna.render([ASK]).startswith("<s>A chat between a curious user")
    assert "curious" not in vicuna.render([SYSTEM, ASK])
