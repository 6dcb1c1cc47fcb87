"""Settings of every test."""

from __future__ import annotations

import os

import torch

# The models of the tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

# Without a GPU the kernels are tested in Triton's interpreter. Triton reads this as it is imported, which transformers
# may do first; whoever sets it decides.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
