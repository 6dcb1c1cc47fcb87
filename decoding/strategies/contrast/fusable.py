"""Which readers can share a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache

from decoding.cache.layer_kinds import has_window, is_recurrent
from decoding.capabilities.branching import branching_of
from decoding.errors import ModelError
from decoding.models.forward_errors import is_environment_error
from decoding.strategies.contrast.readers import Reader
from decoding.transformers_private import CACHE_ARGUMENT, cache_in, is_callers_cache

__all__ = ["by_weights", "may_fuse_expert", "may_fuse_rows"]


def by_weights(readers: Sequence[Reader], fuse: bool = True) -> Iterator[list[Reader]]:
    """Readers that share a forward pass: those with the same weights, or each alone without ``fuse``."""
    groups: dict[int, list[Reader]] = {}
    for index, reader in enumerate(readers):
        groups.setdefault(id(reader.model) if fuse else index, []).append(reader)
    yield from groups.values()


def may_fuse_rows(model: Any, cache: Any, readers: Sequence[Reader]) -> bool:
    """Whether prompts of several lengths can share a batch of a model, where several of these readers have its weights.

    A recurrent state reads padding as text, and some models misread their cache behind it (Git); without a cache it
    cannot be told, and some recurrent models are given none (xLSTM makes its own).
    """
    if not isinstance(cache, Cache) or is_recurrent(cache):
        return False
    if sum(reader.model is None for reader in readers) < 2:
        return True
    try:
        return branching_of(model).way != "recompute"
    except ModelError as refusal:
        if is_environment_error(refusal):
            raise
        return False


def may_fuse_expert(
    model: Any, model_kwargs: Mapping[str, Any], config: GenerationConfig | None, restorable: bool
) -> bool:
    """Whether the expert's row is no more than its tokens: nothing handed in or asked for is bound to its own batch."""
    cache = cache_in(model_kwargs)
    if model.config.is_encoder_decoder or type(cache) is not DynamicCache or is_callers_cache(cache):
        return False
    if is_recurrent(cache) or cache.get_seq_length() > 0 or getattr(cache, "offloading", False):
        return False
    if restorable and has_window(cache):
        return False
    if config is not None and (config.output_attentions or config.output_hidden_states):
        return False
    plain = {"attention_mask", CACHE_ARGUMENT, "position_ids", "use_cache", "logits_to_keep", "cache_position"}
    given = {name for name, value in model_kwargs.items() if value is not None and value is not False}
    return given - plain - {"output_attentions", "output_hidden_states"} == set() and _usual_positions(model_kwargs)


def _usual_positions(model_kwargs: Mapping[str, Any]) -> bool:
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is None:
        return True
    if positions.dim() != 2 or mask is None or mask.dim() != 2 or positions.shape[1] != mask.shape[1]:
        return mask is None
    usual = (mask.long().cumsum(1) - 1).clamp(min=0)
    return bool(((positions == usual) | (mask == 0)).all())
