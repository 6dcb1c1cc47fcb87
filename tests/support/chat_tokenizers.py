"""Small tokenizers with chat templates of every kind in use: where a system message goes, and how turns are marked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB = 500

TEXT = """The keeper of the lighthouse wrote down every ship that passed. Nobody in the valley knew why the river ran
backwards in March, and nobody asked. You are a careful assistant. Answer with what is true only.
Le phare est loin; die Brücke ist alt. 1984, 2026! What does the bear eat? It eats fish, (mostly) on Mondays."""

# Turns between special tokens. The second has a default system message, the third a date before any system message.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a careful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
HEADERS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|im_start|>system<|im_end|>\n\nToday: 26 Jul 2024\n\n' + system + '<|end|>' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>\n\n' + m.content | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
# The system message inside the first user's turn, whose marks are ordinary text.
INSTRUCTIONS = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Marks that are neither special nor alone in their line.
PLAIN_MARKS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (system | default('') if loop.first else '') + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
MERGED = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}" + TURNS
)
# The system message before the last user's message.
LAST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

# By name: the template, and whether a conversation with a system message is a prompt of it.
TEMPLATES = {
    "chatml": (CHATML, True),
    "default-system": (DEFAULT_SYSTEM, True),
    "headers": (HEADERS, True),
    "instructions": (INSTRUCTIONS, True),
    "plain-marks": (PLAIN_MARKS, True),
    "merged": (MERGED, True),
    "no-system": (NO_SYSTEM, False),
    "last": (LAST, False),
}
KINDS = ("bytes", "metaspace")


def _lines() -> Iterator[str]:
    yield from TEXT.splitlines()


@functools.cache
def _trained(kind: str) -> str:
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # as sentencepiece has it: a mark for spaces, bytes for what is unknown, one before the text
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = list("[]/<>|" + "".join(chr(code) for code in range(33, 127)))
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|end|>"]
    tokens = special + ([f"<0x{byte:02X}>" for byte in range(256)] if kind == "metaspace" else [])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    return str(tokenizer.to_str())


def chat_tokenizer(template: str | None, kind: str = "bytes") -> Any:
    """A tokenizer of at most ``VOCAB`` tokens with a template of ``TEMPLATES``; None for none."""
    tokenizer = Tokenizer.from_str(_trained(kind))
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        padding_side="left",
    )  # fmt: skip
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken(name) for name in ("<|im_start|>", "<|im_end|>", "<|end|>")]}
    )
    made.chat_template = None if template is None else TEMPLATES[template][0]
    return made
