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

from decoding.anatomy import NO_NUMBERS, probe_inputs, relative_error, tolerance
from decoding.cache import GrowingLayer, layers_of
from decoding.errors import DecodingError, ModelError
from decoding.failures import says_nothing_of_the_model
from decoding.loading import one_line
from decoding.placement import input_device
from decoding.quantised_cache import is_quantised

if TYPE_CHECKING:
    from decoding.stream import Stream

__all__ = ["Branching", "branching_of", "may_share", "probe_batch", "walked"]


@dataclass(frozen=True)
class Branching:
    """Which way a model branches. ``shared`` is the fast one; ``reason`` says why not, or how close the check came."""

    shared: bool
    reason: str


# What configurations call the number of tokens that a layer looks back.
WINDOWS = (
    "sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size",
    "local_attention",
)  # fmt: skip
KEPT = 3  # tokens that the check reads on from its prompts
CHOSEN = (1, 2)  # of each of the probe's branches, by row
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
    key = (getattr(config, "_attn_implementation", None), model.dtype, str(input_device(model)), model.training)
    per_model = _checked.setdefault(model, {})
    with _checking:
        if key not in per_model:
            # The check itself opens streams on this model; they must not check again.
            per_model[key] = Branching(False, "being checked")
            try:
                found = per_model[key] = _check(model)
                if found.reason == NO_NUMBERS:
                    del per_model[key]  # it says nothing of the model once it is mended
                return found
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
        except Exception as failure:
            refusal = failure.__cause__ or failure
            if says_nothing_of_the_model(refusal):
                raise
            if not shared:
                if isinstance(failure, DecodingError) and failure.__cause__ is None:
                    raise
                raise ModelError(
                    f"{type(model).__name__}: its rows cannot be forked ({type(refusal).__name__}: "
                    f"{one_line(refusal, 80)}), so it cannot be branched"
                ) from refusal
            # Whatever a model's forward raises on a 4-D mask means the same: it does not take one.
            return Branching(
                False, f"its forward() refuses branches side by side ({type(refusal).__name__}: {str(refusal)[:80]})"
            )
        if not shared:
            if any(bool(each.isnan().any()) for each in hidden[False]):
                return Branching(False, NO_NUMBERS)
            _require_exact(model, inputs, ids, hidden[False])
    error = max(relative_error(one, other) for one, other in zip(hidden[True], hidden[False], strict=True))
    if error < tolerance(model.dtype):
        return Branching(True, f"shared prefix equals forked rows (relative error {error:.1e})")
    return Branching(False, f"shared prefix differs from forked rows (relative error {error:.1e})")


def _require_exact(model: Any, inputs: dict[str, Any], ids: Tensor, hidden: list[Tensor]) -> None:
    """Raise ModelError where forked rows differ from the same texts read anew, from their first token.

    Some models answer otherwise with a cache than without one (in transformers 5.23 those that choose the keys to look
    at by an index of their own): contrastive search on them would be wrong without a word.
    """
    from decoding.stream import Stream

    rows, chosen = torch.arange(2, device=ids.device), torch.tensor(CHOSEN, device=ids.device)
    kept = torch.stack([ids[rows, chosen], ids[rows, 3 + chosen], ids[:, 0]], dim=1)
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], kept], dim=1)}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        whole["attention_mask"] = torch.cat([mask, mask.new_ones(2, KEPT)], dim=1)
    anew = Stream.open(model, **whole).prompt.hidden[:, -KEPT:]
    stepwise = torch.stack([hidden[0][rows, chosen, 0], hidden[1][rows, chosen, 0], hidden[2][:, 0]], dim=1)
    error = relative_error(stepwise, anew)
    # Half precision may send a token to another expert, which is far from equal and yet no fault.
    allowed = 1e-2 if model.dtype in (torch.float32, torch.float64) else 0.3
    if not error < allowed:
        raise ModelError(
            f"{type(model).__name__}: reading on from its cache differs from reading the text anew (relative error "
            f"{error:.1e}), so its branches cannot be trusted"
        )


def probe_batch(model: Any) -> tuple[dict[str, Any], Tensor]:
    """A small left-padded batch of prompts as ``generate`` takes it, and (2, 6) tokens to go on with."""
    config = model.config.get_text_config(decoder=True)
    windows = [value for name in WINDOWS if isinstance(value := getattr(config, name, None), int) and value <= 64]
    # Past each window where that is cheap; real models have windows of thousands, whose mask is the same code.
    length = max([8, *windows]) + 12
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and context > KEPT:
        length = min(length, context - KEPT)
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
    chosen = torch.tensor(CHOSEN, device=ids.device)
    first = stream.branch(ids[:, :3]).hidden
    stream.commit(chosen)
    second = stream.branch(ids[:, 3:]).hidden
    stream.commit(chosen)
    return [first, second, stream.extend(ids[:, :1]).hidden]
