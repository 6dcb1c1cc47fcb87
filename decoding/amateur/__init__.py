"""Amateurs: who they are (:class:`Prompt`, :func:`attach`), and how one is made (:func:`induce`)."""

from decoding.adapters import attach
from decoding.amateur.examples import Example, read_examples
from decoding.amateur.inducing import Recipe, induce
from decoding.amateur.reader import Prompt

__all__ = ["Example", "Prompt", "Recipe", "attach", "induce", "read_examples"]
