"""Branching by a shared prefix: the branches stand side by side as query tokens of one row (tree attention).

A 4-D additive float mask lets each branch attend to the prefix and itself; positions restart at the row's true length.
The prefix's keys and values are never copied.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from decoding.cache.growing import layers_of, self_attention_cache
from decoding.cache.layer_kinds import gather_index, kind_of
from decoding.cache.quantised import untouched
from decoding.stream.output import ForwardOutput, picked, reordered, split_branches
from decoding.stream.state import BatchState
from decoding.stream.token_tree import TokenTree
from decoding.stream.tree_mask import branch_mask, masks_by_layer, tree_mask, tree_relations

__all__ = ["SharedPrefixBranches", "forward_tree"]


class SharedPrefixBranches:
    """Branches side by side after one prefix.

    Attributes:
        tokens: (batch, branches, n) token ids.
        kwargs: the model's keyword arguments once one branch is kept.
        output: of the branches; ``hidden`` is (batch, branches, n, dim).
    """

    def __init__(self, state: BatchState, tokens: Tensor) -> None:
        self.state = state
        self.tokens = tokens
        self.pending_entries: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, keys and values that its cache lacks
        _, branches, n = tokens.shape
        self.kwargs = state.grown_kwargs(n)
        positions = self.kwargs["position_ids"][..., -n:]  # (batch, n), or (axes, batch, n)
        if state.graph_steps is not None:
            self.flat = state.graph_steps.read(state, tokens, positions)
        else:
            self.flat = self._forward(positions)
        self.output = split_branches(self.flat, 1, (branches, n))

    def _forward(self, positions: Tensor) -> ForwardOutput:
        """Run one forward pass; ``hidden`` is (batch, branches·n, dim), ``logits`` likewise where they are computed."""
        state = self.state
        batch, branches, n = self.tokens.shape
        _begin_branches(state)
        inputs = state.inputs_beside_tokens(torch.cat([state.input_ids, self.tokens[:, 0]], dim=1), n, self.kwargs)
        inputs["input_ids"] = self.tokens.reshape(batch, branches * n)
        inputs["position_ids"] = positions.repeat(*[1] * (positions.dim() - 1), branches)
        prefix = state.padding_mask if state.padded else None
        device = self.tokens.device  # from where a model spread over devices takes the mask along
        inputs["attention_mask"] = masks_by_layer(
            state,
            branches * n,
            lambda offset, window: branch_mask(
                batch, state.length, branches, n, prefix, offset, window, state.dtype, device
            ),
        )
        with untouched(state.cache) as self.pending_entries:
            return state.run(inputs, every_logit=True)

    def keep(self, branch: Tensor) -> ForwardOutput:
        """Move the kept branch's keys and values to the end of the prefix; drop the rest."""
        _, branches, n = self.tokens.shape
        slots = branch[:, None] * n + torch.arange(n, device=branch.device)  # (batch, n) among the branches' slots
        # Asking for the winners would wait for a GPU; on a CPU it makes the move several times faster.
        winners = branch.tolist() if branch.device.type == "cpu" else None
        if self.state.graph_steps is not None:
            self.state.graph_steps.keep(self.state, branches * n, slots)
            return self._kept_output(slots, winners)
        layers = layers_of(self.state.cache)
        for index, entries in self.pending_entries.items():
            layers[index].update(*(tensor.gather(2, gather_index(slots, tensor)) for tensor in entries))
        if branches > 1:
            for layer in layers:
                kind_of(layer).keep(layer, branches * n, slots, winners)
        return self._kept_output(slots, winners)

    def drop(self) -> None:
        """Forget all branches."""
        if not self.pending_entries:
            self_attention_cache(self.state.cache).crop(-self.tokens[0].numel())

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        self.state.cache.reorder_cache(rows)
        self.pending_entries = {
            index: (keys[rows], values[rows]) for index, (keys, values) in self.pending_entries.items()
        }
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, rows)

    def _kept_output(self, slots: Tensor, winners: list[int] | None) -> ForwardOutput:
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


def _attention_of(weights: Tensor, rows: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """Attention (batch, heads, n, prefix + n) of the kept branch, from (batch, heads, b·n, prefix + b·n)."""
    prefix = weights.shape[-1] - tokens[0].numel()
    kept = weights[rows, :, slots].transpose(1, 2)  # (batch, heads, n, prefix + branches·n)
    in_branch = (prefix + slots)[:, None, None].expand(*kept.shape[:3], -1)
    return torch.cat([kept[..., :prefix], kept.gather(3, in_branch)], dim=-1)


def forward_tree(state: BatchState, tree: TokenTree) -> ForwardOutput:
    """Read a token tree in one forward pass, by tree attention, and keep none of it.

    See :meth:`decoding.stream.stream.Stream.forward_tree`.
    """
    nodes = len(tree)
    _begin_branches(state)
    tokens = state.readable(tree.tokens).expand(state.batch, -1)
    depths = torch.tensor(tree.depths, device=tokens.device)
    visible = tree.visible().to(tokens.device)
    kwargs = state.grown_kwargs(nodes)
    ids = torch.cat([state.input_ids, tokens], dim=1)
    inputs = state.model.prepare_inputs_for_generation(ids, next_sequence_length=nodes, **kwargs)
    first = kwargs["position_ids"][..., -nodes:][..., :1]  # (batch, 1), or (axes, batch, 1)
    prefix = state.padding_mask if state.padded else None

    def mask_of(offset: int, window: int | None) -> Tensor:
        relations = tree_relations(visible, depths, window, state.dtype)
        return tree_mask(relations, depths, state.batch, state.length, prefix, offset, window)

    inputs |= {
        "input_ids": tokens,
        "position_ids": first + depths,
        "attention_mask": masks_by_layer(state, nodes, mask_of),
    }
    output = state.run(inputs, every_logit=True)
    self_attention_cache(state.cache).crop(-nodes)
    return output


def _begin_branches(state: BatchState) -> None:
    for layer in layers_of(state.cache):
        kind_of(layer).begin_branches(layer)
