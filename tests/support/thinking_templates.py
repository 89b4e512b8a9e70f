"""Chat templates of models that think, in the kinds that their families have: small, and written for the tests."""

from __future__ import annotations

_ROLE = "<|im_start|>{{ m.role }}\n"
_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# Past thoughts come by a field or in the text; those after the last question stay.
QWEN3 = (
    "{% set n = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set c = m.content %}{% set r = '' %}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content is string %}{% set r = m.reasoning_content %}"
    "{% elif '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{% endif %}"
    + _ROLE
    + "{% if r and loop.index0 > n.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n{% endfor %}"
    + _OPEN
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The thought is begun in the generation prompt; what it was is cut off.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}"
    "<A>{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
# Begins a thought or ends one that was never begun.
DEEPSEEK_V31 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A></think>{{ m.content.split('</think>', 1)[-1] }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<A>{% if thinking %}<think>{% else %}</think>{% endif %}"
    "{% endif %}"
)
EXAONE4 = (
    "{% for m in messages %}[|{{ m.role }}|]"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "[|endofturn|]\n{% endfor %}{% if add_generation_prompt %}[|assistant|]\n"
    "{% if enable_thinking is defined and enable_thinking is true %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GLM45 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'user' %}{{ m.content }}"
    "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
    "{% else %}<think></think>\n{{ m.content.split('</think>')[-1].strip() }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"
)
GRANITE33 = (
    "{% if thinking %}<|system|>Thoughts in <think></think>, then <response></response>.\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GRANITE32 = GRANITE33.replace(
    "in <think></think>, then <response></response>.",
    "after 'Here is my thought process:', then 'Here is my response:'.",
)
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|im_start|>system\nReasoning Mode: {{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    "{% for m in messages %}"
    + _ROLE
    + "{{ m.content }}<|im_end|>\n{% endfor %}"
    + _OPEN
    + "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
HUNYUAN = (
    "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A>{% set c = m.content %}"
    "{% if '<answer>' in c %}{% set c = c.split('<answer>')[-1].split('</answer>')[0] %}"
    "{% elif '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n"
    "{% endif %}{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for part in m.content.split('<channel|>') %}{{ part.split('<|channel>')[0] | trim }}{% endfor %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
# The thought before the last answer stays, that before an earlier one goes.
GPT_OSS = (
    "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort }}<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Every thought stays.
SEED_OSS = (
    "{% for m in messages %}<seed:bos>{{ m.role }}\n"
    "{% if m.reasoning_content is defined and m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>"
    "{% endif %}{{ m.content }}<seed:eos>{% endfor %}{% if add_generation_prompt %}<seed:bos>assistant\n{% endif %}"
)
MAGISTRAL = (
    "<s>[SYSTEM_PROMPT]First draft your thinking: [THINK]your thoughts[/THINK][/SYSTEM_PROMPT]{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
