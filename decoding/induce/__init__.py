"""Induced amateurs: a LoRA adapter that is trained to hallucinate, and the examples that it learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decoding.induce.examples import Example, read_examples
from decoding.induce.recipe import Recipe

if TYPE_CHECKING:
    from decoding.induce.training import induce

__all__ = ["Example", "Recipe", "induce", "read_examples"]


def __getattr__(name: str) -> Any:
    """Import :func:`induce` when it is first used: help pages name a recipe's defaults without torch."""
    if name != "induce":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from decoding.induce.training import induce

    globals()[name] = induce
    return induce
