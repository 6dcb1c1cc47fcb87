"""The part of a model's config that is of its text decoder; that of a model of images and text has it inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the baselines, which commands import for their help, need no torch
    from torch import Tensor

__all__ = ["placeholder_tokens", "text_config", "vocab_size", "within_vocabulary"]


def text_config(model: Any) -> Any:
    """Return the config of a transformers model's text decoder: the whole config, or the part that is of text."""
    return model.config.get_text_config(decoder=True)


def vocab_size(model: Any) -> int:
    """Return the number of a model's token ids, as its config says it; the head may have padding rows beside them."""
    return int(text_config(model).vocab_size)


def within_vocabulary(model: Any, tokens: Tensor) -> Tensor:
    """Clamp token ids to those that a model has; what tells it nothing must be a valid id all the same."""
    return tokens.clamp(0, vocab_size(model) - 1)


def placeholder_tokens(model: Any) -> frozenset[int]:
    """Return the tokens that stand for images, videos and sounds in a prompt, by the names that configs have for
    them.
    """
    kinds = (f"{kind}_token_{name}" for kind in ("image", "video", "audio", "speech") for name in ("id", "index"))
    values = (getattr(model.config, name, None) for name in kinds)
    return frozenset(value for value in values if isinstance(value, int))
