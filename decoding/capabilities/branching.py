"""The way in which a model branches, decided by a numeric check of the fast way against the general one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoding.capabilities.probes import (
    PROBE_CHOICES,
    PROBE_CONTINUATION,
    open_probe_stream,
    probe_batch,
    run_probe,
)
from decoding.errors import DecodingError, ModelError, one_line
from decoding.models.forward_errors import is_environment_error
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import NO_NUMBERS, relative_error, tolerance
from decoding.stream.stream import Stream
from decoding.stream.ways import Branching

__all__ = ["branching_of"]


FORKED_BY_CONSTRUCTION = "encoder-decoder models take positions from the cache length"

_memo = PerModelMemo[Branching]()


@torch.no_grad()
def branching_of(model: Any, use_cache: bool = True, padded: bool = True) -> Branching:
    """The cheapest way of branching on which a model answers rightly, found on a small batch of two rows.

    A shared prefix is compared with the recomputed texts; where they differ, forked rows are compared with these, and
    the shared prefix with forked rows. Done once per model, attention implementation, dtype and device; a few forward
    passes over a dozen tokens.

    Args:
        model: a generating transformers model.
        use_cache: of the call; without a cache every branch is recomputed.
        padded: True where rows may have left padding. A way that is right with padding is right without; some models
            (Git) misread their cache after padding only.

    Raises:
        ModelError: no way is right: the model's output for a token changes with the tokens after it.
    """
    return _memo.get(
        model,
        (*model_cache_key(model), use_cache, padded),
        lambda: _right_with_padding(model, use_cache, padded) or _check(model, use_cache, padded),
        is_final=lambda branching: branching.reason != NO_NUMBERS,  # it tells nothing of the model once it is mended
    )


def _right_with_padding(model: Any, use_cache: bool, padded: bool) -> Branching | None:
    """The way that is right with padding, for rows without it; None where there is none or an expensive one."""
    if padded:
        return None
    try:
        found = branching_of(model, use_cache)
    except ModelError as refusal:
        if is_environment_error(refusal):
            raise
        return None
    return None if found.way == "recompute" and use_cache and found.reason != NO_NUMBERS else found


def _check(model: Any, use_cache: bool, padded: bool) -> Branching:
    if model.config.is_encoder_decoder:
        return Branching("fork", FORKED_BY_CONSTRUCTION) if use_cache else Branching("recompute", "use_cache=False")
    inputs, ids = probe_batch(model, padded)
    inputs["use_cache"] = use_cache
    stream = open_probe_stream(model, inputs, None)
    if stream.recompute_reason:
        return _recompute(model, inputs, ids, stream.recompute_reason)
    shared = _probe_or_failure(stream, ids) if stream.branching.way == "shared prefix" else None
    recomputed = None
    if isinstance(shared, list):
        # Forked rows are right too, in a call whose cache needs them: rows of a larger batch that are extended.
        recomputed = _recomputed(model, inputs, ids)
        error = _error_of_continuing(shared, recomputed)
        if error < tolerance(model.dtype):
            return Branching("shared prefix", f"shared prefix equals recomputing the text (relative error {error:.1e})")
    if shared is not None:
        stream = open_probe_stream(model, inputs)
    forked = _probe_or_failure(stream, ids)
    if isinstance(forked, str):
        return _recompute(model, inputs, ids, f"its rows cannot be forked ({forked})")
    if any(bool(states.isnan().any()) for states in forked):
        return Branching("fork", NO_NUMBERS)
    error = _error_of_continuing(forked, recomputed or _recomputed(model, inputs, ids))
    if not error < _allowed(model):
        reason = f"continuing from its cache differs from recomputing the text (relative error {error:.1e})"
        return _recompute(model, inputs, ids, reason)
    if shared is None:
        return Branching("fork", "its cache or its forward() does not allow tree attention")
    if isinstance(shared, str):
        # Whatever a model's forward raises on a 4-D mask means the same: it does not take one.
        return Branching("fork", f"its forward() refuses tree attention ({shared})")
    error = max(relative_error(one, other) for one, other in zip(shared, forked, strict=True))
    if error < tolerance(model.dtype):
        return Branching("shared prefix", f"shared prefix equals forked rows (relative error {error:.1e})")
    return Branching("fork", f"shared prefix differs from forked rows (relative error {error:.1e})")


def _probe_or_failure(stream: Stream, ids: Tensor) -> list[Tensor] | str:
    """The hidden states of :func:`run_probe`, or the failure in one line; the stream is released."""
    try:
        return run_probe(stream, ids)
    except Exception as failure:
        refusal = failure.__cause__ or failure
        deliberate = isinstance(failure, DecodingError) and failure.__cause__ is None
        if is_environment_error(refusal) or (deliberate and stream.branching.way == "fork"):
            raise
        return f"{type(refusal).__name__}: {one_line(refusal, 80)}"
    finally:
        stream.release()


def _recomputed(model: Any, inputs: dict[str, Any], ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the kept tokens of :func:`run_probe` give as a text of its own: hidden states (2, 3, dim), last logits."""
    rows = torch.arange(2, device=ids.device)
    first, second = torch.tensor(PROBE_CHOICES, device=ids.device)
    kept = torch.stack([ids[rows, first], ids[rows, 3 + second], ids[:, 0]], dim=1)
    stream = open_probe_stream(model, _continued(inputs, kept))
    return stream.prompt.hidden[:, -PROBE_CONTINUATION:], stream.logits(stream.prompt)


def _error_of_continuing(probe: list[Tensor], recomputed: tuple[Tensor, Tensor]) -> float:
    """Relative error of branches, of which some were kept, against the same texts recomputed.

    Some models answer differently with a cache than without one (in transformers 5.23 ProphetNet, and after padding Git
    and DeepSeek-V4): contrastive search on their cache would be silently wrong.
    """
    rows = torch.arange(2, device=probe[0].device)
    first, second = torch.tensor(PROBE_CHOICES, device=rows.device)
    stepwise = torch.stack([probe[0][rows, first, 0], probe[1][rows, second, 0], probe[2][:, 0]], dim=1)
    hidden, logits = recomputed
    return max(relative_error(stepwise, hidden), *(relative_error(last, logits) for last in probe[3:]), 0.0)


def _recompute(model: Any, inputs: dict[str, Any], ids: Tensor, reason: str) -> Branching:
    """The way without a cache, which is right where the states of a text's beginning do not change as it grows."""
    before = open_probe_stream(model, inputs | {"use_cache": False}).prompt.hidden
    after = open_probe_stream(
        model, _continued(inputs, ids[:, :PROBE_CONTINUATION]) | {"use_cache": False}
    ).prompt.hidden
    read = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    before, after = before[:, : read.shape[1]][read], after[:, : read.shape[1]][read]
    if bool(before.isnan().any()):
        return Branching("recompute", NO_NUMBERS)
    error = relative_error(after, before)
    if not error < _allowed(model):
        raise ModelError(
            f"{type(model).__name__}: {reason}, and its output for a token changes with the tokens after it (relative "
            f"error {error:.1e}), so it cannot be branched{_unless_unpadded(model, inputs)}"
        )
    return Branching("recompute", reason)


def _unless_unpadded(model: Any, inputs: dict[str, Any]) -> str:
    """The end of a refusal of padded rows that says what works, where rows without padding do."""
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()):
        return ""
    try:
        # Not branching_of(), which asks for the way with padding first: the question that is being answered.
        _check(model, inputs["use_cache"], padded=False)
    except ModelError:
        return ""
    return " after padding: give it rows of one length, or one at a time"


def _continued(inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The same prompts with (batch, n) more tokens."""
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1)}
    if "attention_mask" in inputs:
        whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
    return whole


def _allowed(model: Any) -> float:
    """Relative error under which an output counts as right: half precision may send a token to another expert."""
    return 1e-2 if model.dtype in (torch.float32, torch.float64) else 0.3
