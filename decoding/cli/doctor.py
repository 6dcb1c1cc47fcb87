"""``decoding doctor``: what runs here, and how a model is served."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from rich.table import Table

from decoding.cache.growing import layers_of
from decoding.capabilities.branching import branching_of
from decoding.capabilities.capabilities import open_stream
from decoding.capabilities.chunked_prefill import why_not_chunked
from decoding.cli.options import Device, DeviceMap, Dtype, Json, Model, TpPlan
from decoding.cli.output import as_json, console
from decoding.errors import DecodingError, ModelError, one_line
from decoding.kernels import OPERATIONS
from decoding.kernels.backend import BackendError, choose
from decoding.models.devices import device_names, input_device, is_main_process
from decoding.models.loading import load
from decoding.models.probe import probe_inputs
from decoding.models.structure import inspect_model
from decoding.transformers_private import attention_implementation
from decoding.versions import versions

__all__ = ["doctor_command"]

PIECES = 512  # tokens; any size above one is the same to a model


def doctor_command(
    model: Model = "expert",
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    json: Json = False,
) -> None:
    """Report versions, and how a model is served: how it branches, where its head is, whether lower layers can be read.

    Example: decoding doctor --model expert
    """
    loaded, tokenizer = load(model, device, dtype, device_map=device_map, tp_plan=tp_plan)
    report: dict[str, Any] = {**versions(), **_facts(model, loaded, tokenizer), **_service(loaded)}
    if not is_main_process(loaded):
        return
    if json:
        print(as_json(report, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in report.items():
        table.add_row(name, {True: "yes", False: "no", None: "unknown"}.get(value, str(value)))
    console().print(table, markup=False)


def _facts(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    config = model.config.get_text_config(decoder=True)
    return {
        "model": name,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": ", ".join(map(_named, device_names(model))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_implementation(model),
        "context": getattr(config, "max_position_embeddings", None),
        "vocabulary": config.vocab_size,
        "tokenizer vocabulary": len(tokenizer),
    }


def _named(place: str) -> str:
    return f"{place} ({torch.cuda.get_device_name(place)})" if place.startswith("cuda") else place


def _service(model: Any) -> dict[str, Any]:
    """How contrast strategies run on this model, or why they cannot."""
    report: dict[str, Any] = {}
    try:
        parts = inspect_model(model)
        report |= {
            "layers": None if parts.layers is None else len(parts.layers),
            "head": parts.head_transform or "inside the model's own forward",
            "head applied apart": parts.separable,
            "early exits": parts.no_early_exit is None,
        }
        if parts.no_early_exit is not None:
            report["no early exits because"] = parts.no_early_exit
        stream = open_stream(model, input_ids=probe_inputs(model)["input_ids"])
        misread = why_not_chunked(model, PIECES)
        report["prompts in pieces"] = not misread
        if misread:
            report["not in pieces because"] = misread
        kinds = Counter(type(layer).__name__ for layer in ([] if stream.recompute_reason else layers_of(stream.cache)))
        report["cache"] = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or stream.recompute_reason
        report["branching"] = stream.branching.way
        report["branching because"] = stream.branching.reason
        report |= _behind_padding(model, stream.branching.way)
    except Exception as error:  # whatever a model's own code raises here, it is the reason why it is not served
        report["branching"] = "refused"
        kind = "" if isinstance(error, DecodingError) else f"{type(error).__name__}: "
        report["branching because"] = kind + one_line(error)
    return report | _backends(model)


def _behind_padding(model: Any, way: str) -> dict[str, Any]:
    """How rows with padding before them are branched, where it is another way than without."""
    try:
        found = branching_of(model)
    except ModelError as refusal:
        return {"branching behind padding": "refused", "which is because": one_line(refusal, 300)}
    return {} if found.way == way else {"branching behind padding": found.way, "which is because": found.reason}


def _backends(model: Any) -> dict[str, str]:
    """Which form of each operation runs for this model, or why none does."""
    try:
        chosen = choose("auto", input_device(model))
    except BackendError as reason:
        return dict.fromkeys(OPERATIONS, f"refused: {reason}")
    return dict.fromkeys(OPERATIONS, chosen)
