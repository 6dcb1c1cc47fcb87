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


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend of an operation that has both."""
    return request.param


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the backend is tested; what a kernel allocates is full of NaN."""
    if backend == "torch":
        return torch.device("cpu")
    empty = torch.empty

    def poisoned(*size: int, dtype: torch.dtype, **options: object) -> torch.Tensor:
        return empty(*size, dtype=dtype, **options).fill_(torch.nan if dtype.is_floating_point else -1)

    monkeypatch.setattr(torch, "empty", poisoned)
    return request.getfixturevalue("kernel_device")
