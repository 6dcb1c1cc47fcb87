"""Requests that read lower layers of the model alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from decoding.errors import OptionError, shown
from decoding.kernels.layer_divergence import KINDS
from decoding.models.layer_numbers import dola_layers
from decoding.parameters import require_choice
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import MaskedRequest
from decoding.serving.vllm.requests.fields import as_list, flag

__all__ = ["DoLaRequest"]


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
