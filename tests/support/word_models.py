"""Folders of tiny models whose tokens are words, w0 to w29, for tests of commands."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(30))]


CONTEXT = 48


def save(model, folder, **tokenizer):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>", **tokenizer).save_pretrained(
        folder
    )
    return str(folder)


def llama():
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
