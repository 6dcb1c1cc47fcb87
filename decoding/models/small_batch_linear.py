"""Linear layers over a handful of tokens on a CPU: the form of the product that this machine computes soonest.

A step of these strategies reads 2 to 16 rows where greedy search reads one. One row is limited by reading the weights
once, and so should a handful be; but torch's own product may take two or four times as long, depending on the CPU, the
number of threads and the shape. The same product has three more forms: weights times states, oneDNN's, and blocks of
the weights side by side. Which is the quickest is measured once for each shape and some numbers of rows, and
remembered as long as the process lives.

Only float32 is treated: the forms round differently in the last bits, as do numbers of threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from decoding.errors import OptionError

__all__ = ["ENVIRONMENT_VARIABLE", "FORMS", "SmallBatchLinear", "is_plain_linear", "measured_forms"]

Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

ENVIRONMENT_VARIABLE = "DECODING_SMALL_BATCH_LINEAR"

ROWS = range(2, 17)  # numbers of rows that are treated; one row is quick already, many are torch's own strength
MEASURED = (2, 3, 4, 6, 8, 12, 16)  # those that are measured, each also for the numbers between it and the one before

# Another form is chosen where it takes at most this share of the time of torch's own: what decides must be more than
# the noise of a measurement, or the last bits would differ from process to process.
GAIN = 0.8
LAYERS = 16  # of one shape that are measured in turn, so that the weights come from memory as in a forward pass
REPEATS = 3
BLOCK = 64  # rows of the weight; with 32 to 128 the times are the same


def _transposed(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weights times states, (out, rows), turned round."""
    product = torch.mm(weight, states.T) if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return product.T.contiguous()


def _onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """OneDNN's inner product over the weights as they lie, by the operation that torch's compiler uses."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _blocks(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The products with blocks of the weight's rows, side by side, which a core's cache holds: one matrix product of 4
    rows or more reads weights of tens of megabytes twice as slowly as these do.
    """
    outputs, inputs = weight.shape
    rows, blocks = states.shape[0], outputs // BLOCK
    tiled = blocks * BLOCK
    weights = weight[:tiled].view(blocks, BLOCK, inputs).transpose(1, 2)
    product = torch.bmm(states.expand(blocks, rows, inputs), weights).transpose(0, 1).reshape(rows, tiled)
    if tiled < outputs:
        product = torch.cat([product, nn.functional.linear(states, weight[tiled:])], 1)
    return product if bias is None else product + bias


FORMS: dict[str, Product] = {
    "linear": nn.functional.linear, "transposed": _transposed, "onednn": _onednn, "blocks": _blocks,
}  # fmt: skip


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
        self._changed: dict[int, list[tuple[nn.Linear, Product]]] = {}  # by number of rows

    def quickest(self, rows: int, device: torch.device) -> AbstractContextManager[None]:
        """A context for forward passes of this thread in which the layers compute ``rows`` rows in their quickest form.

        Args:
            rows: of the products to come; outside 2 to 16 nothing changes.
            device: where they are computed; nothing changes but on a CPU.

        Raises:
            OptionError: the environment variable ``DECODING_SMALL_BATCH_LINEAR`` names no form.
        """
        if rows not in ROWS or device.type != "cpu" or torch.is_grad_enabled():
            return nullcontext()
        if rows not in self._changed:
            if self._layers is None:
                self._layers = _plain_layers(self._modules)
            forms = [(layer, _form_of(layer, rows, self._layers)) for layer in self._layers]
            self._changed[rows] = [(layer, FORMS[form]) for layer, form in forms if form != "linear"]
        changed = self._changed[rows]
        return _installed(changed, rows) if changed else nullcontext()


def measured_forms(model: nn.Module, rows: int) -> dict[str, int]:
    """How many plain linear layers of a model on a CPU compute so many rows in which form; measured where not known."""
    layers = _plain_layers(model.modules())
    return dict(Counter(_form_of(layer, rows, layers) for layer in layers))


# --- which form ------------------------------------------------------------------------------------------------------

_measured: dict[tuple[int, int, int, int], str] = {}
_measuring = threading.Lock()


def _form_of(layer: nn.Linear, rows: int, layers: Sequence[nn.Linear]) -> str:
    """The name of a layer's form for so many rows, measured on the layers of its shape where it is not known yet."""
    usable = _usable_forms()
    if len(usable) == 1:
        return usable[0]
    outputs, inputs = layer.weight.shape
    rows = next(number for number in MEASURED if number >= rows)
    key = (torch.get_num_threads(), rows, outputs, inputs)
    with _measuring:
        if key not in _measured:
            alike = [other for other in layers if other.weight.shape == layer.weight.shape]
            _measured[key] = _quickest(usable, alike[:LAYERS], rows)
        return _measured[key]


def _usable_forms() -> list[str]:
    """The forms to choose from; one where there is no choice."""
    setting = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if setting != "auto":
        if setting not in FORMS:
            raise OptionError(f"{ENVIRONMENT_VARIABLE} must be one of auto, {', '.join(FORMS)}, got {setting!r}")
        return [setting if setting != "onednn" or _has_onednn() else "linear"]
    if torch.are_deterministic_algorithms_enabled():
        return ["linear"]
    return [form for form in FORMS if form != "onednn" or _has_onednn()]


def _has_onednn() -> bool:
    """True where oneDNN computes float32 products in float32."""
    exact = torch.get_float32_matmul_precision() == "highest"
    available = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return exact and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.no_grad()
def _quickest(forms: Sequence[str], layers: Sequence[nn.Linear], rows: int) -> str:
    """Measure the forms on some layers of one shape; takes as long as some dozen forward passes."""
    weights = [(layer.weight, layer.bias) for layer in layers]
    states = weights[0][0].new_zeros(rows, weights[0][0].shape[1])
    for form in forms:  # the first calls of a form also prepare it
        _seconds(FORMS[form], states, weights[:2])
    turns = [[_seconds(FORMS[form], states, weights) for form in forms] for _ in range(REPEATS)]
    seconds = dict(zip(forms, map(min, zip(*turns, strict=True)), strict=True))
    best = min(forms, key=seconds.__getitem__)
    return best if seconds[best] <= GAIN * seconds["linear"] else "linear"


def _seconds(product: Product, states: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]]) -> float:
    start = time.perf_counter()
    for weight, bias in weights:
        product(states, weight, bias)
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


def _is_plain(layer: nn.Linear) -> bool:
    own = vars(layer).get("forward")
    if type(layer).forward is not nn.Linear.forward or not (own is None or isinstance(own, _Forward)):
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
        weight, bias = self.layer.weight, self.layer.bias
        width = input.shape[-1]
        rows = input.numel() // max(width, 1)
        if rows != _rows.get() or input.dtype != torch.float32 or weight.dtype != torch.float32:
            return nn.functional.linear(input, weight, bias)
        return self.product(input.reshape(rows, width), weight, bias).view(*input.shape[:-1], -1)


_rows: ContextVar[int | None] = ContextVar("small_batch_linear", default=None)  # None outside of the context
_installing = threading.Lock()


@contextmanager
def _installed(changed: Sequence[tuple[nn.Linear, Product]], rows: int) -> Iterator[None]:
    """The context in which these layers compute so many rows of this thread in another form."""
    token = _rows.set(rows)
    installed: list[_Forward] = []
    try:
        with _installing:
            for layer, product in changed:
                forward = vars(layer).setdefault("forward", _Forward(layer, product))
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
