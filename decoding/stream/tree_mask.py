"""Attention masks of tokens that branch off one prefix."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decoding.cache.growing import is_sliding, layers_of
from decoding.transformers_private import DummyLayer

if TYPE_CHECKING:
    from decoding.stream.stream import Stream
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decoding.stream.stream import Stream
from decoding.stream.token_tree import TokenTree

__all__ = ["branch_mask", "own_mask"]


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
    """Additive mask (batch, 1, branches·n, length - offset + branches·n): 0 where a token may look, the dtype's
    minimum elsewhere.

    Args:
        batch: rows.
        length: slots of the prefix, padding included.
        branches: alternatives a row.
        n: tokens of each.
        prefix: (batch, >= length) 0 where the prefix is padding; None where it has none.
        offset: the first prefix slot whose key is still there (sliding windows).
        window: how many slots back a token looks, itself included; None for all.
        dtype: float dtype of the mask. Float, because some architectures answer wrongly to a boolean one.
        device: where the mask is built.
    """
    own, step = own_mask(branches, n, window, dtype, device)
    if prefix is None and window is None and device.type == "cpu":
        seen = length - offset
        room = _unpadded_mask(branches, n, dtype, device, 1 << max(seen, 255).bit_length())
        return room.narrow(3, room.shape[3] - branches * n - seen, seen + branches * n).expand(batch, -1, -1, -1)
    before = torch.zeros(batch, 1, branches * n, length - offset, dtype=dtype, device=device)
    if prefix is not None:
        before.masked_fill_(prefix[:, None, None, offset:length] == 0, torch.finfo(dtype).min)
    if window is not None:
        age = (length + step)[:, None] - torch.arange(offset, length, device=device)
        before.masked_fill_(age >= window, torch.finfo(dtype).min)
    return torch.cat([before, own.expand(batch, 1, -1, -1)], dim=-1)


@functools.lru_cache(maxsize=8)
def _unpadded_mask(branches: int, n: int, dtype: torch.dtype, device: torch.device, length: int) -> Tensor:
    """The mask (1, 1, branches·n, length + branches·n) behind a prefix without padding; a shorter one's is its end."""
    own, _ = own_mask(branches, n, None, dtype, device)
    return torch.nn.functional.pad(own, (length, 0))[None, None]


@functools.lru_cache(maxsize=32)  # the same at each step
def own_mask(
    branches: int, n: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mask (branches·n, branches·n) between the branches' tokens, and (branches·n,) the place of each in its branch."""
    flat = torch.arange(branches * n, device=device)
    branch, step = flat // n, flat % n
    visible = (branch[:, None] == branch) & (step[:, None] >= step)
    if window is not None:
        visible &= step[:, None] - step < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min), step


def _masks(stream: Stream, tree: TokenTree, depths: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks (batch, 1, nodes, prefix + nodes), one a kind of layer; see :func:`_mask`."""
    visible = tree.visible().to(depths.device)
    masks: dict[int | None, Tensor] = {}
    layers = layers_of(stream.cache)
    windows = [layer.sliding_window if is_sliding(layer) else None for layer in layers]
    for layer, window in zip(layers, windows, strict=True):
        if window not in masks and not isinstance(layer, DummyLayer):
            masks[window] = _mask(stream, visible, depths, layer.get_mask_sizes(len(tree))[1], window)
    if len(masks) == 1:
        return next(iter(masks.values()))
    types = stream.model.config.get_text_config(decoder=True).layer_types
    return {name: masks[window] for name, window in zip(types, windows, strict=False)}


def _mask(stream: Stream, visible: Tensor, depths: Tensor, offset: int, window: int | None) -> Tensor:
    """0 where a node may look, the dtype's minimum elsewhere. Float: some architectures misread a boolean mask.

    Args:
        stream: the reader.
        visible: (nodes, nodes).
        depths: (nodes,).
        offset: the first prefix slot whose key is still there (sliding windows).
        window: how many slots back a token looks, itself included; None for all.
    """
    dtype = stream.prompt.hidden.dtype
    slots = torch.arange(offset, stream.length, device=depths.device)
    before = torch.ones(stream.batch, 1, len(depths), len(slots), dtype=torch.bool, device=depths.device)
    if stream.padded and stream.padding_mask is not None:
        before &= stream.padding_mask[:, None, None, offset : stream.length] != 0
    own = visible
    if window is not None:
        before &= (stream.length + depths)[:, None] - slots < window
        own = own & (depths[:, None] - depths < window)
    seen = torch.cat([before, own.expand(stream.batch, 1, -1, -1)], dim=-1)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
