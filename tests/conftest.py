"""Settings of every test."""

from __future__ import annotations

import gc
import os

import torch

# The models of the tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

# Without a GPU the kernels are tested in Triton's interpreter. Triton reads this as it is imported, which transformers
# may do first; whoever sets it decides.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from imported modules: a pass over them takes 0.3 s, and tests ask for many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Hand the modules back: extensions that are kept from being collected complain as the interpreter ends."""
    gc.unfreeze()
