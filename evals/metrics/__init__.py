"""Metrics of generated text."""

from decoding.evals.metrics.repetition import diversity, repetition

__all__ = ["diversity", "repetition"]
