"""Models in accelerate's mixed precision, whatever the process did with accelerate before."""

from __future__ import annotations

from typing import Any

__all__ = ["prepared"]


def prepared(model: Any) -> Any:
    """The model as ``Accelerator(mixed_precision="bf16").prepare(model)`` returns it on a CPU.

    accelerate keeps one state for the process and refuses another precision: what an earlier test (a Trainer) left is
    forgotten before and after.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    finally:
        AcceleratorState._reset_state(True)
