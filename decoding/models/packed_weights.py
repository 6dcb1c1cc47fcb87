"""Copies of the weights of linear layers in oneDNN's own layout, over which a few rows cost little more than one.

A product of 2 to 16 rows over weights as they lie is not limited by reading them: each product first rearranges parts
of them. Over a copy that oneDNN has laid out for itself it is. The price is memory, as much as the weights take, so
copies are made of large weights alone, and only where they take a small part of the memory that is left.

A copy lives as long as its layer and no longer than the layer's weights stay as they are. Weights can be changed in
place without a trace (``weight.data += ...``), so a copy is kept with a checksum of what it was made from, and every
stream that is opened on a model calls :func:`discard_outdated`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = [
    "available_memory", "can_copy", "discard", "discard_outdated", "has_copy", "has_room_for_copies",
    "number_of_copies", "packed_product",
]  # fmt: skip

LEAST = 32 * 2**20  # bytes of a model's linear layers: smaller ones stay in the processor's cache, however they lie
SHARE = 0.25  # of the available memory that the copies of a model may take

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Copy:
    packed: Tensor  # in oneDNN's layout
    pointer: int  # of the weight that it is made from
    checksum: int


_copies: weakref.WeakKeyDictionary[nn.Linear, _Copy] = weakref.WeakKeyDictionary()


def packed_product(states: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's output (rows, out) for (rows, in) states, over a copy of its weights, which is made at first use."""
    copy = _copies.get(layer)
    if copy is None or copy.pointer != layer.weight.data_ptr():
        copy = _copied(layer)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, copy.packed, layer.bias, "none", [], "")
    return product


def has_copy(layer: nn.Linear) -> bool:
    """True where there is a copy of a layer's weights."""
    return layer in _copies


def number_of_copies() -> int:
    """How many copies this process keeps."""
    return len(_copies)


def can_copy(layer: nn.Linear) -> bool:
    """True where this build of torch lays out a layer's weights; the copy is kept."""
    try:
        if not has_copy(layer):
            _copied(layer)
    except (AttributeError, RuntimeError):  # no such operation; or it refuses, or there is no memory
        return False
    return True


def has_room_for_copies(layers: Sequence[nn.Linear]) -> bool:
    """True where copies of all of these layers' weights are worth their memory and there is enough of it."""
    size = sum(layer.weight.nbytes for layer in layers)
    missing = sum(layer.weight.nbytes for layer in layers if layer not in _copies)
    return size >= LEAST and (not missing or missing <= SHARE * available_memory())


def discard(layers: Iterable[nn.Linear]) -> None:
    """Free the copies of these layers' weights."""
    for layer in layers:
        _copies.pop(layer, None)


@torch.no_grad()
def discard_outdated(model: nn.Module) -> None:
    """Free the copies of weights of a model that are no longer what they were; reads them once."""
    if not _copies:
        return
    copied = [
        (module, _copies[module]) for module in model.modules() if isinstance(module, nn.Linear) and module in _copies
    ]
    for layer, copy in copied:
        if (copy.pointer, copy.checksum) != (layer.weight.data_ptr(), _checksum(layer.weight)):
            discard([layer])


def available_memory() -> int:
    """Bytes that this process may still take, by the machine and by its control group; 0 where nobody tells."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        available = 1024 * int(fields["MemAvailable"].split()[0])
        groups = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text().splitlines()]
    except (OSError, KeyError, ValueError):
        return 0
    for number, controllers, path in groups:
        if number == "0":
            available = min(available, _left_in_group(CGROUPS, path, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            available = min(available, _left_in_group(CGROUPS / "memory", path, *names))
    return max(available, 0)


def _left_in_group(root: Path, path: str, limit: str, usage: str) -> int:
    """The least that a control group and those around it leave, in bytes; without a limit more than any machine has."""
    least = 2**63
    folder = root / path.lstrip("/")
    for group in (folder, *(around for around in folder.parents if around.is_relative_to(root))):
        try:
            least = min(least, int((group / limit).read_text()) - int((group / usage).read_text()))
        except (OSError, ValueError):  # no such folder inside of a container; "max"
            continue
    return least


@torch.no_grad()
def _copied(layer: nn.Linear) -> _Copy:
    weight = layer.weight.detach()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 4)  # for 4 rows; it serves other numbers as well
    copy = _Copy(packed, weight.data_ptr(), _checksum(weight))
    _copies[layer] = copy
    return copy


def _checksum(weight: Tensor) -> int:
    """The sum of a float32 weight's bits, which any change of single numbers changes."""
    bits = weight.detach().reshape(-1)
    return int(bits.view(torch.int64 if bits.numel() % 2 == 0 else torch.int32).sum())
