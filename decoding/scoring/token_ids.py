"""Token ids as callers give them: lists, arrays, tensors, and the output of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from decoding.errors import InputError, OptionError, shown
from decoding.parameters import plain_number

__all__ = ["as_continuations", "text_needs_tokenizer", "token_ids"]


def as_continuations(continuations: Any) -> list[Any]:
    """A list of continuations; one text, one list of token ids and the rows of a tokenizer's output among them."""
    if isinstance(continuations, str):
        return [continuations]
    if isinstance(continuations, Mapping):
        return _rows(continuations)
    if isinstance(continuations, (Tensor, np.ndarray)) and continuations.ndim > 0:
        return list(continuations) if continuations.ndim > 1 else [continuations]
    if (
        not isinstance(continuations, Iterable)
        or getattr(continuations, "ndim", 1) == 0
        or isinstance(continuations, bytes)
    ):
        raise InputError(f"continuations={shown(continuations)}: must be texts or token ids, one of them or a list")
    continuations = list(continuations)
    if continuations and all(isinstance(plain_number(token), int) for token in continuations):
        return [continuations]
    return continuations


def _rows(encoding: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each text that a tokenizer has encoded, without padding."""
    if "input_ids" not in encoding:
        raise InputError(f"no input_ids among {', '.join(map(str, encoding))}: give the output of a tokenizer")
    ids = encoding["input_ids"]
    mask = encoding.get("attention_mask")
    if len(ids) and not isinstance(ids[0], (list, tuple)) and getattr(ids[0], "ndim", 0) == 0:  # one text
        ids, mask = [ids], None if mask is None else [mask]
    if mask is None:
        return [token_ids(row) for row in ids]
    return [
        [token for token, kept in zip(token_ids(row), token_ids(row_mask), strict=True) if kept]
        for row, row_mask in zip(ids, mask, strict=True)
    ]


def text_needs_tokenizer() -> OptionError:
    """The refusal of text that is given without a tokenizer."""
    return OptionError("prompt and continuations as text need tokenizer=...; or give token ids")


def token_ids(tokens: Any, what: str = "token ids") -> list[int]:
    """Token ids as a list of whole numbers; those of one text, which may be a batch of one row."""
    if isinstance(tokens, Mapping):
        rows = _rows(tokens)
        if len(rows) != 1:
            raise InputError(f"{what}: {len(rows)} texts, where one is expected")
        return rows[0]
    if isinstance(tokens, (Tensor, np.ndarray)):
        if tokens.ndim > 1 and tokens.shape[0] != 1:
            raise InputError(f"{what}: {tuple(tokens.shape)}, where one text, (length,) or (1, length), is expected")
        if tokens.ndim == 0 or getattr(tokens, "is_meta", False):
            raise InputError(f"{what}: {shown(tokens)} must be token ids, whole numbers in a list")
        tokens = tokens.flatten().tolist()
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise InputError(f"{what}: {shown(tokens)} must be token ids, whole numbers in a list")
    ids = [token if type(token) is int else plain_number(token) for token in tokens]
    wrong = [token for token in ids if not isinstance(token, int) or isinstance(token, bool)]
    if wrong:
        raise InputError(f"{what}: {shown(wrong[0])} among its token ids must be a whole number")
    return ids
