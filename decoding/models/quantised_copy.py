"""A copy of a model whose linear layers have quantised weights, as a weaker reader."""

from __future__ import annotations

import copy
from typing import Any

from decoding.errors import ModelError
from decoding.models.memo import PerModelMemo, model_cache_key

__all__ = ["quantised_copy"]

_copies: PerModelMemo[Any] = PerModelMemo()


def quantised_copy(model: Any, weights: str) -> Any:
    """A copy of a model with weights of fewer bits, made once for a model and its weights.

    Args:
        model: a transformers model; the copy takes its size in memory until the weights are quantised.
        weights: "int8" or "int4", as optimum-quanto quantises them.

    Raises:
        ModelError: optimum-quanto is not installed.
    """
    try:
        from optimum import quanto
    except ImportError:
        raise ModelError("quantised: needs the package optimum-quanto: pip install optimum-quanto") from None

    def make() -> Any:
        quantised = copy.deepcopy(model)
        quanto.quantize(quantised, weights=getattr(quanto, f"q{weights}"), exclude="lm_head")
        quanto.freeze(quantised)
        return quantised.eval()

    # Weights that were trained on since make another copy.
    changes = sum(parameter._version for parameter in model.parameters())
    _copies.discard(model, lambda key: key[-1] != changes)
    return _copies.get(model, (weights, *model_cache_key(model), changes), make)
