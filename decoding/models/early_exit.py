"""A model with other layers, such as its lower ones alone, which shares the weights of the whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from decoding.errors import ModelError
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.structure import inspect_model

__all__ = ["cut_to_layers", "with_layers"]


_cut: PerModelMemo[Any] = PerModelMemo()


def cut_to_layers(model: Any, layers: int) -> Any:
    """The model as if it ended after its first layers: final norm and head follow these. Made once for each model.

    Args:
        model: a generating transformers model; it is not changed.
        layers: how many layers to keep, 1 to one less than it has.

    Raises:
        ModelError: a model whose layers were not found.
    """
    return _cut.get(model, (*model_cache_key(model), layers), lambda: _cut_to_layers(model, layers))


def _cut_to_layers(model: Any, layers: int) -> Any:
    structure = inspect_model(model)
    found = structure.layers
    if found is None or structure.no_early_exit:
        raise ModelError(
            f"{type(model).__name__} has no early exit: {structure.no_early_exit or 'its layers were not found'}"
        )
    copies = _with_layers(model, found, list(found)[:layers])
    for module in copies:
        if hasattr(module, "config"):
            module.config = _shortened(module.config, layers)
    copies[0].eval()
    return copies[0]


def with_layers(model: Any, layers: Sequence[nn.Module], backbone: nn.Module) -> tuple[Any, Any]:
    """The model with other layers in the places of its own, which is not changed; and its module that ``backbone`` is.

    Args:
        model: a transformers model whose layers were found.
        layers: as many as it has.
        backbone: of the model.
    """
    found = inspect_model(model).layers
    path = next((name for name, module in model.named_modules() if module is backbone), "")
    copied = _with_layers(model, found, layers)[0]
    return copied, copied.get_submodule(path)


def _with_layers(model: Any, found: Any, layers: Sequence[nn.Module]) -> list[Any]:
    """Copies of the modules from the model to the owner of the layers that were found, which has others."""
    path = next(name for name, module in model.named_modules() if module is found)
    copies = [_copied(model)]
    *names, last = path.split(".")
    for name in names:
        child = _copied(copies[-1]._modules[name])
        copies[-1]._modules[name] = child
        copies.append(child)
    copies[-1]._modules[last] = nn.ModuleList(layers)
    return copies


def _copied(module: Any) -> Any:
    """A module with children of its own dictionary, so that one can be replaced; the weights are shared."""
    copied = copy.copy(module)
    copied.__dict__ = dict(module.__dict__)
    copied._modules = dict(module._modules)
    return copied


def _shortened(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = list(text.layer_types)[:layers]
    return config
