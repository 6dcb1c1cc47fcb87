"""Values that are worked out once per model and live as long as it does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from decoding.models.devices import input_device
from decoding.transformers_private import attention_implementation

__all__ = ["PerModelMemo", "model_cache_key"]

Value = TypeVar("Value")


def model_cache_key(model: Any) -> tuple[Hashable, ...]:
    """Settings of a model that may change what a check of it finds: a finding holds while these stay the same.

    Returns:
        Attention implementation, dtype, input device and training mode.
    """
    return attention_implementation(model), model.dtype, str(input_device(model)), model.training


class PerModelMemo(Generic[Value]):
    """Values by model and key, each computed once.

    Threads that ask for a value of a model while another thread computes one for it wait; those of other models do
    not. A computation may ask for other keys of the same model. An exception is not kept: the next call computes
    again. The model is referred to weakly; a value must not refer to it, or neither would ever be freed.

    Example:
        >>> depths = PerModelMemo[int]()
        >>> depths.get(model, model_cache_key(model), lambda: len(model.model.layers))
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the table of models
        self._models: weakref.WeakKeyDictionary[Any, tuple[threading.RLock, dict[Hashable, Value]]] = (
            weakref.WeakKeyDictionary()
        )

    def get(
        self,
        model: Any,
        key: Hashable,
        compute: Callable[[], Value],
        is_final: Callable[[Value], bool] = lambda value: True,
    ) -> Value:
        """The value of a key of a model, computed where it is not known yet.

        Args:
            model: whose value it is.
            key: names the value; :func:`model_cache_key` is part of it where the value depends on these settings.
            compute: works the value out.
            is_final: False for a value that is returned this once and not kept.
        """
        lock, values = self._entry(model)
        with lock:
            if key in values:
                return values[key]
            value = compute()
            if is_final(value):
                values[key] = value
            return value

    def discard(self, model: Any, is_obsolete: Callable[[Any], bool]) -> None:
        """Forget the values of a model whose keys are obsolete."""
        lock, values = self._entry(model)
        with lock:
            for key in [key for key in values if is_obsolete(key)]:
                del values[key]

    def _entry(self, model: Any) -> tuple[threading.RLock, dict[Hashable, Value]]:
        with self._lock:
            return self._models.setdefault(model, (threading.RLock(), {}))
