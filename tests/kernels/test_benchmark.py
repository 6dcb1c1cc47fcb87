"""The benchmark of the kernels, as far as it can be tested without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> ModuleType:
    """Import the script as a module that takes the interpreter for a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("kernel_forms")
    monkeypatch.setattr(module, "interpreted", lambda: False)
    return module


@pytest.mark.parametrize("off_by", [0.0, 1e-4, float("nan")])
def test_a_kernel_that_differs_from_its_torch_form_gets_no_figure(benchmark: ModuleType, off_by: float) -> None:
    from kernel_cases import Forms, Operation

    def build(device: str, dtype: torch.dtype) -> Forms:
        value = torch.linspace(1, 2, 50)
        return Forms(triton=lambda: value + off_by, torch=lambda: value, moved=200)

    operation = Operation("sum", build, [{}], {})
    rows, equal = benchmark.compare(operation, {}, torch.float32, benchmark.Clock("cpu", 3), copy_rate=1.0)
    assert equal is (off_by == 0.0)
    assert [row["form"] for row in rows] == (["kernel", "torch"] if equal else ["torch"])
    assert all(float(row["us_p20"]) <= float(row["us_p50"]) <= float(row["us_p80"]) for row in rows)


def test_every_operation_is_right_at_its_small_size(benchmark: ModuleType, kernel_device: torch.device) -> None:
    from kernel_cases import OPERATIONS

    assert OPERATIONS
    for operation in OPERATIONS:
        forms = operation.build(str(kernel_device), torch.float32, **operation.small)
        error, note = benchmark.check(forms, str(kernel_device), benchmark.TOLERANCE[torch.float32])
        assert (error <= 1e-5, note) == (True, ""), operation.name
        assert forms.before is None or forms.before() is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kernel_forms.py"])
    assert benchmark.main() == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "needs a CUDA GPU" in err
