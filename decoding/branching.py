"""The two ways in which a stream branches, and the numeric check that decides which one a model allows.

Shared prefix: the branches stand side by side as query tokens of one row; a 4-D additive float mask lets each see
the prefix and itself, and positions restart at the row's true length. The prefix's keys and values are never copied.
Forked rows: every row is repeated once per branch. Works wherever a cache can be reordered, recurrent states included.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from decoding.anatomy import probe_inputs, relative_error, tolerance
from decoding.cache import GrowingLayer, is_sliding, layers_of, self_attention_cache

if TYPE_CHECKING:
    from decoding.stream import Reading, Stream

__all__ = ["Branching", "Forked", "Shared", "branch_mask", "branching_of", "may_share"]


# --- shared prefix ---------------------------------------------------------------------------------------------------


class Shared:
    """Branches side by side behind one prefix."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.stream = stream
        self.tokens = tokens  # (batch, branches, n)
        batch, branches, n = tokens.shape
        layers = layers_of(stream.cache)
        for layer in layers:
            if is_sliding(layer):
                layer.record_past = True  # else the window would drop prefix entries for the sake of losing branches
        self.kwargs = stream.grown_kwargs(n)
        inputs = stream.model.prepare_inputs_for_generation(
            torch.cat([stream.input_ids, tokens[:, 0]], dim=1), next_sequence_length=n, **self.kwargs
        )
        inputs["input_ids"] = tokens.reshape(batch, branches * n)
        positions = inputs["position_ids"]  # (batch or 1, n), or (axes, batch, n)
        inputs["position_ids"] = positions.repeat(*[1] * (positions.dim() - 1), branches)
        inputs["attention_mask"] = self._masks(layers, branches, n)
        # hidden is (batch, branches·n, dim), logits (batch, branches·n, vocab) where the head cannot be applied apart
        self.flat = stream.run(inputs, every_logit=True)
        self.reading = copy.copy(self.flat)
        self.reading.hidden = self.flat.hidden.unflatten(1, (branches, n))
        self.reading.logits = None

    def _masks(self, layers: list[Any], branches: int, n: int) -> Tensor | dict[str, Tensor]:
        model, prefix = self.stream.model, self.stream.padding_mask
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
                    model.dtype,
                    model.device,
                )
        if len(by_layer) == 1:
            return next(iter(by_layer.values()))
        types = model.config.get_text_config(decoder=True).layer_types
        return {
            name: by_layer[layer.sliding_window if is_sliding(layer) else None]
            for name, layer in zip(types, layers, strict=False)
        }

    def keep(self, branch: Tensor) -> Reading:
        """Move the kept branch's keys and values to the end of the prefix; drop the rest."""
        _, branches, n = self.tokens.shape
        slots = branch[:, None] * n + torch.arange(n, device=branch.device)  # (batch, n) among the branches' slots
        if branches > 1:
            for layer in layers_of(self.stream.cache):
                if not isinstance(layer, DummyLayer) and layer.is_initialized:
                    _move_to_front(layer.keys[:, :, -branches * n :], slots)
                    _move_to_front(layer.values[:, :, -branches * n :], slots)
                    layer.crop(-(branches - 1) * n)
        return self._selected(slots)

    def drop(self) -> None:
        """Forget all branches."""
        self_attention_cache(self.stream.cache).crop(-self.tokens[0].numel())

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        self.stream.cache.reorder_cache(rows)
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, rows)

    def _selected(self, slots: Tensor) -> Reading:
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        kept = copy.copy(self.flat)
        kept.hidden = self.flat.hidden[rows, slots]
        if self.flat.logits is not None:
            kept.logits = self.flat.logits[rows[:, 0], slots[:, -1]]
        if self.flat.hidden_states is not None:
            kept.hidden_states = tuple(states[rows, slots] for states in self.flat.hidden_states)
        if self.flat.attentions is not None:
            kept.attentions = tuple(
                _attention_of(weights, rows, slots, self.tokens) for weights in self.flat.attentions
            )
        return kept


def _move_to_front(entries: Tensor, slots: Tensor) -> None:
    """Write the entries (batch, heads, branches·n, dim) at ``slots`` (batch, n) over the first n, in place."""
    index = slots[:, None, :, None].expand(-1, entries.shape[1], -1, entries.shape[3])
    entries[:, :, : slots.shape[1]] = entries.gather(2, index)


def _attention_of(weights: Tensor, rows: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """Attention (batch, heads, n, prefix + n) of the kept branch, from (batch, heads, b·n, prefix + b·n)."""
    prefix = weights.shape[-1] - tokens[0].numel()
    kept = weights[rows, :, slots].transpose(1, 2)  # (batch, heads, n, prefix + branches·n)
    own = (prefix + slots)[:, None, None].expand(*kept.shape[:3], -1)
    return torch.cat([kept[..., :prefix], kept.gather(3, own)], dim=-1)


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
    minimum = torch.finfo(dtype).min
    flat = torch.arange(branches * n, device=device)
    branch, step = flat // n, flat % n
    own = (branch[:, None] == branch) & (step[:, None] >= step)
    if window is not None:
        own &= step[:, None] - step < window
    own_mask = torch.zeros(own.shape, dtype=dtype, device=device).masked_fill_(~own, minimum)
    before = torch.zeros(batch, 1, branches * n, length - offset, dtype=dtype, device=device)
    if prefix is not None:
        before.masked_fill_(prefix[:, None, None, offset:length] == 0, minimum)
    if window is not None:
        age = (length + step)[:, None] - torch.arange(offset, length, device=device)
        before.masked_fill_(age >= window, minimum)
    return torch.cat([before, own_mask.expand(batch, 1, -1, -1)], dim=-1)


# --- forked rows -----------------------------------------------------------------------------------------------------


class Forked:
    """Rows repeated once per branch, also between steps: only what the winner added is copied to its siblings."""

    def __init__(self, stream: Stream, branches: int) -> None:
        self.stream = stream
        self.branches = branches
        self.stream.cache.reorder_cache(self._rows().repeat_interleave(branches))
        self.saved: dict[int, Any] = {}

    def read(self, tokens: Tensor) -> None:
        """Read (batch, branches, n) tokens."""
        stream, n = self.stream, tokens.shape[2]
        self.tokens = tokens
        layers = layers_of(stream.cache)
        if stream.restorable:
            self.saved = {i: copy.deepcopy(each) for i, each in enumerate(layers) if not isinstance(each, GrowingLayer)}
        self.kwargs = stream.grown_kwargs(n)
        repeated = dict(self.kwargs)
        if repeated.get("encoder_outputs") is not None:
            repeated["encoder_outputs"] = copy.copy(repeated["encoder_outputs"])  # expanded in place by transformers
        ids, repeated = stream.model._expand_inputs_for_generation(
            expand_size=self.branches,
            is_encoder_decoder=bool(stream.model.config.is_encoder_decoder),
            input_ids=stream.input_ids,
            **repeated,
        )
        ids = torch.cat([ids, tokens.flatten(0, 1)], dim=1)
        inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=n, **repeated)
        self.flat = stream.run(inputs)  # hidden is (batch·branches, n, dim)
        self.reading = copy.copy(self.flat)
        self.reading.hidden = self.flat.hidden.unflatten(0, (-1, self.branches))
        self.reading.logits = None

    def keep(self, branch: Tensor) -> Reading:
        """Give every sibling what the kept branch added."""
        winners = self._rows() * self.branches + branch  # (batch,)
        for layer in layers_of(self.stream.cache):
            if isinstance(layer, GrowingLayer):
                n = self.tokens.shape[2]
                for entries in (layer.keys, layer.values):
                    siblings = entries.unflatten(0, (-1, self.branches))  # (batch, branches, heads, slots, dim)
                    siblings[..., -n:, :] = entries[winners, None, :, -n:]
            else:
                layer.reorder_cache(winners.repeat_interleave(self.branches))
        return picked(self.flat, winners)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        every = (rows[:, None] * self.branches + torch.arange(self.branches, device=rows.device)).flatten()
        self.stream.cache.reorder_cache(every)
        self.saved = {}
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, every)

    def drop(self) -> None:
        """Forget all branches. States that no index can move back are restored where the stream is restorable."""
        layers = layers_of(self.stream.cache)
        for i, layer in enumerate(layers):
            if isinstance(layer, GrowingLayer):
                layer.crop(-self.tokens.shape[2])
            elif i in self.saved:
                layers[i] = self.saved[i]
            # else: the call ends here and its cache with it

    def collapse(self) -> None:
        """One row per row again; all siblings are alike, so the first is kept."""
        self.stream.cache.reorder_cache(self._rows() * self.branches)

    def _rows(self) -> Tensor:
        return torch.arange(self.stream.batch, device=self.stream.input_ids.device)


def picked(reading: Reading, rows: Tensor) -> Reading:
    """The reading of some rows."""
    chosen = copy.copy(reading)
    for name, value in vars(reading).items():
        if value is not None:
            setattr(
                chosen,
                name,
                value[rows] if isinstance(value, Tensor) else tuple(each[rows] for each in value),
            )
    return chosen


def reordered(kwargs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A model's keyword arguments with row i taken from row ``rows[i]``; caches have their own ``reorder_cache``."""
    changed = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            changed[name] = value.index_select(1 if name == "position_ids" and value.dim() == 3 else 0, rows)
        elif name == "encoder_outputs" and value is not None:
            changed[name] = type(value)(**reordered(dict(value), rows))
    return changed


# --- which way -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branching:
    """Which way a model branches. ``shared`` is the fast one; ``reason`` says why not, or how close the check came."""

    shared: bool
    reason: str


FORKED_BY_CONSTRUCTION = "encoder-decoder models take positions from the cache length"

_checked: weakref.WeakKeyDictionary[Any, dict[tuple[object, ...], Branching]] = weakref.WeakKeyDictionary()


def may_share(stream: Stream) -> bool:
    """Whether this stream's cache and arguments allow the shared prefix (the model may, a static cache does not)."""
    if stream.kwargs.get("position_ids") is None:
        return False
    layers = layers_of(stream.cache)
    return all(
        isinstance(each, (GrowingLayer, DummyLayer)) or type(each) is DynamicSlidingWindowLayer for each in layers
    )


@torch.no_grad()
def branching_of(model: Any) -> Branching:
    """Whether a model answers rightly with a shared prefix: compared with forked rows on a small left-padded batch.

    Done once per model, attention implementation, dtype and device; a few forward passes over a dozen tokens.
    """
    config = model.config.get_text_config(decoder=True)
    key = (getattr(config, "_attn_implementation", None), model.dtype, str(model.device))
    per_model = _checked.setdefault(model, {})
    if key not in per_model:
        # The check itself opens streams on this model; they must not check again.
        per_model[key] = Branching(False, "being checked")
        try:
            per_model[key] = _check(model)
        except BaseException:
            del per_model[key]
            raise
    return per_model[key]


def _check(model: Any) -> Branching:
    from decoding.stream import Stream

    if model.config.is_encoder_decoder:
        return Branching(False, FORKED_BY_CONSTRUCTION)
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    # Past the window where that is cheap; real models have windows of thousands, whose mask is the same code.
    length = window + 6 if isinstance(window, int) and window <= 64 else 12
    ids = probe_inputs(model, batch=2, length=length + 6)["input_ids"]
    prompt, candidates = ids[:, :length], ids[:, length : length + 3]
    mask = torch.ones_like(prompt)
    mask[0, : length // 3] = 0
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": prompt, "attention_mask": mask} if takes_mask else {"input_ids": prompt}
    chosen = torch.tensor([1, 2], device=ids.device)
    hidden: dict[bool, list[Tensor]] = {}
    for shared in (False, True):
        stream = Stream.open(model, **inputs)
        stream.branching = Branching(shared, "")
        if shared and not may_share(stream):
            return Branching(False, "its cache or its forward() cannot place branches side by side")
        try:
            first = stream.branch(candidates).hidden
            stream.commit(chosen)
            second = stream.branch(ids[:, length + 3 :]).hidden
            stream.commit(chosen)
            hidden[shared] = [first, second, stream.extend(candidates[:, :1]).hidden]
        except Exception as refusal:
            if not shared:
                raise
            # Whatever a model's forward raises on a 4-D mask means the same: it does not take one.
            return Branching(
                False, f"its forward() refuses branches side by side ({type(refusal).__name__}: {str(refusal)[:80]})"
            )
    error = max(relative_error(one, other) for one, other in zip(hidden[True], hidden[False], strict=True))
    if error < tolerance(model.dtype):
        return Branching(True, f"shared prefix equals forked rows (relative error {error:.1e})")
    return Branching(False, f"shared prefix differs from forked rows (relative error {error:.1e})")
