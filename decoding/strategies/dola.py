"""DoLa: decoding by contrasting layers (Chuang et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from decoding.errors import OptionError, shown
from decoding.kernels.contrast import contrast_log_probs
from decoding.kernels.layer_divergence import layer_divergence
from decoding.models.layer_numbers import dola_layers
from decoding.models.layers import depth_of
from decoding.models.structure import inspect_model
from decoding.parameters import plain_numbers, require_choice, require_flag, require_range
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["DoLa"]

Divergence = Literal["dola", "jensen-shannon"]
DIVERGENCES: tuple[Divergence, ...] = ("dola", "jensen-shannon")


@dataclass(frozen=True)
class DoLa(ContrastStrategy):
    """DoLa: the final layer against the premature layer that differs most from it, at each token.

    The score is log p_N - log p_j over the tokens with p_N >= α·max p_N; j is the candidate layer with the largest
    divergence from the final layer N. Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality
    in Large Language Models", 2309.03883.

    Args:
        layers: candidates: "low" or "high" as transformers 4.55.4 has them (every second layer of the lower or the
            upper half, of 20 layers at either end beyond 40 layers; from layer 2 on where embeddings are tied), or how
            many layers each candidate has read, 0 (the embeddings) to the model's number of layers - 1.
        alpha: α in [0, 1].
        divergence: "dola", what DoLa's code computes, ½[KL(M‖p_N) + KL(M‖p_j)]; or "jensen-shannon", the textbook's
            with the arguments of KL the other way round. M is the average of the two distributions.
        final_norm: False, DoLa's way, puts the raw hidden states of the candidate layers into the head; True applies
            the final norm, and soft-cap or scale of the logits, as after the last layer.
        per_row: True chooses a layer for each row. False chooses one for the whole batch, as transformers 4.55.4 and
            DoLa's code do; a row's tokens then depend on its batch.

    Raises:
        OptionError: a value out of range, or a layer that the model does not have (when a call begins).
        ModelError: the lower layers of the model cannot be read (likewise).

    Example:
        >>> decoding.generate(model, **inputs, strategy=DoLa(layers="high"), repetition_penalty=1.2)
    """

    layers: str | Sequence[int] = field(default="high", metadata={"grid": ("low", "high")})
    alpha: float = 0.1
    divergence: Divergence = "dola"
    final_norm: bool = field(default=False, metadata={"grid": (False, True)})
    per_row: bool = True
    name: ClassVar[str] = "dola"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_choice("divergence", self.divergence, DIVERGENCES)
        require_flag("final_norm", self.final_norm)
        require_flag("per_row", self.per_row)
        if isinstance(self.layers, str):
            if self.layers not in ("low", "high"):
                raise self._bad_layers()
            return
        layers = plain_numbers(self.layers)
        if not isinstance(layers, Sequence) or not layers:
            raise self._bad_layers()
        if any(not isinstance(layer, int) or isinstance(layer, bool) for layer in layers):
            raise self._bad_layers()
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))

    def _bad_layers(self) -> OptionError:
        return OptionError(f"layers={shown(self.layers)}: must be low, high, or layer numbers such as [8, 10, 12]")

    @property
    def exit_norm(self) -> bool:  # type: ignore[override]
        """True where candidates pass the final norm."""
        return bool(self.final_norm)

    def candidates(self, model: Any) -> tuple[int, ...]:
        """The candidate layers for a model, ascending."""
        if not isinstance(self.layers, str):
            return tuple(self.layers)
        tied = bool(getattr(model.config, "tie_word_embeddings", False))
        return dola_layers(self.layers, depth_of(model), tied)

    def check(self, model: Any) -> None:
        """Raise where the model has no such layers, or they cannot be read."""
        candidates = self.candidates(model)
        if not candidates:
            raise OptionError(
                f"layers={shown(self.layers)}: none of the model's {depth_of(model)} layers; give numbers"
            )
        inspect_model(model).layers_before(model, candidates)

    def check_drafts(self, rows: int) -> None:
        """Raise OptionError where rows share a layer."""
        if rows > 1 and not self.per_row:
            raise OptionError(
                "drafts: with per_row=False the rows of a batch share a layer, and they would not read the same step; "
                "leave drafts out, or choose a layer for each row (per_row=True)"
            )

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert, which exits at every candidate layer too."""
        return [Reader(EXPERT, exits=self.candidates(model))]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """Log p_N - log p_j."""
        final, exits = logits[EXPERT].final, logits[EXPERT].exits
        assert exits is not None
        layer = self._chosen_exit(final, exits)[0]
        premature = exits[0] if layer is None else exits
        return Contrast(
            lambda alpha: contrast_log_probs(final, premature, alpha=alpha, layer=layer), lambda: final, self.alpha
        )

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """1 of the final layer and -1 of the premature one, with the divergences by which it was chosen."""
        final, exits = logits[EXPERT].final, logits[EXPERT].exits
        assert exits is not None
        chosen, divergences = self._chosen_exit(final, exits)
        if divergences is not None and not self.per_row:  # the batch has chosen by its mean
            divergences = divergences.mean(1, keepdim=True).expand_as(divergences)
        chosen_by = None if divergences is None else ("divergence", divergences)
        if chosen is None:
            chosen = torch.zeros(final.shape[:-1], dtype=torch.long, device=final.device)
        is_chosen = torch.nn.functional.one_hot(chosen, len(exits)).movedim(-1, 0)
        return ContrastParts({EXPERT: ReaderWeights(1.0, -is_chosen.float())}, chosen_exit=chosen, chosen_by=chosen_by)

    def _chosen_exit(self, final: Tensor, exits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(...) the index of the premature layer among (exits, ..., vocab) candidates, and the divergences (exits, ...)
        of the candidates; None where there is one.
        """
        if len(exits) == 1:
            return None, None
        divergences, chosen = layer_divergence(final, exits, self.divergence, self.per_row)
        return chosen, divergences
