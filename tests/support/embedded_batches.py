"""Batches of the embedded models, and strategies with other class attributes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tiny_models import left_padded
from torch import Tensor

from decoding.evals import miniature

PROMPTS = (
    "The town of Harrowmere lies",
    "Q: What does the Fermar bear eat?\nA:",
    "Long ago there was an old clockmaker who",
)


@functools.cache
def embedded() -> tuple[Any, Any, Any]:
    """The expert, the amateur and their tokenizer."""
    expert, tokenizer = miniature.load("expert")
    return expert, miniature.load("amateur")[0], tokenizer


def batch(rows: int) -> dict[str, Tensor]:
    """The first prompts, left-padded."""
    tokenizer = embedded()[2]
    return left_padded([tokenizer(text)["input_ids"] for text in PROMPTS[:rows]])


def with_class_attributes(strategy: Any, **attributes: Any) -> Any:
    """The strategy, of a subclass that differs in these."""
    kind = type(strategy)
    fields = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    return type(kind.__name__, (kind,), attributes)(**fields)
