"""Tiny random models of images that the tools' shrinking cannot build, and prompts with an image for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers

from decoding.tools.architectures.reference import Prompt, prompts
from decoding.tools.architectures.tiny import scale_weights

__all__ = ["IMAGE", "image_rows", "tiny_image_model"]

IMAGE = 3  # the token that stands for an image
VOCAB = 128
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip


@functools.cache
def tiny_image_model(name: str, seed: int = 0) -> Any:
    """A random model in float32: "paligemma", "qwen2_5_vl" or "idefics3"."""
    torch.manual_seed(seed)
    if name == "paligemma":
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 14, "projection_dim": 32,
        }  # fmt: skip
        config: Any = transformers.PaliGemmaConfig(
            vision_config={"model_type": "siglip_vision_model", **vision},
            text_config={"model_type": "gemma", "head_dim": 8, **TEXT},
            image_token_id=IMAGE, projection_dim=32, hidden_size=32,
        )  # fmt: skip
        model: Any = transformers.PaliGemmaForConditionalGeneration(config)
    elif name == "qwen2_5_vl":
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1],
        }  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        config = transformers.Qwen2_5_VLConfig(
            vision_config=vision, text_config={**TEXT, "rope_parameters": rope}, image_token_id=IMAGE,
            video_token_id=4, vision_start_token_id=5, vision_end_token_id=6,
        )  # fmt: skip
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8,
        }  # fmt: skip
        config = transformers.Idefics3Config(
            vision_config=vision, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE, scale_factor=2
        )
        model = transformers.Idefics3ForConditionalGeneration(config)
    model = model.float().eval()
    scale_weights(model)
    model.generation_config.eos_token_id = None
    return model


@functools.cache
def image_rows(name: str) -> tuple[Prompt, ...]:
    """Two prompts of different lengths, with an image before each."""
    generator = torch.Generator().manual_seed(0)

    def row(text: list[int]) -> Prompt:
        if name == "qwen2_5_vl":
            inputs = {
                "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator),
                "image_grid_thw": torch.tensor([[1, 4, 4]]),
                "mm_token_type_ids": torch.tensor([[1] * 4 + [0] * len(text)]),
            }
            return Prompt([IMAGE] * 4 + text, inputs)
        size = (1, 3, 28, 28) if name == "paligemma" else (1, 1, 3, 32, 32)
        return Prompt([IMAGE] * 4 + text, {"pixel_values": torch.randn(size, generator=generator)})

    return tuple(row(prompt.text) for prompt in prompts(0))
