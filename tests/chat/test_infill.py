"""Prompts for what stands between two texts."""

from __future__ import annotations

from core.chat.infill import FORMATS, find_infill_format


def test_a_vocabulary_tells_the_format() -> None:
    qwen = find_infill_format({"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|im_end|>"})
    assert qwen is not None
    assert qwen.prompt("def f(", "return x") == "<|fim_prefix|>def f(<|fim_suffix|>return x<|fim_middle|>"
    codestral = find_infill_format({"[SUFFIX]", "[PREFIX]"})
    assert codestral is not None and codestral.prompt("a{b}", "c") == "[SUFFIX]c[PREFIX]a{b}"
    assert find_infill_format({"<|fim_prefix|>", "<|im_end|>"}) is None


def test_each_format_is_found_by_its_own_tokens() -> None:
    for one in FORMATS:
        assert find_infill_format(one.tokens) is one
        assert one.prompt("", "") == "".join(one.tokens)
