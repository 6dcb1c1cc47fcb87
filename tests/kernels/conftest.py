"""Where the kernels run in tests: natively on a GPU, in Triton's interpreter without one."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch


@pytest.fixture
def kernel_device() -> torch.device:
    """The device that ``backend="triton"`` is tested on; skips where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
