"""Which way a model branches, decided by a numeric check of the fast way against the one that works everywhere."""

from __future__ import annotations

import inspect
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from decoding.anatomy import probe_inputs, relative_error, tolerance
from decoding.cache import GrowingLayer, layers_of
from decoding.quantised_cache import is_quantised

if TYPE_CHECKING:
    from decoding.stream import Stream

__all__ = ["Branching", "branching_of", "may_share", "probe_batch", "walked"]


@dataclass(frozen=True)
class Branching:
    """Which way a model branches. ``shared`` is the fast one; ``reason`` says why not, or how close the check came."""

    shared: bool
    reason: str


FORKED_BY_CONSTRUCTION = "encoder-decoder models take positions from the cache length"

_checking = threading.RLock()
_checked: weakref.WeakKeyDictionary[Any, dict[tuple[object, ...], Branching]] = weakref.WeakKeyDictionary()


def may_share(stream: Stream) -> bool:
    """Whether this stream's cache and arguments allow the shared prefix (the model may, a static cache does not)."""
    if stream.kwargs.get("position_ids") is None:
        return False
    if is_quantised(stream.cache):
        return True
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
    with _checking:
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
    inputs, ids = probe_batch(model)
    hidden: dict[bool, list[Tensor]] = {}
    for shared in (False, True):
        stream = Stream.open(model, **inputs)
        stream.branching = Branching(shared, "")
        if shared and not may_share(stream):
            return Branching(False, "its cache or its forward() cannot place branches side by side")
        try:
            hidden[shared] = walked(stream, ids)
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


def probe_batch(model: Any) -> tuple[dict[str, Any], Tensor]:
    """A small left-padded batch of prompts as ``generate`` takes it, and (2, 6) tokens to go on with."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    # Past the window where that is cheap; real models have windows of thousands, whose mask is the same code.
    length = window + 6 if isinstance(window, int) and window <= 64 else 12
    ids = probe_inputs(model, batch=2, length=length + 6)["input_ids"]
    mask = torch.ones_like(ids[:, :length])
    mask[0, : length // 3] = 0
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids[:, :length]}
    if takes_mask:
        inputs["attention_mask"] = mask
    return inputs, ids[:, length:]


def walked(stream: Stream, ids: Tensor) -> list[Tensor]:
    """Hidden states of three steps of a stream over (2, 6) tokens: two branches, each committed, and one token."""
    chosen = torch.tensor([1, 2], device=ids.device)
    first = stream.branch(ids[:, :3]).hidden
    stream.commit(chosen)
    second = stream.branch(ids[:, 3:]).hidden
    stream.commit(chosen)
    return [first, second, stream.extend(ids[:, :1]).hidden]
