"""DeCo: the final logits corrected by the lower layer that is surest among the final candidates (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.errors import OptionError
from decoding.generation.candidates import check_in_vocabulary
from decoding.kernels.candidates import candidate_mask
from decoding.kernels.layer_correction import corrected, probable_tokens, sureness
from decoding.models.layer_numbers import chosen_layers, deco_layers
from decoding.models.layers import depth_of, exits_of
from decoding.parameters import require_count, require_number, require_range
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["DeCo"]


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
            layers = deco_layers(depth_of(model))
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
        """1 of the final layer, and α·c of the layer that is surest, with the c of each."""
        _, exits, tokens, is_candidate = self._candidates(logits)
        log_probs = sureness(exits, tokens, is_candidate)
        log_c, chosen = log_probs.max(0)
        is_chosen = torch.nn.functional.one_hot(chosen, len(exits)).movedim(-1, 0)
        weights = ReaderWeights(1.0, is_chosen * self.alpha * log_c.exp())
        chosen_by = ("probability", log_probs.exp()) if len(exits) > 1 else None
        return ContrastParts({EXPERT: weights}, chosen_exit=chosen, chosen_by=chosen_by)

    def _candidates(self, logits: Mapping[str, ReaderLogits]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The final logits (..., vocab) float32, those of the exits, tokens (..., k), and which are candidates."""
        final, exits = logits[EXPERT].final.float(), logits[EXPERT].exits
        assert exits is not None
        return final, exits, *probable_tokens(final, self.threshold_top_p, self.threshold_top_k)
