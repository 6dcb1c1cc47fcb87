"""What goes wrong in the middle of a call, told as an error of this library."""

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
    """Memory ran out in a forward pass. Whoever waits for torch's own error, to go on with a smaller batch, gets it."""


# What forward passes raise by accident. What else comes out of one (a hook of the user's that ends it, Ctrl-C) was
# meant, and passes.
ACCIDENTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@contextmanager
def forward_pass(model: Any, rows: int, tokens: int, behind: int) -> Iterator[None]:
    """What the model's forward raises in this context comes out as an error that says of what.

    Args:
        model: that reads.
        rows: of its batch.
        tokens: a row, that it reads.
        behind: how many of a row it has read before.

    Raises:
        OutOfMemoryError: memory ran out.
        ModelError: anything else.
    """
    what = f"{rows} rows of {tokens} tokens behind {behind}"
    try:
        with within_memory(model, what):
            yield
    except DecodingError:
        raise
    except ACCIDENTS as error:
        context = context_of(model)
        past = context is not None and context < behind + tokens
        hint = f"; its context is {context} tokens: ask for fewer new ones" if past else ""
        raise ModelError(
            f"{type(model).__name__} failed on {what} ({type(error).__name__}: {one_line(error)}){hint}"
        ) from error


@contextmanager
def within_memory(model: Any, what: str) -> Iterator[None]:
    """Where memory runs out in this context, what the ended calls held is let go of, though the error be kept.

    Args:
        model: that reads.
        what: it reads.

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
        # Its traceback holds the activations of the pass, some of them (in closures) beyond the reach of clear_frames.
        raise OutOfMemoryError(
            f"{type(model).__name__} ran out of memory on {what} ({one_line(error)}); give it fewer or shorter rows "
            "at a time"
        ) from error.with_traceback(None)


def not_a_number(model: Any, role: str, row: int, step: int | None = None) -> ModelError:
    """The error of a model's logits that are NaN."""
    where = f"(row {row})" if step is None else f"at step {step} (row {row})"
    return ModelError(
        f"the {role} ({type(model).__name__}) gave NaN logits {where}: its weights or its dtype "
        f"({str(model.dtype).removeprefix('torch.')}) overflow; try float32 or bfloat16"
    )


def is_environment_error(error: BaseException) -> bool:
    """Whether an error of a trial tells of the machine, and nothing of what the model can do."""
    return isinstance(error, (getattr(torch, "AcceleratorError", ()))) or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch raises where a CPU's memory ends is a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
