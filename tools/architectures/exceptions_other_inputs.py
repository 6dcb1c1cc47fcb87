"""Fields with special small values in models with other inputs than the text before."""

from __future__ import annotations

from typing import Any

__all__ = ["OTHER_INPUTS"]

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}  # of 4 pairs, half a head of 8

OTHER_INPUTS: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 3, "IMGIMGAAAA": 4}},
    "cosmos3_edge_text": {"rope_parameters": MROPE},
    "emu3": {"vocabulary_map": {"<image>": 3, "<|visual token 000000|>": 4, "<|extra_200|>": 5}},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 24], "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
    },
    "florence_vision": {
        "embed_dim": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2), "num_groups": (2, 2, 2, 2), "depths": (1, 1, 1, 1),
        "patch_size": (7, 3, 3, 3), "projection_dim": 32,
    },
    "granite_docling_vision": {"out_hidden_size": 32},
    "glm46v_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
    "glm4v_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
    "glm_ocr_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
    "pix2struct_text_model": {"hidden_size": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2},
    "gemma3": {"mm_tokens_per_image": 4},
    "hunyuan_vl_text": {"rope_parameters": MROPE},
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "qwen2_5_omni_text": {"rope_parameters": MROPE},
    "qwen2_5_vl_text": {"rope_parameters": MROPE},
    "qwen2_5_vl_vision": {"out_hidden_size": 32, "depth": 2, "fullatt_block_indexes": [1]},
    "qwen2_vl_text": {"rope_parameters": MROPE},
    "qwen2_vl_vision": {"embed_dim": 32, "hidden_size": 32, "depth": 2, "mlp_ratio": 2},
    "inkling2_vision": {"text_hidden_size": 32},
    "siglip_vision_model": {"image_size": 28, "patch_size": 14},
    "udop": {"num_decoder_layers": 2},
    "fsmt": {"src_vocab_size": 128, "tgt_vocab_size": 128},
    "kosmos_2_text_model": {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "kosmos_2_5_text_model": {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "idefics_vision": {"embed_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
}  # fmt: skip
