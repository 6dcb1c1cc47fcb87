"""Attention weights: the token that each head attends to most."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError
from decoding.models.degraded_rows import attention_modules, heads_of
from decoding.models.structure import inspect_model
from decoding.models.wrappers import require_decoder_only
from decoding.transformers_private import eager_attention

__all__ = ["most_attended"]


@contextmanager
def most_attended(model: Any) -> Iterator[list[list[Tensor]]]:
    """Collect which token each head gives its largest weight, in the forward passes of this thread in the context.

    The model runs "eager" attention meanwhile, which computes weights, and afterwards what it ran before. Only the
    places are kept, so a pass needs the memory of one layer's weights.

    Yields:
        Of each layer a list with a tensor a pass, (rows, heads, queries) int64: how many tokens before the last token
        of the pass the head attends to most, 0 for that token itself. It is empty for a layer without weights.

    Raises:
        ModelError: an encoder-decoder, or a model whose layers were not found.
    """
    require_decoder_only(model)
    layers = inspect_model(model).layers
    if layers is None:
        raise ModelError(
            f"{type(model).__name__}: its decoder layers were not found, so its heads cannot be told apart"
        )
    places: list[list[Tensor]] = [[] for _ in layers]
    with eager_attention(model), ExitStack() as stack:
        for index, layer in enumerate(layers):
            for hook, module in _hooks(model, index, attention_modules(layer), places[index]):
                stack.callback(module.register_forward_hook(hook).remove)
        yield places


def _hooks(
    model: Any, layer: int, modules: list[nn.Module], places: list[Tensor]
) -> Iterator[tuple[Callable[..., None], nn.Module]]:
    """Forward hooks that keep the places of a layer's largest weights; of modules inside one another one is heard."""
    thread = threading.get_ident()
    heard: list[nn.Module] = []  # the first that returned weights: the innermost, whose output comes first

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        if (
            threading.get_ident() != thread
            or not isinstance(output, (tuple, list))
            or (heard and heard[0] is not module)
        ):
            return
        heads = heads_of(model, layer)
        weights = next((part for part in output[1:] if _are_weights(part, heads)), None)
        if weights is not None:
            heard[:] = [module]
            places.append(weights.shape[-1] - 1 - torch.argmax(weights, dim=-1))

    return ((keep, module) for module in modules)


def _are_weights(part: Any, heads: int) -> bool:
    """True for a tensor (rows, heads, queries, keys)."""
    if not isinstance(part, Tensor) or part.dim() != 4 or not part.is_floating_point():
        return False
    return part.shape[1] == heads and part.shape[2] <= part.shape[3]
