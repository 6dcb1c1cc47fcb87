"""Rows of one batch that run with different LoRA adapters, on one copy of a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from decoding.models.adapters import (
    BASE,
    Adapter,
    LoadedAdapter,
    LoraWeights,
    is_plain_layer,
    lora_layers,
    lora_weights,
)
from decoding.models.hooks import NO_KEYWORDS
from decoding.models.row_variants import HookedRows, row_slices

__all__ = ["MixedRows"]


class MixedRows(HookedRows):
    """Rows of a batch that run with different adapters of one model.

    The adapters act within :meth:`activated` and in its thread alone: before and after a forward pass nothing of them
    is on the model, and concurrent calls on the same model do not affect each other.

    Args:
        model: a transformers model.
        names: one adapter a row: the name of one on the model, or one beside it; ``BASE`` for none.

    Attributes:
        by_slices: True where every adapter is plain LoRA on linear layers: its output is added here, to slices of rows.
            Else peft adds it.
    """

    active: ClassVar[ContextVar[Any]] = ContextVar("decoding_mixed_rows", default=None)

    def __init__(self, model: Any, names: Sequence[Adapter]) -> None:
        self.names = list(names)
        self._layers = lora_layers(model)
        on_model = {name for name in names if isinstance(name, str)}
        self.by_slices = all(is_plain_layer(layer, on_model) for layer in self._layers)
        beside = dict.fromkeys(name for name in names if isinstance(name, LoadedAdapter))
        self._added: list[tuple[nn.Module, Callable[..., None]]] = []
        if self.by_slices and on_model - {BASE}:
            self._added += [(layer, self._add) for layer in self._layers]
        for adapter in beside:
            for module, weights in adapter.layers.items():
                self._added.append((model.get_submodule(module), self._adding(adapter, weights)))

    @property
    def key(self) -> Hashable:
        """The adapters of the rows."""
        return tuple(self.names)

    def repeated(self, rows: int) -> list[Adapter]:
        """The adapters of a batch in which each row is repeated ``rows / len(names)`` times."""
        times = rows // len(self.names)
        return [name for name in self.names for _ in range(times)]

    def hooked(self) -> Iterator[RemovableHandle]:
        """Put the hooks on."""
        for layer in self._layers:
            yield layer.register_forward_pre_hook(self._name, with_kwargs=True)
        for module, add in self._added:
            yield module.register_forward_hook(add)

    def _name(self, _layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] = NO_KEYWORDS) -> Any:
        if not self.is_active:
            return None
        rows = len(inputs[0])
        names = [name if isinstance(name, str) and not self.by_slices else BASE for name in self.repeated(rows)]
        return inputs, {**named, "adapter_names": names}

    def _add(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add the adapters' output to their rows, as peft does for the same names.

        peft selects rows by lists of numbers. On a GPU each layer copies them there and waits, and a CUDA graph cannot
        hold that. Rows of one adapter are adjacent, so slices are enough.
        """
        if not self.is_active:
            return
        for name, rows in row_slices(self.names, len(output)):
            if isinstance(name, str) and name in layer.lora_A:
                lora_weights(layer, name).add_to(output[rows], inputs[0][rows])

    def _adding(self, adapter: LoadedAdapter, weights: LoraWeights) -> Callable[..., None]:
        """A forward hook that adds the output of an adapter beside the model to its rows; see :meth:`_add`."""

        def add(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not self.is_active:
                return
            for name, rows in row_slices(self.names, len(output)):
                if name is adapter:
                    weights.add_to(output[rows], inputs[0][rows])

        return add
