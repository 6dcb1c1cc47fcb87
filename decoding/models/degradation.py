"""What a degraded self lacks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation:
    """What is taken from a model.

    Attributes:
        skip_layers: decoder layers that change nothing, counted from 0.
        mask_heads: attention heads whose output is zero, as pairs of a layer and its heads, each counted from 0.
        dropout: share of the channels of what each layer adds that is dropped, in [0, 1). The others are scaled by
            1 / (1 - dropout). The channels are drawn once a layer: every token meets the same thinned model.
        seed: of the draw.
        expert_rank: in a mixture of experts, the rank (1 is the best) of the only expert that a token is sent to; None
            for the model's own routing.
    """

    skip_layers: tuple[int, ...] = ()
    mask_heads: tuple[tuple[int, tuple[int, ...]], ...] = ()
    dropout: float = 0.0
    seed: int = 0
    expert_rank: int | None = None
