"""Trials of model types in processes, so that a type that crashes or hangs becomes a row of the table."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from decoding.errors import DecodingWarning, ModelError, one_line
from decoding.models.quiet import quiet
from decoding.tools.architectures.columns import CHECKS
from decoding.tools.architectures.other_inputs_search import other_inputs, quantised_cache
from decoding.tools.architectures.results import Cell, Row
from decoding.tools.architectures.tiny import tiny_model

__all__ = ["try_cache", "try_in_process", "try_other_inputs", "try_type"]


def try_type(model_type: str) -> Row:
    """All cells of one type."""
    with _silent():
        try:
            model: Any = tiny_model(model_type)
            for cached in (True, False):
                model.generate(torch.arange(10, 20)[None], max_new_tokens=2, do_sample=False, use_cache=cached)
        except ModelError as reason:
            return Row(model_type, not_tried=str(reason).removeprefix(f"{model_type}: "))
        except Exception as error:  # of any kind, from the type's own code
            return Row(
                model_type, not_tried=f"transformers' own generate() fails ({type(error).__name__}: {one_line(error)})"
            )
        cells: dict[str, Cell] = {}
        for check in CHECKS:
            try:
                cells |= check(tiny_model(model_type))
            except Exception as error:  # neither right nor refused: a fault that the table must show
                name = check.__name__.replace("_", " ")
                cells[name] = Cell("crash", f"{type(error).__name__}: {one_line(error)}")
    return Row(model_type, cells)


def try_other_inputs(model_type: str) -> Row:
    """All cells of a type with other inputs than the text before."""
    return _row(model_type, lambda: other_inputs(model_type))


def try_cache(backend: str) -> Row:
    """All cells of a quantised cache."""
    return _row(backend, lambda: quantised_cache(backend))


def _row(name: str, cells: Callable[[], dict[str, Cell]]) -> Row:
    with _silent():
        try:
            return Row(name, cells())
        except Exception as error:  # of any kind, from the type's own code
            reason = str(error).removeprefix(f"{name}: ") if isinstance(error, ModelError) else ""
            return Row(name, not_tried=reason or f"{type(error).__name__}: {one_line(error)}")


@contextmanager
def _silent() -> Iterator[None]:
    with quiet():
        warnings.simplefilter("ignore", DecodingWarning)
        yield


def try_in_process(model_type: str, seconds: float, trial: Callable[[str], Row] | None = None) -> Row:
    """Run :func:`try_type`, or another trial, in another process for at most so many seconds."""
    # A fork has everything imported already (ten seconds a type otherwise); macOS cannot fork safely.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(trial or try_type, model_type, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Row(model_type, {"contrastive search": Cell("hang", f"not done after {seconds:g} seconds")})
        row: Row = receiver.recv()
        return row
    except EOFError:
        process.join()
        return Row(model_type, {"contrastive search": Cell("crash", f"its process ended with {process.exitcode}")})
    finally:
        process.kill()
        process.join()


def _send(trial: Callable[[str], Row], model_type: str, sender: Connection) -> None:
    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it gives
    sender.send(trial(model_type))
