"""Every kernel against its torch form and against what transformers 4.55.4 did for the same step, on a GPU.

    python benchmarks/kernel_forms.py [--operations NAME,...] [--dtype bfloat16]

The forms of an operation take turns, with the L2 cache cleared between them. Times are measured on the GPU, so
launches queued ahead cost nothing. Bandwidth is the bytes that must be moved over the median time; it is printed beside
that of a device copy in the same run. A kernel whose result differs from the torch form's gets no figure, and the exit
code is 1.

Without a GPU, ``--device cpu`` times the torch forms at small sizes. With TRITON_INTERPRET=1 it also checks the
kernels, but does not time them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from kernel_cases import OPERATIONS, Forms, Operation, Size
from torch import Tensor
from turns import percentile_columns, percentiles, write_csv

from decoding.kernels.backend import BackendError, choose, interpreted

KERNEL, TORCH, BEFORE = "kernel", "torch", "transformers 4.55.4"
# float32: sums in another order. Half precision: products as tensor cores add them up, and attention's results, which
# each form rounds (1.7e-3 in bfloat16; the interpreter truncates, 3.4e-3).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 5e-3}
COLUMNS = [
    "operation", "form", "size", "dtype", *percentile_columns("us"), "gb_per_s", "copy_gb_per_s", "share_of_copy",
    "kernel_is_faster_by", "relative_rmse", "repeats", "device", "torch", "triton", "cuda", "python",
]  # fmt: skip


def main() -> int:
    """Measure, print and write the figures; return 2 without the requested GPU, 1 where a kernel is wrong."""
    options = parse()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("benchmarks/kernel_forms.py needs a CUDA GPU; --device cpu runs the torch forms alone", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    clock = Clock(options.device, options.repeats)
    copy_rate = clock.copy_rate()
    print(f"{device_name(options.device)}, {options.dtype}; a device copy moves {copy_rate:.0f} GB/s")
    try:
        choose("triton", options.device)
    except BackendError as reason:
        print(reason)
    print(f"{'':44}{'us p50':>10}{'GB/s':>8}{'of copy':>9}{'kernel is faster by':>21}")
    rows, wrong = [], 0
    for operation in OPERATIONS:
        if options.operations and operation.name not in options.operations:
            continue
        for size in [operation.small] if options.device == "cpu" else operation.sizes:
            measured, equal = compare(operation, size, dtype, clock, copy_rate)
            rows += measured
            wrong += not equal
            if options.device != "cpu":
                torch.cuda.empty_cache()
    if options.output:
        write_csv(rows, COLUMNS, options.output)
        print(f"\nwritten: {options.output}")
    return int(wrong > 0)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    names = [operation.name for operation in OPERATIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=lambda text: text.split(","), help=f"some of: {', '.join(names)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path, help="CSV; by default results/kernels_DTYPE.csv, on a CPU none")
    options = parser.parse_args()
    unknown = set(options.operations or ()) - set(names)
    if unknown:
        parser.error(f"--operations must be of {', '.join(names)}; got {', '.join(sorted(unknown))}")
    if options.output is None and options.device != "cpu":
        options.output = Path(__file__).parent / "results" / f"kernels_{options.dtype}.csv"
    return options


def compare(
    operation: Operation, size: Size, dtype: torch.dtype, clock: Clock, copy_rate: float
) -> tuple[list[dict[str, Any]], bool]:
    """Measure one operation at one size; return its rows of figures, and True if its kernel is right."""
    forms = operation.build(clock.device, dtype, **size)
    label = "-".join(f"{name}{value}" for name, value in size.items())
    error, note = check(forms, clock.device, TOLERANCE[dtype])
    runs: dict[str, Callable[[], Tensor]] = {} if note else {KERNEL: forms.triton}
    runs[TORCH] = forms.torch
    if forms.before is not None and _fits(forms.before):
        runs[BEFORE] = forms.before
    times = clock.times(runs)
    print(f"\n{operation.name} {label}{'; kernel: ' + note if note else ''}")
    rows = []
    for form, seconds in times.items():
        median = statistics.median(seconds)
        rate = forms.moved / median / 1e9
        faster = "" if KERNEL not in times else f"{_ratio(seconds, times[KERNEL]):.2f}"
        print(f"  {form:42}{1e6 * median:10.1f}{rate:8.0f}{rate / copy_rate:9.2f}{faster:>21}")
        rows.append(
            {
                "operation": operation.name, "form": form, "size": label, "dtype": str(dtype).removeprefix("torch."),
                **percentiles("us", [1e6 * duration for duration in seconds], digits=2),
                "gb_per_s": f"{rate:.1f}", "copy_gb_per_s": f"{copy_rate:.1f}",
                "share_of_copy": f"{rate / copy_rate:.3f}", "kernel_is_faster_by": faster,
                "relative_rmse": f"{error:.1e}" if form == KERNEL else "", "repeats": clock.repeats,
                "device": device_name(clock.device), "torch": torch.__version__, "triton": _version("triton"),
                "cuda": torch.version.cuda or "", "python": platform.python_version(),
            }
        )  # fmt: skip
    return rows, error <= TOLERANCE[dtype]


def check(forms: Forms, device: str, tolerance: float) -> tuple[float, str]:
    """Return the kernel's relative RMSE against the torch form, and why it gets no figure, empty where it gets one."""
    try:
        choose("triton", device)
    except BackendError:
        return 0.0, "not run"
    value, reference = forms.triton().double(), forms.torch().double()
    finite = reference.isfinite()  # an implausible token's score is -inf
    error = float((value - reference)[finite].square().mean().sqrt() / reference[finite].square().mean().sqrt())
    if not value[~finite].equal(reference[~finite]):
        error = torch.inf
    if not error <= tolerance:
        return torch.inf, f"WRONG, no figure (relative RMSE must be at most {tolerance:.0e}, got {error:.1e})"
    return error, f"right (relative RMSE {error:.1e}), not timed in the interpreter" if interpreted() else ""


class Clock:
    """Clock of a device's work.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        repeats: how often every form is run, after a few runs that warm up.
    """

    WARM_UP = 5
    CLEARED = 256 * 2**20  # bytes written between two forms: five times the L2 of an H100

    def __init__(self, device: str, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._cleared = torch.empty(self.CLEARED if device != "cpu" else 1, dtype=torch.int8, device=device)

    def times(self, runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Time runs that take turns; return the seconds of each by name."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(-self.WARM_UP, self.repeats):
            pending = [(name, self._start(run)) for name, run in runs.items()]
            for name, elapsed in pending:
                if repeat >= 0:
                    seconds[name].append(elapsed())
        return seconds

    def copy_rate(self) -> float:
        """Measure the GB/s, read and written, of a copy of 1 GiB (16 MiB on a CPU)."""
        source = torch.empty(2**30 if self.device != "cpu" else 2**24, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / statistics.median(self.times({"": lambda: target.copy_(source)})[""]) / 1e9

    def _start(self, run: Callable[[], Any]) -> Callable[[], float]:
        if self.device == "cpu":
            began = time.perf_counter()
            run()
            ended = time.perf_counter()
            return lambda: ended - began
        with torch.cuda.device(self.device):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cleared.zero_()
            before.record()
            run()
            after.record()

        def elapsed() -> float:
            after.synchronize()
            return before.elapsed_time(after) / 1e3

        return elapsed


def device_name(device: str) -> str:
    """Name the device that the figures are measured on."""
    return platform.machine() + " cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def _ratio(form_seconds: list[float], kernel_seconds: list[float]) -> float:
    return statistics.median(form / kernel for form, kernel in zip(form_seconds, kernel_seconds, strict=True))


def _fits(form: Callable[[], Tensor]) -> bool:
    """Tell whether there is memory for it: copies of a long history for 64 candidates take more than any GPU has."""
    try:
        form()
    except torch.OutOfMemoryError:
        print(f"\n{BEFORE}: out of memory at the next size")
        return False
    return True


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
