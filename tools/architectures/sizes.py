"""Sizes of tiny models, by the names of configuration fields."""

from __future__ import annotations

from typing import Any

__all__ = ["SMALL", "VOCAB", "WINDOW"]

VOCAB = 128
WINDOW = 8  # tokens; prompts are longer, so that a window that is not applied is noticed

_WIDTH = {"hidden_size": 32, "d_model": 32, "n_embd": 32, "embedding_size": 32, "word_embed_proj_dim": 32}
_INNER = {
    "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48, "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24, "expert_ffn_hidden_size": 24, "intermediate_size_mlp": 48, "dim_ff": 48,
    "dff": 48, "d_inner": 48, "feed_forward_size": 48, "dense_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 24,
}  # fmt: skip
_HEADS = {
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "kv_n_heads": 2,
    "head_dim": 8, "kv_channels": 8, "dim_head": 8, "d_head": 8, "attention_head_size": 8,
}  # fmt: skip
_DEPTH = {
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 2, "encoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_top_k": 2, "moe_k": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "zero_expert_num": 2,
}  # fmt: skip
_LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16,
    "v_head_dim": 8, "index_head_dim": 8, "index_topk": 6, "o_lora_rank": 8, "o_groups": 2,
    # As many as in the real ones: a key's score is a sum over these heads of what is above zero, so that with two a
    # fourth of all keys tie at zero, and which of them is chosen hangs on how many there are.
    "index_n_heads": 32,
}  # fmt: skip
_RECURRENT = {
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "mamba_expand": 2, "state_size": 8, "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
    "chunk_size": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_head_dim": 8, "linear_num_heads": 4, "n_mamba_heads": 2, "mamba_ngroups": 1,
    "mamba_headdim": 16, "lru_width": 32,
}  # fmt: skip
_WINDOWS = {
    "sliding_window": WINDOW, "sliding_window_size": WINDOW, "window_size": WINDOW, "attention_window_size": WINDOW,
    "attention_chunk_size": WINDOW, "local_attention": WINDOW, "keep_window_size": WINDOW,
    "local_attention_window_len": WINDOW, "use_sliding_window": True, "max_window_layers": 2,
}  # fmt: skip
_VOCABULARY = {
    "vocab_size": VOCAB, "decoder_vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "unpadded_vocab_size": VOCAB,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
_POSITIONS = {
    "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_target_positions": 128,
    "max_source_positions": 64, "rotary_dim": 4, "context_length": 128, "max_seq_len": 128,
    "floor_scale": 4, "logit_scale": 0.5, "log_scaling_n_floor": 4, "original_max_position_embeddings": 128,
    "router_hidden_size": 16,
}  # fmt: skip
_ROLE = {"is_decoder": True, "is_encoder_decoder": False, "use_cache": True, "dropout": 0.0}

SMALL: dict[str, Any] = (
    _WIDTH | _INNER | _HEADS | _DEPTH | _EXPERTS | _LATENT | _RECURRENT | _WINDOWS | _VOCABULARY | _POSITIONS | _ROLE
)
