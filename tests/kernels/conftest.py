"""The device of the kernels' tests: a GPU, or a CPU with Triton's interpreter where there is none."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from kernel_checks import poison_empty

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    import triton.runtime.interpreter  # noqa: F401 - loaded before tests/conftest.py quickens it


@pytest.fixture
def kernel_device() -> torch.device:
    """Return the device that ``backend="triton"`` is tested on; skip where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Return each backend in turn."""
    return request.param


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device that the backend is tested on; what a kernel allocates is full of NaN."""
    if backend == "torch":
        return torch.device("cpu")
    poison_empty(monkeypatch)
    return request.getfixturevalue("kernel_device")
