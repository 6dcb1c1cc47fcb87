"""Processes that need not import torch again: forks of this one."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["after_fork", "forget", "forked"]


def after_fork() -> None:
    """Settle in a fork, as the first thing that it does."""
    torch.set_num_threads(1)  # remakes the threads that a fork leaves behind, before those that load weights ask
    gc.freeze()  # or each pass of the garbage collector goes over all that the other process has, and copies its pages


def forked(call: Callable[[], Any], timeout: float = 120.0) -> Any:
    """Return what a call returns in a fork of this process, which it cannot change."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def work() -> None:
        after_fork()
        try:
            sending.send((True, call()))
        except BaseException:
            sending.send((False, traceback.format_exc()))

    process = context.Process(target=work)
    process.start()
    sending.close()
    try:
        assert receiving.poll(timeout), f"no answer after {timeout} s"
        succeeded, result = receiving.recv()
    finally:
        process.kill()
        process.join()
    assert succeeded, result
    return result


def forget(*packages: str) -> None:
    """Have packages imported anew, with all that is in them: for a fork, since other modules know the old ones."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            del sys.modules[name]
