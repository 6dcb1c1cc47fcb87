"""Where a model goes: one device, a device map, or the processes of torchrun."""

from __future__ import annotations

import atexit
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch

from decoding.errors import ModelError, OptionError, nearest
from decoding.models.text_config import text_config

__all__ = ["check_shares", "pick_device", "placement"]

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def pick_device(device: str | None) -> torch.device:
    """The device of a name; None is cuda where there is one, else cpu.

    Raises:
        OptionError: there is no device of this name.
    """
    available = ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    if device is None:
        return torch.device("cuda" if len(available) > 1 and available[1].startswith("cuda") else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or not (str(chosen) in available or any(name.startswith(f"{chosen}:") for name in available)):
        raise OptionError(f"device={device!r}: must be one of {', '.join(available)}")
    return chosen


def placement(device: str | None, device_map: str | Mapping[str, Any] | None, tp_plan: str | None) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that place a model; none for a model on one device.

    Raises:
        OptionError: see :func:`load`.
    """
    ways = {"device": device, "device_map": device_map, "tp_plan": tp_plan}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)}: each says where the model goes; give one of them")
    if device_map is not None:
        if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
            raise OptionError(f"device_map={device_map!r}{nearest(device_map, DEVICE_MAPS)}")
        if importlib.util.find_spec("accelerate") is None:
            raise OptionError(f"device_map={device_map!r} needs accelerate: pip install accelerate")
        return {"device_map": device_map}
    if tp_plan is not None:
        if tp_plan != "auto":
            raise OptionError(f"tp_plan={tp_plan!r}: must be auto, the plan of the model's class")
        if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
            raise OptionError(
                "tp_plan='auto' divides a model among the processes of torchrun, and this is not one of them: "
                "run it as torchrun --nproc-per-node N ..."
            )
        if not torch.distributed.is_initialized():
            atexit.register(_leave_process_group)  # which transformers joins and never leaves
        return {"tp_plan": tp_plan}
    return {}


def check_shares(spec: str, model: Any) -> None:
    """Refuse a number of processes among which a model's heads cannot be divided."""
    config, ranks = text_config(model), getattr(model, "tp_size", None) or 1
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % ranks:
            raise ModelError(
                f"{spec}: its {heads} {name.removeprefix('num_').replace('_', ' ')} cannot be divided among {ranks} "
                f"processes; their number must divide {heads}"
            )


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
