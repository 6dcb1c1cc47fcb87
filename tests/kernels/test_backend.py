"""The choice of a backend, and the message about one that cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from decoding.kernels import backend
from decoding.kernels.backend import BackendError, choose


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a machine with triton and a C compiler, without settings in its environment."""
    monkeypatch.delenv("DECODING_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_has_triton", lambda: True)
    monkeypatch.setattr(backend, "_can_build_c", lambda: True)


def test_auto_takes_triton_for_cuda_tensors_only() -> None:
    assert choose("auto", "cuda:1") == "triton"
    assert choose("auto", "cpu") == "torch"
    assert choose("torch", "cuda") == "torch"


@pytest.mark.parametrize("lacking", ["_has_triton", "_can_build_c"])
def test_auto_falls_back_silently_where_triton_cannot_run(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(backend, lacking, lambda: False)
    assert choose("auto", "cuda") == "torch"


def test_the_interpreter_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", "cpu") == "torch"
    assert choose("triton", "cpu") == "triton"
    monkeypatch.setattr(backend, "_can_build_c", lambda: False)  # the interpreter builds no launcher
    assert choose("triton", "cpu") == "triton"


@pytest.mark.parametrize(
    ("lacking", "device", "reason"),
    [
        (None, "cpu", "the tensors are on cpu, where kernels run only in Triton's interpreter (TRITON_INTERPRET=1)"),
        ("_has_triton", "cuda", "triton is not installed"),
        ("_can_build_c", "cuda", "a compiler or Python.h is absent"),
    ],
)
@pytest.mark.parametrize("by", ["backend=", "DECODING_KERNELS="])
def test_a_backend_asked_for_by_name_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, lacking: str | None, device: str, reason: str, by: str
) -> None:
    if lacking:
        monkeypatch.setattr(backend, lacking, lambda: False)
    if by == "DECODING_KERNELS=":
        monkeypatch.setenv("DECODING_KERNELS", "triton")
    with pytest.raises(BackendError) as raised:
        choose("auto" if by == "DECODING_KERNELS=" else "triton", device)
    assert f"{by}'triton'" in str(raised.value)
    assert reason in str(raised.value)


def test_the_variable_overrides_auto_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODING_KERNELS", "torch")
    assert choose("auto", "cuda") == "torch"
    assert choose("triton", "cuda") == "triton"
    monkeypatch.setenv("DECODING_KERNELS", "cuda")
    with pytest.raises(BackendError, match="DECODING_KERNELS must be one of auto, triton, torch, got 'cuda'"):
        choose("auto", "cpu")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match="backend must be one of auto, triton, torch, got 'numpy'"):
        choose("numpy", "cpu")


def test_no_kernel_is_loaded_where_none_runs() -> None:
    code = (
        "import sys, torch, decoding, decoding.kernels.degeneration_penalty as p;"
        "p.degeneration_penalty(torch.ones(1, 1, 8), torch.ones(1, 2, 8), torch.ones(1, 2));"
        "print([m for m in sys.modules if m.startswith('decoding.kernels') and m.endswith('.fused')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
