"""Whether the layers of a model can go on from what its first layers have read ahead, by a check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoding.capabilities.probes import open_probe_stream, probe_batch
from decoding.models.forward_errors import is_environment_error
from decoding.models.hooks import collect_inputs
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import relative_error, tolerance
from decoding.models.structure import inspect_model
from decoding.stream.lower_layers import LowerLayers
from decoding.stream.separate_rows import SeparateRows

__all__ = ["may_read_ahead"]

AHEAD = 2  # tokens that the check reads ahead; the pass after them reads one more, and the next pass another

_memo = PerModelMemo[bool]()


@torch.no_grad()
def may_read_ahead(model: Any, layers: int) -> bool:
    """True where a pass over tokens that the first layers have read gives what a pass of the whole model gives, and
    leaves the same cache, though it does not run these layers again. Found on a batch of two rows, once per model.

    Args:
        model: a decoder-only model whose rows can be separated.
        layers: how many.
    """

    def check() -> bool:
        try:
            whole, _ = _read(model, 0)
            apart, repeated = _read(model, layers)
        except Exception as failure:  # whatever a model's forward raises means the same: it cannot
            if is_environment_error(failure):
                raise
            return False
        error = max(relative_error(one, other) for one, other in zip(apart, whole, strict=True))
        return not repeated and error < tolerance(model.dtype)

    return _memo.get(model, (*model_cache_key(model), layers), check)


def _read(model: Any, layers: int) -> tuple[list[Tensor], bool]:
    """Hidden states of two passes over tokens of separate rows, of which some were read ahead by the first layers; and
    whether the first pass ran these again.
    """
    inputs, ids = probe_batch(model)
    stream = open_probe_stream(model, inputs, "shared prefix")
    try:
        rows, known, found = stream.separate_rows(), ids.tolist(), inspect_model(model).layers
        assert found is not None, "its layers were not found"
        assert isinstance(rows, SeparateRows)
        if layers:
            rows.lower = LowerLayers(model, stream.passes, layers)
            rows.begin_ahead()
            for i in range(AHEAD):
                rows.read_ahead([known[0][i : i + 1], known[1][i : i + 1] if i == 0 else []])
        with collect_inputs(list(found[:layers])) as entered:
            hidden = stream.extend(ids[:, : AHEAD + 1]).hidden  # the first layers read what they have not
        return [hidden, stream.extend(ids[:, AHEAD + 1 : AHEAD + 2]).hidden], len(entered) > layers
    finally:
        stream.release()
