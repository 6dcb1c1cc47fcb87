"""Branching by recomputation: without a cache, every branch is read from its first token.

It is right for every causal model and expensive: a step costs as much as reading the whole text once a branch. It
serves models that keep no cache or answer differently from it, and ``use_cache=False``.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from decoding.cache.growing import layers_of
from decoding.errors import DecodingWarning, InputError, ModelError, OptionError
from decoding.stream.forked_rows import rows_of_branches, with_forked_rows
from decoding.stream.output import ForwardOutput, picked, reordered, split_branches
from decoding.stream.state import BatchState
from decoding.transformers_private import CACHE_ARGUMENT, CACHE_ARGUMENTS, is_callers_cache

__all__ = ["RecomputedBranches", "disable_cache", "recompute", "warn_recompute_cost", "why_cache_unusable"]

_warned: weakref.WeakSet[Any] = weakref.WeakSet()  # models whose cost was warned of


def why_cache_unusable(cache: Any) -> str:
    """The reason why a cache that a model has read its prompt into cannot be continued; empty where it can."""
    if not isinstance(cache, Cache):
        return f"it keeps its state in a {type(cache).__name__}, which cannot be branched"
    # Some models take a cache and do not use it (OpenAI GPT, XLM).
    written = any(getattr(layer, "is_initialized", True) for layer in layers_of(cache))
    return "" if written else "it reads the whole text at each step and keeps nothing in its cache"


def warn_recompute_cost(model: Any, reason: str) -> None:
    """Warn of the cost of recomputation, once a model."""
    if model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"{type(model).__name__}: {reason}; the whole text is recomputed at every step, which costs "
            "more the longer it is",
            DecodingWarning,
            stacklevel=2,
        )


def disable_cache(state: BatchState, reason: str) -> None:
    """Recompute the whole text at each step from now on.

    Raises:
        InputError: a cache or embeddings of the caller's cannot be recomputed.
        ModelError: the model reads other tokens than those of the text.
        OptionError: the prompt was read by chunked prefill, each chunk after the cache of those before.
    """
    model = state.model
    name = type(model).__name__
    if is_callers_cache(state.cache):
        raise InputError(f"{CACHE_ARGUMENT}: {name} is read without a cache ({reason}): leave it out")
    if state.kwargs.get("inputs_embeds") is not None:
        raise InputError(f"inputs_embeds: {name} is read without a cache ({reason}): pass the prompt as input_ids")
    if state.length != state.input_ids.shape[1]:
        raise ModelError(f"{name}: {reason}, and it reads tokens beside its text's, so it cannot be branched")
    if state.chunked:
        raise OptionError(f"prefill_chunk_size: {name} is read without a cache ({reason}): leave it out")
    warn_recompute_cost(model, reason)
    state.recompute_reason = reason
    state.kwargs = {key: value for key, value in state.kwargs.items() if key not in CACHE_ARGUMENTS}
    state.kwargs["use_cache"] = False


class RecomputedBranches:
    """Branches as rows, each recomputed whole.

    Attributes:
        tokens: (batch, branches, n) token ids.
        kwargs: the model's keyword arguments once one branch is kept.
        output: of the branches; ``hidden`` is (batch, branches, n, dim).
    """

    def __init__(self, state: BatchState, tokens: Tensor) -> None:
        self.tokens = tokens
        _, self.branches, n = tokens.shape
        self.kwargs = state.grown_kwargs(n)
        ids, kwargs = with_forked_rows(state, self.kwargs, self.branches)
        self.flat = recompute(state, torch.cat([ids, tokens.flatten(0, 1)], dim=1), kwargs, n)
        self.output = split_branches(self.flat, 0, (-1, self.branches))

    def keep(self, branch: Tensor) -> ForwardOutput:
        """The output of the kept branch."""
        rows = torch.arange(len(branch), device=branch.device)
        return picked(self.flat, rows * self.branches + branch)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, branches included."""
        self.tokens = self.tokens[rows]
        self.kwargs = reordered(self.kwargs, rows)
        self.flat = picked(self.flat, rows_of_branches(rows, self.branches))

    def drop(self) -> None:
        """Forget all branches, of which nothing was kept."""


def recompute(state: BatchState, ids: Tensor, kwargs: dict[str, Any], n: int) -> ForwardOutput:
    """The output of the last n tokens of whole texts (rows, length) with these keyword arguments."""
    whole = state.run(state.model.prepare_inputs_for_generation(ids, **kwargs), every_logit=n > 1)
    # Layers' states and attentions, where asked for, stay those of the whole text, as transformers has it.
    last = copy.copy(whole)
    last.hidden = whole.hidden[:, -n:].clone()  # not a view, which would hold on to the whole
    last.exits = tuple(states[:, -n:].clone() for states in whole.exits)
    last.logits = None if whole.logits is None else whole.logits[:, -n:].clone()
    return last
