"""Folders of tiny models whose tokens are words, w0 to w29, for tests of commands."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(30))]
PROMPT = "w1 w2 w3 w1 w2 w3"
CONTEXT = 48


def tokenizer_of(words, **more):
    """One token a word, of which "<unk>" and "</s>" are two; ``more`` goes to the tokenizer."""
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>", unk_token="<unk>", **more)


def save(model, folder, **tokenizer):
    """Write a model of ``WORDS`` and its tokenizer; return the folder's name."""
    model.save_pretrained(folder)
    tokenizer_of(WORDS, **tokenizer).save_pretrained(folder)
    return str(folder)


def llama():
    """A model of ``WORDS``, with ``CONTEXT`` tokens of context, that never ends."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
