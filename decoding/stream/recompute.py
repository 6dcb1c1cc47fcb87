"""Branching without a cache: every branch is read from its first token.

Right for every model whose tokens do not look ahead, and dear: a step costs as much as reading the whole text once a
branch. It is for models that keep no cache, or answer otherwise from it, and for ``use_cache=False``.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from decoding.cache.growing import layers_of
from decoding.errors import DecodingWarning, InputError, ModelError, OptionError
from decoding.stream.forked_rows import of_branches, repeated
from decoding.stream.output import ForwardOutput, branched, picked, reordered
from decoding.transformers_private import CACHE_ARGUMENT, CACHE_ARGUMENTS, is_callers_cache

if TYPE_CHECKING:
    from decoding.stream.stream import Stream

__all__ = ["RecomputedBranches", "disable_cache", "recompute", "warn_recompute_cost", "why_cache_unusable"]

_told: weakref.WeakSet[Any] = weakref.WeakSet()  # models whose cost was warned of


def why_cache_unusable(cache: Any) -> str:
    """Why a cache that a model has read its prompt into cannot be read on from; empty where it can."""
    if not isinstance(cache, Cache):
        return f"it keeps its state in a {type(cache).__name__}, which cannot be branched"
    # Some models are handed one and let it be (OpenAI GPT, XLM).
    written = any(getattr(layer, "is_initialized", True) for layer in layers_of(cache))
    return "" if written else "it reads the whole text at each step and keeps nothing in its cache"


def warn_recompute_cost(model: Any, reason: str) -> None:
    """Warn of what reading anew costs, once a model."""
    if model not in _told:
        _told.add(model)
        warnings.warn(
            f"{type(model).__name__}: {reason}; its whole text is read anew at every step, which costs more the longer "
            "it is",
            DecodingWarning,
            stacklevel=2,
        )


def disable_cache(stream: Stream, reason: str) -> None:
    """Have a stream read its whole text at each step from here on.

    Raises:
        InputError: a cache or embeddings that were handed in cannot be read anew.
        ModelError: the model reads other tokens than those of the text.
        OptionError: the prompt was read in pieces, each behind the cache of those before.
    """
    model = stream.model
    name = type(model).__name__
    if is_callers_cache(stream.cache):
        raise InputError(f"{CACHE_ARGUMENT}: {name} is read without a cache ({reason}): leave it out")
    if stream.kwargs.get("inputs_embeds") is not None:
        raise InputError(f"inputs_embeds: {name} is read without a cache ({reason}): pass the prompt as input_ids")
    if stream.length != stream.input_ids.shape[1]:
        raise ModelError(f"{name}: {reason}, and it reads tokens beside its text's, so it cannot be branched")
    if stream.chunked:
        raise OptionError(f"prefill_chunk_size: {name} is read without a cache ({reason}): leave it out")
    warn_recompute_cost(model, reason)
    stream.cacheless = reason
    stream.kwargs = {key: value for key, value in stream.kwargs.items() if key not in CACHE_ARGUMENTS}
    stream.kwargs["use_cache"] = False


class RecomputedBranches:
    """Branches as rows, each read whole."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.tokens = tokens  # (batch, branches, n)
        _, self.branches, n = tokens.shape
        self.kwargs = stream.grown_kwargs(n)
        ids, kwargs = repeated(stream, self.kwargs, self.branches)
        self.flat = recompute(stream, torch.cat([ids, tokens.flatten(0, 1)], dim=1), kwargs, n)
        self.reading = branched(self.flat, 0, (-1, self.branches))

    def keep(self, branch: Tensor) -> ForwardOutput:
        """The reading of the kept branch."""
        rows = torch.arange(len(branch), device=branch.device)
        return picked(self.flat, rows * self.branches + branch)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, of_branches(rows, self.branches))

    def drop(self) -> None:
        """Forget all branches, of which nothing was kept."""


def recompute(stream: Stream, ids: Tensor, kwargs: dict[str, Any], n: int) -> ForwardOutput:
    """The reading of the last n tokens of whole texts (rows, length) that go with these keyword arguments."""
    whole = stream.run(stream.model.prepare_inputs_for_generation(ids, **kwargs), every_logit=n > 1)
    # Layers' states and attentions, where asked for, stay those of the whole text, as transformers has it.
    last = copy.copy(whole)
    last.hidden = whole.hidden[:, -n:].clone()  # not a view, which would hold on to the whole
    last.exits = tuple(states[:, -n:].clone() for states in whole.exits)
    last.logits = None if whole.logits is None else whole.logits[:, -n:].clone()
    return last
