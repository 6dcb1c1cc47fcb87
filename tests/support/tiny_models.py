"""Tiny models with random weights, one an architecture, whose logits are spread enough that no two tokens tie."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB = 120
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **TOKENS,
}

BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**LLAMA_LIKE, sliding_window=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**LLAMA_LIKE, head_dim=8, sliding_window=8, final_logit_softcapping=5.0)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**LLAMA_LIKE, logit_scale=0.25)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128, **TOKENS)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            **TOKENS,
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4, **TOKENS)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, state_size=8, **TOKENS)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **TOKENS
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            **TOKENS,
        )
    ),
}
DECODER_ONLY = [name for name in BUILDERS if name not in ("t5", "bart")]
ENCODER_DECODER = ["t5", "bart"]


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model in float32, eval mode; weights scaled up so that it has opinions, which fresh ones do not."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in parameter_name:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = None  # random models end at random; tests that want an end set one
    return model


def sharper_model(name: str, seed: int = 0, times: float = 3.0) -> PreTrainedModel:
    """A random model whose logits are so many times as wide: few tokens are plausible, in some steps one alone."""
    model = tiny_model(name, seed)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(times * head.weight.detach())  # untied from the embeddings
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: w3 w4 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0", eos_token="w2")


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, and words that no text divides: of text joined without spaces, as stop strings need it."""
    from tokenizers import Tokenizer, decoders, models

    texts = [f"<{i}>" for i in range(3)] + [chr(ord("a") + i) for i in range(26)] + [f"W{i}." for i in range(29, VOCAB)]
    letters = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, [], unk_token="<0>"))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<0>", pad_token="<0>", eos_token="<2>")


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids of a shape, from a seed."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def random_prompt(length: int, seed: int) -> list[int]:
    """Token ids from 3 on."""
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """The prompts as one batch for ``generate``."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}
