"""SLED: the final logits moved towards what the lower layers' logits were moving to (Zhang et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from decoding.generation.candidates import check_in_vocabulary
from decoding.kernels.candidates import candidate_mask, top_candidates
from decoding.kernels.layer_evolution import evolved, latent_distribution
from decoding.models.layer_numbers import chosen_layers
from decoding.models.layers import depth_of, exits_of
from decoding.parameters import require_count, require_flag, require_number
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["SLED"]


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
