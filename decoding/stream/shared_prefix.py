"""Branching by a shared prefix: the branches stand side by side as query tokens of one row.

A 4-D additive float mask lets each branch see the prefix and itself; positions restart at the row's true length. The
prefix's keys and values are never copied.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decoding.cache.growing import GrowingLayer, is_sliding, layers_of, self_attention_cache
from decoding.cache.quantised import untouched
from decoding.stream.output import ForwardOutput, branched, picked, reordered
from decoding.stream.tree_mask import branch_mask
from decoding.transformers_private import DummyLayer

if TYPE_CHECKING:
    from decoding.stream.stream import Stream
from decoding.stream.token_tree import TokenTree
from decoding.stream.tree_mask import _masks

if TYPE_CHECKING:
    from decoding.stream.stream import Stream

__all__ = ["SharedPrefixBranches", "side_by_side"]


class SharedPrefixBranches:
    """Branches side by side behind one prefix."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.stream = stream
        self.tokens = tokens  # (batch, branches, n)
        self.aside: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, keys and values that its cache has not taken
        _, branches, n = tokens.shape
        self.kwargs = stream.grown_kwargs(n)
        positions = self.kwargs["position_ids"][..., -n:]  # (batch, n), or (axes, batch, n)
        if stream.graph_steps is not None:
            self.flat = stream.graph_steps.read(stream, tokens, positions)
        else:
            self.flat = self._read(positions)
        self.reading = branched(self.flat, 1, (branches, n))

    def _read(self, positions: Tensor) -> ForwardOutput:
        """One forward pass; ``hidden`` is (batch, branches·n, dim), ``logits`` likewise where the head is in it."""
        stream = self.stream
        batch, branches, n = self.tokens.shape
        layers = layers_of(stream.cache)
        for layer in layers:
            if is_sliding(layer):
                layer.record_past = True  # else the window would drop prefix entries for the sake of losing branches
        inputs = self._inputs(n)
        inputs["input_ids"] = self.tokens.reshape(batch, branches * n)
        inputs["position_ids"] = positions.repeat(*[1] * (positions.dim() - 1), branches)
        inputs["attention_mask"] = self._masks(layers, branches, n)
        with untouched(stream.cache) as self.aside:
            return stream.run(inputs, every_logit=True)

    def _inputs(self, n: int) -> dict[str, Any]:
        """What the model's forward is given beside tokens, positions and mask."""
        stream = self.stream
        if stream.constant_inputs is not None:
            return dict(stream.constant_inputs)
        ids = torch.cat([stream.input_ids, self.tokens[:, 0]], dim=1)
        inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=n, **self.kwargs)
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        rest.pop("position_ids")
        if not any(isinstance(value, Tensor) for value in rest.values()):
            stream.constant_inputs = rest  # the same at each step; preparing them anew costs a percent of one
        return dict(rest)

    def _masks(self, layers: list[Any], branches: int, n: int) -> Tensor | dict[str, Tensor]:
        prefix = self.stream.padding_mask if self.stream.padded else None
        like = self.stream.prompt.hidden
        by_layer: dict[int | None, Tensor] = {}
        for layer in layers:
            window = layer.sliding_window if is_sliding(layer) else None
            if window not in by_layer and not isinstance(layer, DummyLayer):
                offset = layer.get_mask_sizes(branches * n)[1]
                by_layer[window] = branch_mask(
                    self.stream.batch,
                    self.stream.length,
                    branches,
                    n,
                    prefix,
                    offset,
                    window,
                    like.dtype,
                    self.tokens.device,  # from where a model spread over devices takes it along
                )
        if len(by_layer) == 1:
            return next(iter(by_layer.values()))
        types = self.stream.model.config.get_text_config(decoder=True).layer_types
        return {
            name: by_layer[layer.sliding_window if is_sliding(layer) else None]
            for name, layer in zip(types, layers, strict=False)
        }

    def keep(self, branch: Tensor) -> ForwardOutput:
        """Move the kept branch's keys and values to the end of the prefix; drop the rest."""
        _, branches, n = self.tokens.shape
        slots = branch[:, None] * n + torch.arange(n, device=branch.device)  # (batch, n) among the branches' slots
        # Asking for the winners would wait for a GPU; on a CPU it makes the move several times faster.
        winners = branch.tolist() if branch.device.type == "cpu" else None
        if self.stream.graph_steps is not None:
            self.stream.graph_steps.keep(self.stream, branches * n, slots)
            return self._selected(slots, winners)
        layers = layers_of(self.stream.cache)
        for index, read in self.aside.items():
            layers[index].update(*(entries.gather(2, _among(slots, entries)) for entries in read))
        for layer in layers if branches > 1 and not self.aside else ():
            if isinstance(layer, DummyLayer) or not layer.is_initialized:
                continue  # of a model that was cut to fewer layers than its config counts
            if winners is not None and isinstance(layer, GrowingLayer):
                layer.keep_branches(branches * n, winners, n)
            else:
                for entries in (layer.keys, layer.values):
                    _gather_to_front(entries, branches * n, slots)
                layer.crop(-(branches - 1) * n)
        return self._selected(slots, winners)

    def drop(self) -> None:
        """Forget all branches."""
        if not self.aside:
            self_attention_cache(self.stream.cache).crop(-self.tokens[0].numel())

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        self.stream.cache.reorder_cache(rows)
        self.aside = {index: (keys[rows], values[rows]) for index, (keys, values) in self.aside.items()}
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, rows)

    def _selected(self, slots: Tensor, winners: list[int] | None) -> ForwardOutput:
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        n = slots.shape[1]

        def of_winner(states: Tensor) -> Tensor:
            if winners is not None and len(winners) == 1:
                return states.narrow(1, winners[0] * n, n)
            return states[rows.to(states.device), slots.to(states.device)]

        kept = copy.copy(self.flat)
        kept.hidden = of_winner(self.flat.hidden)
        kept.exits = tuple(of_winner(states) for states in self.flat.exits)
        if self.flat.logits is not None:
            kept.logits = of_winner(self.flat.logits)
        if self.flat.hidden_states is not None:
            kept.hidden_states = tuple(of_winner(states) for states in self.flat.hidden_states)
        if self.flat.attentions is not None:
            kept.attentions = tuple(
                _attention_of(weights, rows, slots, self.tokens) for weights in self.flat.attentions
            )
        return kept


def _gather_to_front(entries: Tensor, num_branch_tokens: int, slots: Tensor) -> None:
    """Of the last slots of (batch, heads, slots, dim), write those of (batch, n) each row's winner over the first n, in
    one gather for all rows.
    """
    last = entries.narrow(2, entries.shape[2] - num_branch_tokens, num_branch_tokens)
    last[:, :, : slots.shape[1]] = last.gather(2, _among(slots, entries))


def _among(slots: Tensor, entries: Tensor) -> Tensor:
    """The index that gathers slots (batch, n) of (batch, heads, slots, dim)."""
    return slots.to(entries.device)[:, None, :, None].expand(-1, entries.shape[1], -1, entries.shape[3])


def _attention_of(weights: Tensor, rows: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """Attention (batch, heads, n, prefix + n) of the kept branch, from (batch, heads, b·n, prefix + b·n)."""
    prefix = weights.shape[-1] - tokens[0].numel()
    kept = weights[rows, :, slots].transpose(1, 2)  # (batch, heads, n, prefix + branches·n)
    own = (prefix + slots)[:, None, None].expand(*kept.shape[:3], -1)
    return torch.cat([kept[..., :prefix], kept.gather(3, own)], dim=-1)


def side_by_side(stream: Stream, tree: TokenTree) -> ForwardOutput:
    """One forward pass over the nodes; see :meth:`decoding.stream.stream.Stream.look`."""
    layers, nodes = layers_of(stream.cache), len(tree)
    for layer in layers:
        if is_sliding(layer):
            layer.record_past = True  # else the window would drop prefix entries for the sake of the forest
    tokens = _readable(stream, tree.tokens).expand(stream.batch, -1)
    depths = torch.tensor(tree.depths, device=tokens.device)
    kwargs = stream.grown_kwargs(nodes)
    ids = torch.cat([stream.input_ids, tokens], dim=1)
    inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=nodes, **kwargs)
    first = kwargs["position_ids"][..., -nodes:][..., :1]  # (batch, 1), or (axes, batch, 1)
    inputs |= {"input_ids": tokens, "position_ids": first + depths, "attention_mask": _masks(stream, tree, depths)}
    reading = stream.run(inputs, every_logit=True)
    self_attention_cache(stream.cache).crop(-nodes)
    return reading


def _readable(stream: Stream, tokens: Any) -> Tensor:
    """Token ids as a tensor; what an amateur's shorter vocabulary lacks is of no matter, but must be one of its own."""
    vocab = stream.model.config.get_text_config(decoder=True).vocab_size
    return torch.tensor(tokens, device=stream.input_ids.device).clamp(max=vocab - 1)
