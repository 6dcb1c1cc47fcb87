"""Prompts that begin with an image, for the models of images whose tiny versions take one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from decoding.tools.architectures.readings import Prompt, prompts

__all__ = ["prompts_with_images"]

MOST = 90  # tokens of an image, within the tiny models' context of 128
Form = Callable[[Any, int, torch.Generator], dict[str, Tensor]]


def prompts_with_images(model: Any) -> Callable[[int], list[Prompt]] | None:
    """From a seed to two prompts of different lengths, an image before each; None for a model that took no image here.

    An image comes as the model family takes it; how many tokens it makes is what the model's own encoder gives.
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
    given = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if isinstance(given, int):
        yield given
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
    """Which tokens are an image's, for models that ask."""
    if "mm_token_type_ids" not in model.forward.__code__.co_varnames and not hasattr(model.model, "get_rope_index"):
        return {}
    return {"mm_token_type_ids": torch.tensor([[1] * count + [0] * len(row.text)])}


def _tokens(features: Any, model: Any) -> int:
    """How many tokens an image makes, from its features."""
    found = getattr(features, "pooler_output", features)
    parts = found if isinstance(found, (tuple, list)) else [found]
    width = model.config.get_text_config().hidden_size
    return sum(part.numel() // width for part in parts)


def _first_logits(model: Any, token: int, count: int, image: dict[str, Tensor]) -> None:
    """Raises where the model does not read a text with the image."""
    ids = torch.tensor([[token] * count + [20, 21]])
    kinds = _kinds(model, count, Prompt([20, 21], {}))
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False, **image, **kinds
    )
