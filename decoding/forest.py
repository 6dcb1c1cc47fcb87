"""Many texts behind one prefix in one forward pass, each shared beginning read once.

The texts form a forest: a token that several of them have in the same place, after the same tokens, is one node. Nodes
stand side by side as query tokens; a 4-D additive mask lets each see the prefix, its ancestors and itself, and its
position is its depth. It is the shared prefix of :mod:`decoding.shared_prefix`, grown branches of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer

from decoding.cache import is_sliding, layers_of, self_attention_cache
from decoding.reading import Reading

if TYPE_CHECKING:
    from decoding.stream import Stream

__all__ = ["Forest", "as_branches", "side_by_side"]


class Forest:
    """Texts, each beginning that several share held once.

    Args:
        texts: token ids; may be empty.

    Attributes:
        tokens: (nodes,) token ids; a node stands after its parent.
        depths: (nodes,) how many tokens of its text come before it.
        paths: for each text the nodes of its tokens.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []
        self._parents: list[int] = []
        nodes: dict[tuple[int, int], int] = {}
        for text in texts:
            node, path = -1, []
            for depth, token in enumerate(text):
                parent, node = node, nodes.setdefault((node, token), len(self.tokens))
                if node == len(self.tokens):
                    self.tokens.append(token)
                    self.depths.append(depth)
                    self._parents.append(parent)
                path.append(node)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.tokens)

    def visible(self) -> Tensor:
        """(nodes, nodes) bool: which others each node looks at, itself included."""
        seen = torch.eye(len(self), dtype=torch.bool).numpy()
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.from_numpy(seen)


def side_by_side(stream: Stream, forest: Forest) -> Reading:
    """One forward pass over the nodes; see :meth:`decoding.stream.Stream.look`."""
    layers, nodes = layers_of(stream.cache), len(forest)
    for layer in layers:
        if is_sliding(layer):
            layer.record_past = True  # else the window would drop prefix entries for the sake of the forest
    tokens = _readable(stream, forest.tokens).expand(stream.batch, -1)
    depths = torch.tensor(forest.depths, device=tokens.device)
    kwargs = stream.grown_kwargs(nodes)
    ids = torch.cat([stream.input_ids, tokens], dim=1)
    inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=nodes, **kwargs)
    first = kwargs["position_ids"][..., -nodes:][..., :1]  # (batch, 1), or (axes, batch, 1)
    inputs |= {"input_ids": tokens, "position_ids": first + depths, "attention_mask": _masks(stream, forest, depths)}
    reading = stream.run(inputs, every_logit=True)
    self_attention_cache(stream.cache).crop(-nodes)
    return reading


def _masks(stream: Stream, forest: Forest, depths: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks (batch, 1, nodes, prefix + nodes), one a kind of layer; see :func:`_mask`."""
    visible = forest.visible().to(depths.device)
    masks: dict[int | None, Tensor] = {}
    layers = layers_of(stream.cache)
    windows = [layer.sliding_window if is_sliding(layer) else None for layer in layers]
    for layer, window in zip(layers, windows, strict=True):
        if window not in masks and not isinstance(layer, DummyLayer):
            masks[window] = _mask(stream, visible, depths, layer.get_mask_sizes(len(forest))[1], window)
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


def as_branches(stream: Stream, forest: Forest) -> Reading:
    """Each text as a branch by itself, where a model cannot place them side by side."""
    paths = [path for path in forest.paths if path]
    width = max(map(len, paths))
    # Shorter ones are filled up behind their end, which nothing before it sees.
    padded = [[forest.tokens[node] for node in [*path, *path[-1:] * (width - len(path))]] for path in paths]
    tokens = _readable(stream, [padded]).expand(stream.batch, -1, -1)
    reading = stream.branch(tokens)
    place = {node: (row, i) for row, path in enumerate(paths) for i, node in enumerate(path)}
    rows, steps = torch.tensor([place[node] for node in range(len(forest))], device=tokens.device).T

    def of_nodes(states: Any) -> Any:
        return states[:, rows.to(states.device), steps.to(states.device)]

    logits = None if reading.logits is None else of_nodes(reading.logits)
    found = Reading(of_nodes(reading.hidden), logits, tuple(of_nodes(each) for each in reading.exits))
    stream.drop()
    return found


def _readable(stream: Stream, tokens: Any) -> Tensor:
    """Token ids as a tensor; what an amateur's shorter vocabulary lacks is of no matter, but must be one of its own."""
    vocab = stream.model.config.get_text_config(decoder=True).vocab_size
    return torch.tensor(tokens, device=stream.input_ids.device).clamp(max=vocab - 1)
