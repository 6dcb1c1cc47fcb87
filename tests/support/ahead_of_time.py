"""Compile the launches of :mod:`launches` for an H100 (sm_90), which needs no GPU; one line of JSON a kernel.

    python tests/support/ahead_of_time.py

It needs a process without TRITON_INTERPRET, which Triton reads as it is imported. The launchers run unchanged, so their
sizes, alignments and options are what is compiled; only the launch itself is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from launches import LAUNCHES
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class NoDevice:
    """Answers to what a launcher asks its driver before it compiles."""

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return the target of H100 and H200."""
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    """Compile every launch, and print the facts of its kernels."""
    driver.set_active(NoDevice())
    launch: Any = JITFunction.run
    compiled: list[tuple[str, Any]] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    for name, case in LAUNCHES.items():
        compiled.clear()
        case.call()
        for kernel, binary in compiled:
            print(json.dumps({"launch": name, "kernel": kernel, **facts(binary)}), flush=True)


def facts(kernel: Any) -> dict[str, int]:
    """Collect the facts that decide how a compiled kernel runs.

    Returns:
        Registers a thread; bytes of stack a thread (spilled registers) and of shared memory a program; loads of 16
        bytes and of single half-precision numbers from global memory.
    """
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))  # type: ignore[union-attr]
    return {
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "wide loads": len(
            re.findall(r"cp\.async\.cg\.shared\.global|ld\.global[\w.:]*\.v4\.b32|ld\.global[\w.:]*\.v2\.b64", ptx)
        ),
        "narrow loads": len(re.findall(r"ld\.global[\w.:]*\.b16 ", ptx)),
    }


if __name__ == "__main__":
    main()
