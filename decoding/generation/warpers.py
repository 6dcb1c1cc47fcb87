"""Samplers that transformers lacks, as logits processors: they keep some tokens and exclude the others."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from decoding.kernels.truncation import p_less, top_n_sigma
from decoding.parameters import plain_number, require_number

__all__ = ["PLessLogitsWarper", "TopNSigmaLogitsWarper"]


class TopNSigmaLogitsWarper(LogitsProcessor):
    """Keep the tokens with l >= max l - n·σ, σ the standard deviation of the row's finite scores.

    For ``logits_processor=[...]`` of ``generate``, plain or with any strategy. A temperature before or after it changes
    nothing of what it keeps. Source: Tang et al., "Top-nσ: Not All Logits Are You Need", 2411.07641.

    Args:
        n: >= 0; the paper uses 1.

    Raises:
        OptionError: n out of range.

    Example:
        >>> warper = decoding.TopNSigmaLogitsWarper()
        >>> decoding.generate(model, **inputs, strategy=DoLa(), do_sample=True, logits_processor=[warper])
    """

    def __init__(self, n: float = 1.0) -> None:
        require_number("n", n, 0.0)
        self.n = float(plain_number(n))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocab) the scores, -inf where a token is not kept."""
        return scores.masked_fill(~top_n_sigma(scores, self.n), -torch.inf)


class PLessLogitsWarper(LogitsProcessor):
    """Keep the tokens with p >= Σ p². It has no parameter.

    For ``logits_processor=[...]`` of ``generate``, plain or with any strategy. The paper computes it after the
    temperature, and ``generate`` puts its own temperature after the processors that it is given: for another than 1,
    give ``logits_processor=[TemperatureLogitsWarper(t), PLessLogitsWarper()]``, or sample with
    :class:`decoding.PLess`. Source: Tan et al., "p-less Sampling: A Robust Hyperparameter-Free Approach for LLM
    Decoding", 2509.23234.

    Example:
        >>> warper = decoding.PLessLogitsWarper()
        >>> decoding.generate(model, **inputs, strategy=DoLa(), do_sample=True, logits_processor=[warper])
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocab) the scores, -inf where a token is not kept."""
        return scores.masked_fill(~p_less(scores), -torch.inf)
