"""The forms of a linear layer's product on a CPU, and which of them can be computed here.

They give the same numbers but for the last bits: torch's own, one compiled in C for this machine (kernels/few_rows),
weights times states, oneDNN's, blocks of the weights side by side, and oneDNN's over a copy of the weights that it has
laid out for itself (packed_weights.py). small_batch_linear.py measures which is the quickest.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from decoding.errors import OptionError
from decoding.kernels.few_rows import few_row_product, why_not_compiled
from decoding.models.packed_weights import packed_product

__all__ = ["ENVIRONMENT_VARIABLE", "FORMS", "Product", "is_usable", "linear", "usable_forms"]

Product = Callable[[Tensor, nn.Linear], Tensor]  # of (..., in) states with a layer

ENVIRONMENT_VARIABLE = "DECODING_SMALL_BATCH_LINEAR"

BLOCK = 64  # rows of the weight; with 32 to 128 the times are the same


def linear(states: Tensor, layer: nn.Linear) -> Tensor:
    """Torch's own product."""
    return nn.functional.linear(states, layer.weight, layer.bias)


def _compiled(states: Tensor, layer: nn.Linear) -> Tensor:
    """The product that is compiled for this machine."""
    return few_row_product(states, layer.weight, layer.bias)


def _of_matrix(product: Product) -> Product:
    """A form that takes (rows, in) states, for states of any shape."""

    @functools.wraps(product)
    def of_states(states: Tensor, layer: nn.Linear) -> Tensor:
        return product(states.reshape(-1, states.shape[-1]), layer).view(*states.shape[:-1], -1)

    return of_states


@_of_matrix
def _transposed(states: Tensor, layer: nn.Linear) -> Tensor:
    """Weights times states, (out, rows), turned round."""
    weight, bias = layer.weight, layer.bias
    product = torch.mm(weight, states.T) if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return product.T.contiguous()


@_of_matrix
def _onednn(states: Tensor, layer: nn.Linear) -> Tensor:
    """OneDNN's inner product over the weights as they lie, by the operation that torch's compiler uses."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")
    return product


@_of_matrix
def _blocks(states: Tensor, layer: nn.Linear) -> Tensor:
    """The products with blocks of the weight's rows, side by side, which a core's cache holds: one matrix product of 4
    rows or more reads weights of tens of megabytes twice as slowly as these do.
    """
    weight, bias = layer.weight, layer.bias
    outputs, inputs = weight.shape
    rows, blocks = states.shape[0], outputs // BLOCK
    tiled = blocks * BLOCK
    weights = weight[:tiled].view(blocks, BLOCK, inputs).transpose(1, 2)
    product = torch.bmm(states.expand(blocks, rows, inputs), weights).transpose(0, 1).reshape(rows, tiled)
    if tiled < outputs:
        product = torch.cat([product, nn.functional.linear(states, weight[tiled:])], 1)
    return product if bias is None else product + bias


FORMS: dict[str, Product] = {
    "compiled": _compiled, "linear": linear, "transposed": _transposed, "onednn": _onednn, "blocks": _blocks,
    "packed": _of_matrix(packed_product),
}  # fmt: skip
# Settings that leave a form out of what is measured.
WITHOUT = {"unpacked": "packed", "uncompiled": "compiled"}


def usable_forms() -> list[str]:
    """The forms to choose from; one where there is no choice.

    Raises:
        OptionError: the environment variable ``DECODING_SMALL_BATCH_LINEAR`` names no form.
    """
    setting = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if setting not in ("auto", *WITHOUT, *FORMS):
        raise OptionError(
            f"{ENVIRONMENT_VARIABLE} must be one of auto, {', '.join((*WITHOUT, *FORMS))}, got {setting!r}"
        )
    if setting in FORMS:
        return [setting if is_usable(setting) else "linear"]
    if torch.are_deterministic_algorithms_enabled():
        return ["linear"]
    forms = [form for form in FORMS if form != WITHOUT.get(setting) and is_usable(form)]
    # Both are limited by memory, and one needs no copies.
    return [form for form in forms if form != "packed" or "compiled" not in forms]


def is_usable(form: str) -> bool:
    """True for a form that can be computed here."""
    if form == "compiled":
        return why_not_compiled() is None
    return form not in ("onednn", "packed") or _has_onednn()


def _has_onednn() -> bool:
    """True where oneDNN computes float32 products in float32."""
    exact = torch.get_float32_matmul_precision() == "highest"
    available = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return exact and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
