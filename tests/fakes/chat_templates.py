"""Chat templates of the shapes that families of models have, each with a tiny byte-level tokenizer to go with it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.fakes.tokenizers import corpus


@dataclass(frozen=True)
class Family:
    """A template and its special tokens.

    Attributes:
        template: Jinja.
        specials: Every special token; only ``bos`` and ``eos`` are named as such in the tokenizer.
        eos: The tokenizer's end of text (not always the end of a turn).
        end: What ends an answer.
        bos: Written by the template itself; empty where there is none.
        has_system: The template takes a system turn.
    """

    template: str
    specials: tuple[str, ...]
    eos: str
    end: str
    bos: str = ""
    has_system: bool = True


_EACH = "{% for m in messages %}"
_IM = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
_IM_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_IM_CALLS = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}"
    "{% endfor %}{% endif %}"
)
_IM_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "smollm2": Family(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        + _EACH + _IM + "{% endfor %}" + _IM_PROMPT,
        _IM_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
    "qwen2.5": Family(
        "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
        + _EACH
        + "{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
        + _IM_CALLS + "{{ '<|im_end|>\n' }}{% endfor %}"
        + _IM_PROMPT,
        _IM_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
    "qwen3": Family(
        _EACH + "{% set c = m.content %}{% if m.role == 'assistant' and not loop.last and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}" + _IM_PROMPT,
        _IM_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
    "llama3": Family(
        "{{ bos_token }}" + _EACH
        + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>",
    ),
    "mistral": Family(
        "{{ bos_token }}" + _EACH + "{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", "<s>", has_system=False,
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + _EACH + "{% set r = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + r + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>", "<bos>", has_system=False,
    ),
    "phi3": Family(
        _EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<|end|>",
    ),
    "zephyr": Family(
        _EACH + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("<s>", "</s>"), "</s>", "</s>",
    ),
    "marked": Family(
        _EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{%- generation -%}"
        "{{ m.content + '<|im_end|>' }}{%- endgeneration -%}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}" + _IM_PROMPT,
        _IM_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
    "marked-short": Family(
        _EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + _IM_PROMPT,
        _IM_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
}  # fmt: skip


# As in Llama 3 and Qwen.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def family_tokenizer(name: str) -> Any:
    """The tokenizer of a family; its padding token is its end of text."""
    family = FAMILIES[name]
    return chat_tokenizer(family.template, family.specials, family.eos, family.bos)


def chat_tokenizer(template: str | None, specials: tuple[str, ...], eos: str, bos: str = "") -> Any:
    """A transformers tokenizer with ``template``; one with ``bos`` puts it before every plain text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*corpus(), "\n\n\n\n   \n\n"], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    named = {"eos_token": eos, "pad_token": eos, **({"bos_token": bos} if bos else {})}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    made.chat_template = template
    return made
