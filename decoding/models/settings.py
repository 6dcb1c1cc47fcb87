"""Settings of a model that other libraries change on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["settings_kept"]


@contextmanager
def settings_kept(model: Any) -> Iterator[None]:
    """Give a model its settings back after the context: those of its parameters, its modules and its config.

    peft freezes all parameters and puts all modules into evaluation mode, where it loads an adapter; the ``Trainer`` of
    transformers puts all modules into training mode, and sets ``config.use_cache`` to False.
    """
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    use_cache = vars(model.config).get("use_cache")
    try:
        yield
    finally:
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training
        if use_cache is not None:
            model.config.use_cache = use_cache
