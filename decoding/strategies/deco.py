"""DeCo: the final logits corrected by the lower layer that is surest among the final candidates (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.errors import OptionError
from decoding.generation.candidates import candidate_mask, check_in_vocabulary, top_candidates
from decoding.models.layers import chosen_layers, depth_of, exits_of
from decoding.parameters import require_count, require_number, require_range
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["DeCo", "corrected"]

FIRST, LAST = 20 / 32, 28 / 32  # of the depth: the layers of the paper's models of 32 layers


@dataclass(frozen=True)
class DeCo(ContrastStrategy):
    """DeCo, dynamic correction decoding: what a lower layer says is added to the final logits.

    The candidates are the tokens that reach a probability of p in the end, the one that reaches it included, of the k
    most probable. Among the lower layers, i is the one that gives some candidate the largest probability, c. The score
    is l_N + α·c·l_i over the candidates; others may not be chosen.

    Source: Wang et al., "MLLM can see? Dynamic Correction Decoding for Hallucination Mitigation", 2410.11779, made for
    models of images and text and just as defined for text; α, p and k are its defaults, and so are the layers 20 to 28
    of models of 32. Ours: models of another depth take the layers at the same shares of it, and each row of a batch
    has candidates and a layer of its own (the authors' code runs one row).

    Args:
        layers: the lower layers, each as how many layers it has read (an int, from 0, the embeddings) or as a share of
            the depth (a float between 0 and 1); None is all from 5/8 to 7/8 of the depth. They pass the final norm.
        alpha: α >= 0; 0 is the model's own distribution over the candidates.
        threshold_top_p: p, above 0 and up to 1.
        threshold_top_k: k >= 1.

    Raises:
        OptionError: a value out of range, a layer that the model does not have, or k beyond its vocabulary (when a call
            begins).
        ModelError: the lower layers of the model cannot be read (likewise).

    Example:
        >>> decoding.generate(model, **inputs, strategy=DeCo(alpha=0.5), max_new_tokens=64)
    """

    layers: Sequence[int | float] | None = None
    alpha: float = field(default=0.6, metadata={"grid": (0.3, 0.6)})
    threshold_top_p: float = 0.9
    threshold_top_k: int = 20
    name: ClassVar[str] = "deco"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha, 0.0)
        require_range("threshold_top_p", self.threshold_top_p, 0.0, 1.0)
        if self.threshold_top_p == 0:
            raise OptionError("threshold_top_p=0: must be a number above 0 up to 1")
        require_count("threshold_top_k", self.threshold_top_k, 1, " to the size of the vocabulary")
        object.__setattr__(self, "layers", chosen_layers(self.layers))

    def check(self, model: Any) -> None:
        """Raise where the model has no such layers or tokens, or its layers cannot be read."""
        check_in_vocabulary("threshold_top_k", self.threshold_top_k, model)
        self.readers(model, 1)

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert, which exits at the lower layers too."""
        layers: Sequence[int | float] | None = self.layers
        if layers is None:
            depth = depth_of(model)
            layers = range(min(round(FIRST * depth), depth - 1), min(round(LAST * depth), depth - 1) + 1)
        return [Reader(EXPERT, exits=exits_of(model, layers))]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The corrected logits of the candidates."""
        final, exits, tokens, is_candidate = self._candidates(logits)
        return Contrast(
            lambda _: corrected(final, exits, tokens, is_candidate, self.alpha),
            lambda: final,
            alpha=None,
            mask=lambda: candidate_mask(final, tokens, is_candidate),
        )

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """1 of the final layer, and α·c of the layer that is surest."""
        _, exits, tokens, is_candidate = self._candidates(logits)
        log_c, chosen = surest_exit(exits, tokens, is_candidate)
        is_chosen = torch.nn.functional.one_hot(chosen, len(exits)).movedim(-1, 0)
        weights = ReaderWeights(1.0, is_chosen * self.alpha * log_c.exp())
        return ContrastParts({EXPERT: weights}, chosen_exit=chosen)

    def _candidates(self, logits: Mapping[str, ReaderLogits]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The final logits (..., vocab) float32, those of the exits, tokens (..., k), and which are candidates."""
        final, exits = logits[EXPERT].final.float(), logits[EXPERT].exits
        assert exits is not None
        probabilities, tokens = top_candidates(final.softmax(-1), self.threshold_top_k)
        before = torch.nn.functional.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))
        return final, exits, tokens, before < self.threshold_top_p


def corrected(final: Tensor, exits: Tensor, tokens: Tensor, is_candidate: Tensor, alpha: float) -> Tensor:
    """Add the logits of the layer that is surest of a candidate, by how sure it is.

    Args:
        final: (..., vocab) float32, logits of the final layer.
        exits: (layers, ..., vocab), those of the lower layers, any float dtype.
        tokens: (..., k) token ids.
        is_candidate: (..., k) which of them are candidates, one at least.
        alpha: α >= 0.

    Returns:
        (..., vocab) float32: l_N + α·c·l_i, i the first of equally sure layers and c its largest probability of a
        candidate; -inf where either layer excludes a token.
    """
    if alpha == 0:
        return final
    log_c, chosen = surest_exit(exits, tokens, is_candidate)
    lower = torch.take_along_dim(exits, chosen.to(exits.device)[None, ..., None], dim=0)[0].to(final.device)
    scores = final + (alpha * log_c.exp())[..., None] * lower.float()
    return scores.masked_fill(lower == -torch.inf, -torch.inf)  # 0 · -inf is NaN


def surest_exit(exits: Tensor, tokens: Tensor, is_candidate: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log-probability (...) that a lower layer gives a candidate, and the index (...) of the first such
    layer; arguments as in :func:`corrected`.
    """
    log_probs = []
    for layer in exits:  # one after the other: logits of all layers in float32 would be as large again, or twice
        lower = layer.to(tokens.device, torch.float32)
        best = lower.gather(-1, tokens).masked_fill(~is_candidate, -torch.inf).amax(-1)
        log_probs.append(best - lower.logsumexp(-1))
    log_c, chosen = torch.stack(log_probs).max(0)
    return log_c, chosen
