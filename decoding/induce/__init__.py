"""Induced amateurs: a LoRA adapter that is trained to hallucinate, and the examples that it learns from."""

from typing import TYPE_CHECKING

from decoding.induce.examples import Example, read_examples
from decoding.induce.recipe import Recipe
from decoding.lazy import lazy_names

if TYPE_CHECKING:
    from decoding.induce.training import induce

__all__ = ["Example", "Recipe", "induce", "read_examples"]

# Help pages name a recipe's defaults without torch.
__getattr__, __dir__ = lazy_names(__name__, {"induce": "decoding.induce.training"})
