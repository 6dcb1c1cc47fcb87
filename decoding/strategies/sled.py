"""SLED: the final logits moved towards what the lower layers' logits were moving to (Zhang et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.generation.candidates import candidate_mask, check_in_vocabulary, top_candidates
from decoding.models.layers import chosen_layers, depth_of, exits_of
from decoding.parameters import require_count, require_flag, require_number
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["SLED", "evolved", "latent_distribution"]


@dataclass(frozen=True)
class SLED(ContrastStrategy):
    """SLED, self logits evolution decoding: the final logits take steps towards what the layers' evolution implies.

    From a lower layer n to the final one N the logits move by l_N - l_n. For each of the k tokens i that are most
    probable in the end, that move is compared with the one that would make i certain, which is against the gradient
    of the cross-entropy: m_n,i = max(cos(softmax(l_n) - e_i, l_n - l_N), 0)². The latent distribution P over the k
    tokens is Σ_n m_n,i, divided by its sum; so each layer counts as much as it points anywhere. The final logits l then
    take T steps of gradient descent, l ← l - η·(1 - t/T)·(softmax(l) - P) for t = 0 ... T - 1, and only the k tokens
    may be chosen.

    Source: Zhang et al., "SLED: Self Logits Evolution Decoding for Improving Factuality in Large Language Models",
    2411.02433; T, the layers and their logits without the final norm are those of the authors' code. Rate and scale
    depend on the task there: 2 and 10 for FACTOR, which are the defaults here; 2.5 and 75 for TruthfulQA; 1.75 and 5
    for StrategyQA. Ours: tokens outside the k are -inf (the code gives them a bound between -100 and -2500 by task;
    scoring here has a floor), and logits stay as they are where no layer points to any of the k tokens.

    Args:
        layers: the lower layers, each as how many layers it has read (an int, from 0, the embeddings) or as a share of
            the depth (a float between 0 and 1); None is all of them.
        evolution_rate: η >= 0; 0 is the model's own distribution over the k tokens.
        evolution_scale: k >= 1.
        steps: T >= 1.
        final_norm: False, the way of the authors' code, puts the raw hidden states of lower layers into the head; True
            applies the final norm, and soft-cap or scale of the logits, as after the last layer.

    Raises:
        OptionError: a value out of range, a layer that the model does not have, or k beyond its vocabulary (when a call
            begins).
        ModelError: the lower layers of the model cannot be read (likewise).

    Example:
        >>> decoding.generate(model, **inputs, strategy=SLED(evolution_rate=2.5), max_new_tokens=64)
    """

    layers: Sequence[int | float] | None = None
    evolution_rate: float = field(default=2.0, metadata={"grid": (1.0, 2.0, 2.5)})
    evolution_scale: int = field(default=10, metadata={"grid": (10, 75)})
    steps: int = 10
    final_norm: bool = field(default=False, metadata={"grid": (False, True)})
    name: ClassVar[str] = "sled"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("evolution_rate", self.evolution_rate, 0.0)
        require_count("evolution_scale", self.evolution_scale, 1, " to the size of the vocabulary")
        require_count("steps", self.steps, 1)
        require_flag("final_norm", self.final_norm)
        object.__setattr__(self, "layers", chosen_layers(self.layers))

    @property
    def exit_norm(self) -> bool:  # type: ignore[override]
        """True where lower layers pass the final norm."""
        return bool(self.final_norm)

    def check(self, model: Any) -> None:
        """Raise where the model has no such layers or tokens, or its layers cannot be read."""
        check_in_vocabulary("evolution_scale", self.evolution_scale, model)
        self.readers(model, 1)

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert, which exits at the lower layers too."""
        layers = range(depth_of(model)) if self.layers is None else self.layers
        return [Reader(EXPERT, exits=exits_of(model, layers))]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The evolved logits of the k tokens."""
        final, exits, tokens = self._candidates(logits)

        def score_fn(_: float | None) -> Tensor:
            latent = latent_distribution(final, exits, tokens)
            return evolved(final, latent, tokens, self.evolution_rate, self.steps)

        return Contrast(score_fn, lambda: final, alpha=None, mask=lambda: candidate_mask(final, tokens))

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """The final layer, and how far the layers' evolution moves each logit."""
        final, exits, tokens = self._candidates(logits)
        scores = evolved(final, latent_distribution(final, exits, tokens), tokens, self.evolution_rate, self.steps)
        return ContrastParts({EXPERT: ReaderWeights(1.0)}, {"evolution": (scores - final, 1.0)})

    def _candidates(self, logits: Mapping[str, ReaderLogits]) -> tuple[Tensor, Tensor, Tensor]:
        """The final logits (..., vocab) float32, those of the exits, and the k tokens (..., k)."""
        final, exits = logits[EXPERT].final.float(), logits[EXPERT].exits
        assert exits is not None
        return final, exits, top_candidates(final, self.evolution_scale)[1]


def latent_distribution(final: Tensor, exits: Tensor, tokens: Tensor) -> Tensor:
    """Compute what the evolution of the layers' logits implies for the candidates: P of :class:`SLED`.

    The cosines need no vector for each candidate: softmax(l_n) - e_i enters by its norm and its product with the move.
    Where an exit is sure of one token these differences would cancel, so that token is left out of the softmax and
    added by its odds. Beside the logits it holds three tensors (..., vocab), whatever the number of layers.

    Args:
        final: (..., vocab) float32, logits of the final layer.
        exits: (layers, ..., vocab), those of the lower layers, any float dtype.
        tokens: (..., k) the candidates.

    Returns:
        (..., k) float32, of sum 1; all 0 where no layer points to any of them. A token at -inf in either layer takes no
        part in a move.
    """
    evidence = torch.zeros(tokens.shape, dtype=torch.float32, device=final.device)
    for layer in exits:
        lower = layer.to(final.device, torch.float32, copy=True)
        logit, surest = lower.max(-1, keepdim=True)  # (..., 1)
        others = lower.scatter(-1, surest, -torch.inf)
        rest = others.logsumexp(-1, keepdim=True)
        others = others.sub_(rest).exp_()  # the distribution without the surest token
        p_surest, p_rest = (logit - rest).sigmoid(), (rest - logit).sigmoid()
        move = lower.sub_(final).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        length = torch.linalg.vector_norm(move, dim=-1, keepdim=True)
        among_others = torch.linalg.vecdot(others, move)[..., None]
        square = torch.linalg.vecdot(others, others)[..., None]
        of_surest = move.gather(-1, surest)
        # <p, move> and |p|², of the whole distribution p.
        product, norm = p_surest * of_surest + p_rest * among_others, p_surest**2 + p_rest**2 * square
        p = p_rest * others.gather(-1, tokens)  # at most a half, and 0 for the surest token
        cosines = (product - move.gather(-1, tokens)) / ((norm - 2 * p + 1).sqrt() * length)
        # p - e_surest is p_rest·(others - e_surest), whose direction does not depend on how sure the layer is.
        of_surest = (among_others - of_surest) / ((square + 1).sqrt() * length)
        cosines = torch.where(tokens == surest, of_surest, cosines)
        evidence += cosines.nan_to_num(nan=0.0).clamp_min(0.0).square()  # NaN where the logits did not move
    return evidence / evidence.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def evolved(final: Tensor, latent: Tensor, tokens: Tensor, rate: float, steps: int) -> Tensor:
    """Move logits towards a distribution over some tokens, by gradient descent on their divergence from it.

    Args:
        final: (..., vocab) float32.
        latent: (..., k) the distribution; a row of 0 leaves its logits as they are.
        tokens: (..., k) the tokens.
        rate: of the first step; those after it fall to 0 in a line.
        steps: how many.

    Returns:
        (..., vocab) float32.
    """
    logits = final.clone()
    known = latent.sum(-1, keepdim=True) > 0
    for step in range(steps):
        gradient = logits.softmax(-1).scatter_add_(-1, tokens, -latent)
        logits.sub_(gradient.mul_(known), alpha=rate * (1 - step / steps))
    return logits
