"""Errors of forward passes, raised as errors of this library."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from decoding.errors import DecodingError, ModelError, one_line
from decoding.models.inputs import context_of

__all__ = ["OutOfMemoryError", "forward_pass", "is_environment_error", "not_a_number", "within_memory"]


class OutOfMemoryError(ModelError, torch.OutOfMemoryError):
    """Memory ran out in a forward pass. Also torch's own error, which callers catch to try a smaller batch."""


# The kinds of errors that forward passes raise by accident. Others are deliberate (a user's hook that stops the pass,
# Ctrl-C) and are not changed.
ACCIDENTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@contextmanager
def forward_pass(model: Any, rows: int, tokens: int, past: int) -> Iterator[None]:
    """Raise an error of the model's forward in this context as one that names the model and its input.

    Args:
        model: the model that runs.
        rows: rows of its batch.
        tokens: tokens per row in this pass.
        past: tokens per row before it.

    Raises:
        OutOfMemoryError: memory ran out.
        ModelError: anything else.
    """
    what = f"{rows} rows of {tokens} tokens after {past}"
    try:
        with within_memory(model, what):
            yield
    except DecodingError:
        raise
    except ACCIDENTS as error:
        context = context_of(model)
        too_long = context is not None and context < past + tokens
        hint = f"; its context is {context} tokens: ask for fewer new ones" if too_long else ""
        raise ModelError(
            f"{type(model).__name__} failed on {what} ({type(error).__name__}: {one_line(error)}){hint}"
        ) from error


@contextmanager
def within_memory(model: Any, what: str) -> Iterator[None]:
    """Release the memory of the calls that ended where memory runs out in this context, even if the error is kept.

    Args:
        model: the model that runs.
        what: its input, for the message.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        raise
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        # The traceback holds the activations of the pass, and clear_frames does not reach those in closures.
        raise OutOfMemoryError(
            f"{type(model).__name__} ran out of memory on {what} ({one_line(error)}); give it fewer or shorter rows "
            "at a time"
        ) from error.with_traceback(None)


def not_a_number(model: Any, role: str, row: int, step: int | None = None) -> ModelError:
    """The error for a model's NaN logits."""
    where = f"(row {row})" if step is None else f"at step {step} (row {row})"
    return ModelError(
        f"the {role} ({type(model).__name__}) gave NaN logits {where}: its weights or its dtype "
        f"({str(model.dtype).removeprefix('torch.')}) overflow; try float32 or bfloat16"
    )


def is_environment_error(error: BaseException) -> bool:
    """True where an error in a check of a model is the machine's fault, and tells nothing about the model."""
    return isinstance(error, (getattr(torch, "AcceleratorError", ()))) or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Where a CPU's memory runs out, torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
