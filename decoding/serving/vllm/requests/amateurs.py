"""Requests that read the engine's amateur."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from decoding.errors import OptionError, shown
from decoding.kernels.contrast import FUSIONS
from decoding.kernels.contrast.weighted import FORMS
from decoding.models.layer_numbers import layer_numbers, require_layers
from decoding.parameters import require_choice, require_number
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import MaskedRequest
from decoding.serving.vllm.requests.fields import as_list, flag

__all__ = ["ContrastiveDecodingRequest", "LOLRequest"]


@dataclass(frozen=True)
class ContrastiveDecodingRequest(MaskedRequest):
    """Contrastive decoding over the engine's amateur; see :class:`decoding.ContrastiveDecoding`."""

    beta: float = 0.5
    form: str = "logits"
    amateur_temperature: float = 1.0
    name: ClassVar[str] = "contrastive-decoding"
    needs_amateur: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("beta", self.beta, 0.0)
        require_choice("form", self.form, FORMS)
        require_number("amateur_temperature", self.amateur_temperature, 0.0, open_=True)
        if self.form == "logits" and self.amateur_temperature != 1:
            raise OptionError(
                f"amateur_temperature={shown(self.amateur_temperature)}: must be 1 with form='logits', where β alone "
                "weighs the amateur; form='log_probs' has a temperature"
            )

    @property
    def kind(self) -> Hashable:
        """Logits and log-probabilities are computed apart."""
        return type(self), self.form


@dataclass(frozen=True)
class LOLRequest(MaskedRequest):
    """LOL over the engine's amateur, without guidance; see :class:`decoding.LOL`."""

    lower_layers: Sequence[int | float] | None = None  # must be given
    amateur_weight: float = 1.0
    lower_amateur_weight: float = 1.0
    fusion_weight: float = 0.5
    fusion: str = "static"
    final_norm: bool = True
    name: ClassVar[str] = "lol"
    needs_amateur: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("amateur_weight", "lower_amateur_weight", "fusion_weight"):
            require_number(name, getattr(self, name), 0.0)
        require_choice("fusion", self.fusion, FUSIONS)
        object.__setattr__(self, "final_norm", flag("final_norm", self.final_norm))
        layers = as_list(self.lower_layers)
        require_layers("lower_layers", layers)
        object.__setattr__(self, "lower_layers", tuple(layers))

    @property
    def kind(self) -> Hashable:
        """Both fusions, and exits with and without the norm, are computed apart."""
        return type(self), self.fusion, self.final_norm

    @property
    def layers_read(self) -> tuple[int, ...]:
        """The lower layers."""
        return tuple(int(layer) for layer in self.lower_layers or ())

    def on(self, engine: EngineReaders) -> LOLRequest:
        """The request with numbers of layers; none where their weight leaves them out."""
        super().on(engine)
        assert self.lower_layers is not None
        fused = self.fusion == "entropy" or self.fusion_weight > 0
        layers = layer_numbers(self.lower_layers, engine.depth) if fused else ()
        engine.check_layers("lower_layers", self.lower_layers, layers)
        return dataclasses.replace(self, lower_layers=layers)
