"""Fields of single model types with special small values."""

from __future__ import annotations

from typing import Any

__all__ = ["EXCEPTIONS", "NOT_TEXT"]

# Types in the mapping that write no text by themselves.
NOT_TEXT: dict[str, str] = {
    "gemma4_assistant": "drafts from the keys and values of another model; no text by itself",
    "gemma4_unified_assistant": "drafts from the keys and values of another model; no text by itself",
    "musicgen": "writes audio codes, several a step",
    "musicgen_melody": "writes audio codes, several a step",
}

SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
GEMMA4: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
    "num_hidden_layers": 4,
    "hidden_size_per_layer_input": 8,
    "num_experts": None,
}
GEMMA3N: dict[str, Any] = {
    "layer_types": SLIDING * 2,
    "num_hidden_layers": 8,
    "num_kv_shared_layers": 4,
    "intermediate_size": 48,
    "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
}
DOTS3: dict[str, Any] = {
    "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention", "sliding_attention"],
    "per_layer_config": {
        layer: {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        }
        for layer in (1, 3)
    },
    "head_dim": 16,
}  # fmt: skip
QWEN4: dict[str, Any] = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 6,
    "indexer_compress_ratio": 2, "hc_lowrank": 8,
}  # fmt: skip

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {kind: {"rope_theta": 1e4} for kind in SLIDING},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": DOTS3,
    "deepseek_v4": {
        "layer_types": [
            "sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots3_note": {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "moe_intermediate_size": 24, "num_local_experts": 4, "adapter_in_dim": 32, "adapter_out_dim": 32,
            "mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2, "per_layer_config": {},
        },
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 32,
        },
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": {key: value for key, value in GEMMA4.items() if key != "hidden_size_per_layer_input"},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": HYBRID},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16, "H_cycles": 2, "L_cycles": 3},
    "inkling2_text": {"rel_extent": 16},
    "inkling_text": {"rel_extent": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": SLIDING, "num_attention_heads_per_layer": [4, 4, 8, 8]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 2},
    "mamba2": {"head_dim": 16},
    "mellum": {"layer_types": SLIDING},
    "minimax": {"block_size": 8},
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse", "full_attention"] * 2, "mlp_layer_types": ["sparse", "dense"] * 2,
        "index_block_size": 2, "index_topk_blocks": 3, "index_n_heads": 2,
    },
    "moshi": {"sliding_window": 128},  # as in the real one no shorter than its context, for its masks have no window
    "qwen4_exp_text": QWEN4,
    "reformer": {
        "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16), "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "num_buckets": 4, "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 128, "shape_embed_dim": 8, "shape_vocab_size": 128,
    },
    "smollm3": {"layer_types": SLIDING, "no_rope_layers": [1, 0, 1, 0]},
    "xlm": {"emb_dim": 32, "causal": True},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 8},  # its widths are multiples of 64
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"]},
}  # fmt: skip
