"""Tiny GGUF files, written as llama.cpp's converter writes them, and the models that they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXT = [
    "the old clockmaker wound the clock  at 3 and again at 12, in 1984",
    "a stubborn gardener planted 7 rows  of beans;\n\n  10 grew, it's said",
    "don't stop: the clock struck 12   times\n\t 12 more and the garden slept",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


def tokenizer_of_digits() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer like SmolLM2's, trained on a few words: each digit is a word, merges know spaces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT * 4, trainers.BpeTrainer(vocab_size=384, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[1], eos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )


def tiny_llama(vocab: int, seed: int = 0) -> PreTrainedModel:
    """A Llama with tied embeddings and two key-value heads for four."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SIZES, vocab_size=vocab, num_key_value_heads=2, max_position_embeddings=256, rope_theta=50_000.0,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return _spread(LlamaForCausalLM(config))


def tiny_gemma3(vocab: int, seed: int = 0) -> PreTrainedModel:
    """A Gemma 3 whose windows of 8 tokens are in five layers of six."""
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 7}, vocab_size=vocab, num_key_value_heads=1, head_dim=32,
        query_pre_attn_scalar=32, sliding_window=8, max_position_embeddings=256, rms_norm_eps=1e-6, bos_token_id=2,
        eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    return _spread(Gemma3ForCausalLM(config))


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    """Weights so large that no two tokens tie, also after quantisation."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn_like(weights) * (0.15 if weights.ndim > 1 else 0.2))
    return model.eval()


def write_llama(
    file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, quantised: bool = False, **metadata: Any
) -> PreTrainedModel:
    """Write a Llama; return the model that the file holds, which quantisation changes.

    Args:
        file: to write.
        model: of :func:`tiny_llama`.
        tokenizer: of :func:`tokenizer_of_digits`.
        quantised: matrices are Q8_0 in place of float32.
        metadata: further keys; None leaves a key out that is written otherwise.
    """
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    _add_sizes(writer, config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    _add_byte_level_tokenizer(writer, tokenizer, metadata)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def stored(name: str, values: np.ndarray) -> np.ndarray:
        """Query and key matrices in the order of llama.cpp's rotary embedding."""
        for part, count in heads.items():
            if part in name:
                return values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        return values

    _add_weights(writer, model, LLAMA_NAMES, stored, quantised)
    return _held(file, model, stored, LLAMA_NAMES)


def write_gemma3(file: Path, model: PreTrainedModel, tokens: list[str], **metadata: Any) -> None:
    """Write a Gemma 3 whose vocabulary is sentencepiece's, without merges, in float32; see :func:`write_llama`."""
    writer = gguf.GGUFWriter(file, "gemma3")
    config = model.config
    _add_sizes(writer, config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    control = gguf.TokenType.CONTROL
    writer.add_token_types([control if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    for name, token in (("bos", 2), ("eos", 1), ("padding", 0), ("unknown", 3)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    _add(writer, {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False, **metadata})
    _add_weights(writer, model, GEMMA_NAMES, lambda name, values: values + ("norm" in name), False)


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _add_byte_level_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, metadata: Mapping[str, Any]
) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    for name, token in (("bos", 1), ("eos", 0), ("padding", 0)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    written = {"ggml.pre": "smollm", "ggml.add_bos_token": False, "chat_template": TEMPLATE}
    _add(writer, {f"tokenizer.{name}": value for name, value in written.items()} | dict(metadata))


def _add(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for name, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_string(name, value)


LLAMA_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.": "blk.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GEMMA_NAMES = {
    **LLAMA_NAMES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def _name_in_file(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _add_weights(
    writer: gguf.GGUFWriter, model: PreTrainedModel, names: Mapping[str, str], stored: Any, quantised: bool
) -> None:
    """Write all weights but the head, which is tied to the embeddings, and close the file."""
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weights in model.named_parameters():
        values = np.ascontiguousarray(stored(name, weights.detach().numpy()), dtype=np.float32)
        if quantised and values.ndim == 2:
            writer.add_tensor(_name_in_file(name, names), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name_in_file(name, names), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _held(file: Path, model: PreTrainedModel, stored: Any, names: Mapping[str, str]) -> PreTrainedModel:
    """The model of the weights that are in a file, by gguf's own reader."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    held = type(model)(model.config).eval()
    with torch.no_grad():
        for name, weights in held.named_parameters():
            tensor = tensors[_name_in_file(name, names)]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            order = stored(name, np.arange(values.size, dtype=np.float64).reshape(values.shape)).astype(int)
            flat = np.empty(values.size, dtype=np.float32)
            flat[order.ravel()] = values.ravel()  # undo the order of the file
            weights.copy_(torch.from_numpy(flat.reshape(values.shape)))
    return held
