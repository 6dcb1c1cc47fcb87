"""Amateurs: who they are (:class:`Prompt`, :func:`attach`), and how one is made (:func:`induce`)."""

from decoding.induce.examples import Example, read_examples
from decoding.induce.training import Recipe, induce
from decoding.models.adapters import attach
from decoding.strategies.contrast.amateurs import Prompt

__all__ = ["Example", "Prompt", "Recipe", "attach", "induce", "read_examples"]
