"""Prompts that begin with an image, for the models of images whose tiny versions take one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from decoding.tools.architectures.reference import Prompt, prompts

__all__ = ["prompts_with_images"]

MOST = 90  # tokens of an image, within the tiny models' context of 128
Form = Callable[[Any, int, torch.Generator], dict[str, Tensor]]


def prompts_with_images(model: Any) -> Callable[[int], list[Prompt]] | None:
    """A function from a seed to two prompts with an image before each; None for a model that takes none of the forms.

    An image has the form of the model's family, and as many tokens as the model's own encoder returns.
    """
    token = getattr(model.config, "image_token_id", None)
    if token is None or not hasattr(model, "get_image_features"):
        return None
    for size in _sizes(model):
        for form in (_square, _in_a_list, _patches):
            try:
                image = form(model, size, torch.Generator().manual_seed(0))
                with torch.no_grad():
                    count = _tokens(model.get_image_features(**image), model)
                    _first_logits(model, token, count, image)
            except Exception:  # another family's form, which this model's own code refuses
                continue
            if count > MOST:
                continue
            return functools.partial(_prompts, model, token, count, size, form)
    return None


def _prompts(model: Any, token: int, count: int, size: int, form: Form, seed: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Prompt([token] * count + row.text, form(model, size, generator) | _kinds(model, count, row))
        for row in prompts(seed)
    ]


def _sizes(model: Any) -> Iterator[int]:
    size = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if isinstance(size, int):
        yield size
    yield 28


def _square(model: Any, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """One image (1, 3, size, size): LLaVA, Gemma 3, PaliGemma."""
    return {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}


def _in_a_list(model: Any, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A list of one image (1, 1, 3, size, size): Idefics, SmolVLM."""
    return {"pixel_values": torch.randn(1, 1, 3, size, size, generator=generator)}


def _patches(model: Any, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """16 patches (16, values) and their grid: Qwen-VL, GLM-V."""
    vision = model.config.vision_config
    channels = int(getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3)
    values = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    grid = torch.tensor([[1, 4, 4]])
    return {"pixel_values": torch.randn(16, values, generator=generator), "image_grid_thw": grid}


def _kinds(model: Any, count: int, row: Prompt) -> dict[str, Tensor]:
    """The types of tokens, text or image, for models that need them."""
    if "mm_token_type_ids" not in model.forward.__code__.co_varnames and not hasattr(model.model, "get_rope_index"):
        return {}
    return {"mm_token_type_ids": torch.tensor([[1] * count + [0] * len(row.text)])}


def _tokens(features: Any, model: Any) -> int:
    """The number of an image's tokens, from its features."""
    output = getattr(features, "pooler_output", features)
    parts = output if isinstance(output, (tuple, list)) else [output]
    width = model.config.get_text_config().hidden_size
    return sum(part.numel() // width for part in parts)


def _first_logits(model: Any, token: int, count: int, image: dict[str, Tensor]) -> None:
    """Raise where the model does not read a text with the image."""
    ids = torch.tensor([[token] * count + [20, 21]])
    kinds = _kinds(model, count, Prompt([20, 21], {}))
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False, **image, **kinds
    )
