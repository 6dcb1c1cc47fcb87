"""The definition of the product, in float64."""

from __future__ import annotations

from torch import Tensor


def few_row_product_naive(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """states·weightᵀ + bias, (rows, outputs) float64; see :func:`decoding.kernels.few_rows.few_row_product`."""
    product = (states.double()[:, None, :] * weight.double()).sum(-1)
    return product if bias is None else product + bias.double()
