"""Requests that read lower layers of the model alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from decoding.errors import OptionError, shown
from decoding.kernels.layer_divergence import KINDS
from decoding.models.layer_numbers import chosen_layers, deco_layers, dola_layers, layer_numbers
from decoding.parameters import require_choice, require_count, require_number, require_range
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import MaskedRequest, Request
from decoding.serving.vllm.requests.fields import as_list, flag

__all__ = ["DeCoRequest", "DoLaRequest", "LowerLayersRequest", "SLEDRequest"]


@dataclass(frozen=True)
class DoLaRequest(MaskedRequest):
    """DoLa; see :class:`decoding.DoLa`. Each row chooses its own layer."""

    layers: str | Sequence[int] = "high"
    divergence: str = "dola"
    final_norm: bool = False
    name: ClassVar[str] = "dola"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("divergence", self.divergence, KINDS)
        object.__setattr__(self, "final_norm", flag("final_norm", self.final_norm))
        if isinstance(self.layers, str) and self.layers in ("low", "high"):
            return
        layers = as_list(self.layers)
        whole = isinstance(layers, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in layers)
        if not whole or not layers:
            raise OptionError(f"layers={shown(self.layers)}: must be low, high, or layer numbers such as [8, 10, 12]")
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))

    @property
    def kind(self) -> Hashable:
        """Divergences of both kinds, and exits with and without the norm, are computed apart."""
        return type(self), self.divergence, self.final_norm

    @property
    def layers_read(self) -> tuple[int, ...]:
        """The layers that it chooses from."""
        return tuple(int(layer) for layer in self.layers)

    def on(self, engine: EngineReaders) -> DoLaRequest:
        """The request with numbers of layers."""
        if isinstance(self.layers, str):
            layers = dola_layers(self.layers, engine.depth, engine.tied)
            if not layers:
                raise OptionError(f"layers={self.layers!r}: none of the model's {engine.depth} layers; give numbers")
        else:
            layers = tuple(self.layers)
        engine.check_layers("layers", self.layers, layers)
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True)
class LowerLayersRequest(Request):
    """A request that changes the final logits of the most probable tokens by those of lower layers.

    Args:
        layers: the lower layers, as numbers or shares of the depth; None for the strategy's own choice.
    """

    layers: Sequence[int | float] | None = None
    tokens_field: ClassVar[str]  # the parameter that bounds the tokens that may be chosen

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", chosen_layers(as_list(self.layers)))
        require_count(self.tokens_field, getattr(self, self.tokens_field), 1, " to the size of the vocabulary")

    @property
    def kind(self) -> Hashable:
        """Rows of the same settings are computed together."""
        return self

    @property
    def layers_read(self) -> tuple[int, ...]:
        """The lower layers."""
        return tuple(int(layer) for layer in self.layers or ())

    def own_choice(self, depth: int) -> Sequence[int]:
        """The layers where the request names none."""
        raise NotImplementedError

    def on(self, engine: EngineReaders) -> Any:
        """The request with numbers of layers.

        Raises:
            OptionError: the engine does not show one, or the model has fewer tokens.
        """
        engine.check_tokens(self.tokens_field, getattr(self, self.tokens_field))
        layers = self.own_choice(engine.depth) if self.layers is None else layer_numbers(self.layers, engine.depth)
        engine.check_layers("layers", self.layers, layers)
        return dataclasses.replace(self, layers=tuple(layers))


@dataclass(frozen=True)
class SLEDRequest(LowerLayersRequest):
    """SLED; see :class:`decoding.SLED`."""

    evolution_rate: float = 2.0
    evolution_scale: int = 10
    steps: int = 10
    final_norm: bool = False
    name: ClassVar[str] = "sled"
    tokens_field: ClassVar[str] = "evolution_scale"

    def __post_init__(self) -> None:
        require_number("evolution_rate", self.evolution_rate, 0.0)
        super().__post_init__()
        require_count("steps", self.steps, 1)
        object.__setattr__(self, "final_norm", flag("final_norm", self.final_norm))

    def own_choice(self, depth: int) -> Sequence[int]:
        """All of them."""
        return range(depth)


@dataclass(frozen=True)
class DeCoRequest(LowerLayersRequest):
    """DeCo; see :class:`decoding.DeCo`. Each row chooses its own layer."""

    alpha: float = 0.6
    threshold_top_p: float = 0.9
    threshold_top_k: int = 20
    name: ClassVar[str] = "deco"
    tokens_field: ClassVar[str] = "threshold_top_k"

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, 0.0)
        require_range("threshold_top_p", self.threshold_top_p, 0.0, 1.0)
        if self.threshold_top_p == 0:
            raise OptionError("threshold_top_p=0: must be a number above 0 up to 1")
        super().__post_init__()

    def own_choice(self, depth: int) -> Sequence[int]:
        """Those of its paper, at the same shares of the depth."""
        return deco_layers(depth)
