"""Linear layers over a handful of tokens on a CPU: the form of the product that this machine computes soonest.

A step of these strategies reads 2 to 16 rows where greedy search reads one. One row is limited by reading the weights
once, and so should a handful be; but torch's own product may take two or four times as long, depending on the CPU, the
number of threads and the shape. Which form of it (linear_forms.py) is the quickest is measured once for each shape and
some numbers of rows, and remembered as long as the process lives. Copies of the weights are for machines without a C
compiler, and taken into account once a model has read a few rows often enough that making them pays.

Only float32 is treated: the forms round differently in the last bits, as do numbers of threads.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoding.models.linear_forms import FORMS, Product, linear, usable_forms
from decoding.models.packed_weights import can_copy, discard, has_copy, has_room_for_copies, number_of_copies

__all__ = [
    "MOST_ROWS", "SmallBatchLinear", "has_only_weights", "is_plain_linear", "measured_forms", "preparations",
]  # fmt: skip

MOST_ROWS = 16  # of products that are treated; many rows are torch's own strength
MEASURED = (1, 2, 3, 4, 6, 8, 12, 16)  # each also for the numbers between it and the one before

# Another form is chosen where it takes at most this share of the time of the first, the compiled one or torch's own:
# what decides must be more than the noise of a measurement, or the last bits would differ from process to process.
GAIN = 0.8
GAIN_OF_COPIES = 0.9  # the same for all layers together with copies, against the best forms without
PATIENCE = 32  # passes over a few rows before copies are made: they take the time of as many
SAMPLE = 256 * 2**20  # bytes of weights that are measured in turn, so that they come from memory as in a forward pass
REPEATS = 3


class SmallBatchLinear:
    """The plain linear layers among some modules, computed in their quickest form for few rows.

    A layer is plain where it computes ``torch.nn.functional.linear`` of ordinary float32 weights itself: subclasses
    with a ``forward`` of their own, quantised and distributed weights, and layers whose ``forward`` was wrapped stay as
    they are, and so does all of a model that its user has compiled. What stands around a layer (hooks, adapters) is not
    touched.

    Args:
        modules: of a model, or its head alone.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._layers: list[nn.Linear] | None = None  # found when they are first needed
        self._changed: dict[tuple[int, bool], list[_Forward]] = {}  # by number of rows, with copies

    def quickest(self, rows: int, device: torch.device) -> AbstractContextManager[None]:
        """A context for forward passes of this thread in which the layers compute ``rows`` rows in their quickest form.

        Args:
            rows: of the products to come; outside 1 to 16 nothing changes.
            device: where they are computed; nothing changes but on a CPU.

        Raises:
            OptionError: the environment variable ``DECODING_SMALL_BATCH_LINEAR`` names no form.
        """
        if not 1 <= rows <= MOST_ROWS or device.type != "cpu" or torch.is_grad_enabled():
            return nullcontext()
        if self._layers is None:
            self._layers = _plain_layers(self._modules)
        key = rows, bool(self._layers) and _may_copy(self._layers)
        if key not in self._changed:
            forms = zip(self._layers, _forms_of(self._layers, rows, key[1]), strict=True)
            self._changed[key] = [_Forward(layer, FORMS[form]) for layer, form in forms if form != "linear"]
        changed = self._changed[key]
        return _installed(changed, rows) if changed else nullcontext()


def measured_forms(model: nn.Module, rows: int) -> dict[str, int]:
    """How many plain linear layers of a model on a CPU compute so many rows in which form; measured where not known."""
    layers = _plain_layers(model.modules())
    copies = has_room_for_copies(layers)
    return dict(Counter(_forms_of(layers, rows, copies)))


def preparations() -> tuple[int, int]:
    """The numbers of forms that are known and of copies that are kept in this process: what takes place between two
    calls that tell the same has taken no longer for either.
    """
    return len(_measured), number_of_copies()


# --- which form ------------------------------------------------------------------------------------------------------

Shape = tuple[int, int]  # (out, in) of a layer

_measured: dict[tuple[int, int, Shape, bool], str] = {}  # by threads, rows, shape, and whether copies may be chosen
_measuring = threading.Lock()


@dataclass
class _Use:
    """How often layers that are computed together were asked for a few rows, and whether copies of them have room."""

    passes: int = 0
    room: bool | None = None


_uses: weakref.WeakKeyDictionary[nn.Linear, _Use] = weakref.WeakKeyDictionary()  # by the first layer


def _may_copy(layers: Sequence[nn.Linear]) -> bool:
    """Count a pass, and say whether the forms to choose from are those with copies."""
    use = _uses.setdefault(layers[0], _Use())
    use.passes += 1
    if use.passes > PATIENCE and use.room is None:
        use.room = has_room_for_copies(layers)
    return bool(use.room)


def _forms_of(layers: Sequence[nn.Linear], rows: int, copies: bool) -> list[str]:
    """The names of the layers' forms for so many rows, measured on these layers where they are not known yet."""
    usable = usable_forms()
    if len(usable) == 1:
        return usable * len(layers)
    copies = copies and "packed" in usable
    rows = next(number for number in MEASURED if number >= rows)
    threads, shapes = torch.get_num_threads(), [_shape(layer) for layer in layers]
    with _measuring:
        if any((threads, rows, shape, False) not in _measured for shape in shapes):
            _measure([form for form in usable if form != "packed"], layers, rows)
        if copies and any((threads, rows, shape, True) not in _measured for shape in shapes):
            _measure_copies(layers, rows)
        return [_measured[threads, rows, shape, copies] for shape in shapes]


def _shape(layer: nn.Linear) -> Shape:
    outputs, inputs = layer.weight.shape
    return outputs, inputs


@torch.no_grad()
def _measure(forms: Sequence[str], layers: Sequence[nn.Linear], rows: int) -> None:
    """Find the quickest form of each shape; takes as long as some dozen forward passes."""
    forms = [form for form in forms if rows > 1 or form in ("compiled", "linear")]
    times = _times({form: _always(form) for form in forms}, _sample(layers), rows) if len(forms) > 1 else {}
    for shape in set(map(_shape, layers)):
        best = min(forms, key=times[shape].__getitem__) if times else forms[0]
        chosen = best == forms[0] or times[shape][best] <= GAIN * times[shape][forms[0]]
        _measured.setdefault((torch.get_num_threads(), rows, shape, False), best if chosen else forms[0])


@torch.no_grad()
def _measure_copies(layers: Sequence[nn.Linear], rows: int) -> None:
    """Find the shapes for which copies are quicker than the best form without, if all of it together pays."""
    threads, sample = torch.get_num_threads(), _sample(layers)

    def without(layer: nn.Linear) -> str:
        return _measured[threads, rows, _shape(layer), False]

    new = [layer for layer in sample if not has_copy(layer)]
    shapes = {_shape(layer): without(layer) for layer in sample}
    if can_copy(sample[0]):
        times = _times({"without": without, "packed": _always("packed")}, sample, rows)
        least = sum(min(seconds.values()) for seconds in times.values())
        if least <= GAIN_OF_COPIES * sum(seconds["without"] for seconds in times.values()):
            shapes |= {shape: "packed" for shape, seconds in times.items() if seconds["packed"] < seconds["without"]}
    for shape, form in shapes.items():
        _measured.setdefault((threads, rows, shape, True), form)
    discard(layer for layer in new if _measured[threads, rows, _shape(layer), True] != "packed")


def _always(form: str) -> Callable[[nn.Linear], str]:
    return lambda _: form


def _sample(layers: Sequence[nn.Linear]) -> list[nn.Linear]:
    """The first layers, up to a number of bytes, and one of every shape that is not among them."""
    chosen: list[nn.Linear] = []
    size = 0
    shapes: set[Shape] = set()
    for layer in layers:
        if size < SAMPLE or _shape(layer) not in shapes:
            chosen.append(layer)
            size += layer.weight.nbytes
            shapes.add(_shape(layer))
    return chosen


def _times(
    columns: Mapping[str, Callable[[nn.Linear], str]], layers: Sequence[nn.Linear], rows: int
) -> dict[Shape, dict[str, float]]:
    """Seconds by shape and column, the least of some turns through all layers.

    Args:
        columns: the name of the form in which a layer is computed.
        layers: in the order in which a forward pass comes to them.
        rows: of the product.
    """
    states = {inputs: layers[0].weight.new_zeros(rows, inputs) for _, inputs in map(_shape, layers)}
    least: dict[Shape, dict[str, float]] = {_shape(layer): dict.fromkeys(columns, math.inf) for layer in layers}
    for turn in range(1 + REPEATS):
        for column, form_of in columns.items():
            seconds: defaultdict[Shape, float] = defaultdict(float)
            for layer in layers:
                seconds[_shape(layer)] += _seconds(FORMS[form_of(layer)], states[layer.weight.shape[1]], layer)
            if turn:  # the first calls of a form also prepare it
                for shape, spent in seconds.items():
                    least[shape][column] = min(least[shape][column], spent)
    return least


def _seconds(product: Product, states: Tensor, layer: nn.Linear) -> float:
    start = time.perf_counter()
    product(states, layer)
    return time.perf_counter() - start


# --- which layers, and their forward while a form is installed -------------------------------------------------------


def _plain_layers(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    found = list(modules)
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in found):
        return []  # left to its compiler
    return [module for module in found if isinstance(module, nn.Linear) and _is_plain(module)]


def is_plain_linear(module: nn.Module) -> bool:
    """True for a linear layer in float32 on a CPU whose output is the product with its weights and nothing more: no
    hook, adapter, quantisation or compiler of its user changes it.
    """
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return not hooked and bool(_plain_layers([module]))


def has_only_weights(layer: nn.Linear) -> bool:
    """True for a linear layer, on any device, whose output is the product with its weights and nothing more."""
    return layer.bias is None and _has_own_forward(layer) and not (layer._forward_hooks or layer._forward_pre_hooks)


def _has_own_forward(layer: nn.Linear) -> bool:
    own = vars(layer).get("forward")
    return type(layer).forward is nn.Linear.forward and (own is None or isinstance(own, _Forward))


def _is_plain(layer: nn.Linear) -> bool:
    if not _has_own_forward(layer):
        return False
    weight = layer.weight
    ordinary = type(weight) in (nn.Parameter, Tensor) and weight.layout == torch.strided and weight.is_contiguous()
    return ordinary and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


class _Forward:
    """The ``forward`` of a layer while some thread reads a few rows."""

    def __init__(self, layer: nn.Linear, product: Product) -> None:
        self.layer = layer
        self.product = product
        self.users = 0

    def __call__(self, input: Tensor) -> Tensor:  # torch's own name of the argument
        layer = self.layer
        rows = _rows.get()
        if rows is None or input.numel() != rows * input.shape[-1]:
            return linear(input, layer)
        if input.dtype != torch.float32 or layer.weight.dtype != torch.float32:
            return linear(input, layer)
        return self.product(input, layer)


_rows: ContextVar[int | None] = ContextVar("small_batch_linear", default=None)  # None outside of the context
_installing = threading.Lock()


@contextmanager
def _installed(changed: Sequence[_Forward], rows: int) -> Iterator[None]:
    """The context in which these layers compute so many rows of this thread in another form."""
    token = _rows.set(rows)
    installed: list[_Forward] = []
    try:
        with _installing:
            for own in changed:
                forward = vars(own.layer).setdefault("forward", own)  # or that of a thread that came before
                if isinstance(forward, _Forward):  # or else it was wrapped since the layers were found
                    forward.users += 1
                    installed.append(forward)
        yield
    finally:
        with _installing:
            for forward in installed:
                forward.users -= 1
                if not forward.users:
                    vars(forward.layer).pop("forward", None)
        _rows.reset(token)
