"""The attention mask of tokens that branch off one prefix: a tree, of which branches are the k separate paths.

A token attends to the prefix, to its ancestors in the tree and to itself. Masks are additive floats: some architectures
misread a boolean mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from decoding.cache.growing import layers_of
from decoding.cache.layer_kinds import kind_of
from decoding.models.text_config import text_config
from decoding.stream.state import BatchState

__all__ = ["branch_mask", "branch_relations", "masks_by_layer", "tree_mask", "tree_relations"]


def masks_by_layer(
    state: BatchState, num_branch_tokens: int, mask_of: Callable[[int, int | None], Tensor]
) -> Tensor | dict[str, Tensor]:
    """The masks of a pass over the tokens of a tree: one for all layers, or one for each type of layer.

    Args:
        state: of the rows.
        num_branch_tokens: of each row.
        mask_of: makes the mask of a layer from its offset (the first slot whose key it still has) and its window.
    """
    masks: dict[int | None, Tensor] = {}
    layers = layers_of(state.cache)
    windows = [kind_of(layer).mask_window(layer) for layer in layers]
    for layer, window in zip(layers, windows, strict=True):
        if window not in masks and kind_of(layer).has_mask(layer):
            masks[window] = mask_of(layer.get_mask_sizes(num_branch_tokens)[1], window)
    if len(masks) == 1:
        return next(iter(masks.values()))
    types = text_config(state.model).layer_types
    return {name: masks[window] for name, window in zip(types, windows, strict=False)}


def tree_mask(
    relations: Tensor,
    depths: Tensor,
    batch: int,
    length: int,
    prefix: Tensor | None = None,
    offset: int = 0,
    window: int | None = None,
) -> Tensor:
    """Additive mask (batch, 1, nodes, length - offset + nodes): 0 where a token attends, the dtype's minimum elsewhere.

    Args:
        relations: (nodes, nodes) the same among the tree's tokens, see :func:`tree_relations`; gives dtype and device.
        depths: (nodes,) how many tokens of its path come before each.
        batch: rows.
        length: slots of the prefix, padding included.
        prefix: (batch, >= length) 0 where the prefix is padding; None where it has none.
        offset: the first prefix slot whose key is still there (sliding windows).
        window: how many slots back a token attends, itself included; None for all.
    """
    minimum = torch.finfo(relations.dtype).min
    before = relations.new_zeros(batch, 1, len(depths), length - offset)
    if prefix is not None:
        before.masked_fill_(prefix[:, None, None, offset:length] == 0, minimum)
    if window is not None:
        age = (length + depths)[:, None] - torch.arange(offset, length, device=relations.device)
        before.masked_fill_(age >= window, minimum)
    return torch.cat([before, relations.expand(batch, 1, -1, -1)], dim=-1)


def tree_relations(visible: Tensor, depths: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive mask (nodes, nodes) among the tokens of a tree.

    Args:
        visible: (nodes, nodes) bool, True for each node's ancestors and itself.
        depths: (nodes,) how many tokens of its path come before each.
        window: how many tokens back a token attends, itself included; None for all.
        dtype: float dtype of the mask.
    """
    if window is not None:
        visible = visible & (depths[:, None] - depths < window)
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def branch_mask(
    batch: int,
    length: int,
    branches: int,
    n: int,
    prefix: Tensor | None,
    offset: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The :func:`tree_mask` of separate branches of n tokens, (batch, 1, branches·n, length - offset + branches·n)."""
    relations, depths = branch_relations(branches, n, window, dtype, device)
    if prefix is None and window is None and device.type == "cpu":
        seen = length - offset
        longest = _unpadded_mask(branches, n, dtype, device, 1 << max(seen, 255).bit_length())
        return longest.narrow(3, longest.shape[3] - branches * n - seen, seen + branches * n).expand(batch, -1, -1, -1)
    return tree_mask(relations, depths, batch, length, prefix, offset, window)


@functools.lru_cache(maxsize=8)
def _unpadded_mask(branches: int, n: int, dtype: torch.dtype, device: torch.device, length: int) -> Tensor:
    """The mask (1, 1, branches·n, length + branches·n) after a prefix without padding; a shorter one's is its end."""
    relations, _ = branch_relations(branches, n, None, dtype, device)
    return torch.nn.functional.pad(relations, (length, 0))[None, None]


@functools.lru_cache(maxsize=32)  # the same at each step
def branch_relations(
    branches: int, n: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mask (branches·n, branches·n) among the branches' tokens, and (branches·n,) the depth of each in its branch."""
    flat = torch.arange(branches * n, device=device)
    branch, depths = flat // n, flat % n
    visible = (branch[:, None] == branch) & (depths[:, None] >= depths)
    return tree_relations(visible, depths, window, dtype), depths
