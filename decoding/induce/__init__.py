"""Induced amateurs: a LoRA adapter that is trained to hallucinate, and the examples that it learns from."""

from decoding.induce.examples import Example, read_examples
from decoding.induce.training import Recipe, induce

__all__ = ["Example", "Recipe", "induce", "read_examples"]
