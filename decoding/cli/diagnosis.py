"""Facts that ``decoding doctor`` reports of a model: its size and place, how it branches, which kernels it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from decoding.cache.growing import layers_of
from decoding.capabilities.branching import branching_of
from decoding.capabilities.capabilities import open_stream
from decoding.capabilities.chunked_prefill import why_not_chunked
from decoding.capabilities.exit_quality import exit_quality
from decoding.errors import DecodingError, ModelError, one_line
from decoding.kernels import OPERATIONS
from decoding.kernels.backend import BackendError, choose
from decoding.kernels.few_rows import why_not_compiled
from decoding.models.devices import device_names, input_device
from decoding.models.probe import probe_inputs
from decoding.models.small_batch_linear import measured_forms
from decoding.models.structure import inspect_model
from decoding.models.text_config import text_config
from decoding.strategies.dola import DoLa
from decoding.stream.stream import Stream
from decoding.stream.ways import Branching
from decoding.transformers_private import attention_implementation
from decoding.versions import versions

__all__ = ["diagnose"]

WITH_PADDING = "branching with left padding"
CANDIDATES = 4  # rows of a step of contrastive search at batch 1, as its defaults are
CHUNK = 512  # tokens; any size above one is the same to a model


def diagnose(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return what there is to say of a model: versions, facts, and how strategies run on it.

    Args:
        name: as the model was loaded by.
        model: in eval mode, where it will run.
        tokenizer: of the model.
    """
    return {**versions(), **_facts(name, model, tokenizer), **_service(model)}


def _facts(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    config = text_config(model)
    return {
        "model": name,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": ", ".join(map(_device_name, device_names(model))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_implementation(model),
        "context": getattr(config, "max_position_embeddings", None),
        "vocabulary": config.vocab_size,
        "tokenizer vocabulary": len(tokenizer),
    }


def _device_name(place: str) -> str:
    return f"{place} ({torch.cuda.get_device_name(place)})" if place.startswith("cuda") else place


def _service(model: Any) -> dict[str, Any]:
    """Say how contrast strategies run on this model, or why they cannot."""
    report: dict[str, Any] = {}
    try:
        report |= _structure(model)
        stream = open_stream(model, input_ids=probe_inputs(model)["input_ids"])
        branching = stream.branching
    except Exception as error:  # whatever a model's own code raises here, it is the reason why it is not served
        report |= {"branching": "refused", "branching because": _reason(error)}
    else:
        report |= _served(model, stream, branching)
    return report | _told("kernels", lambda: _backends(model)) | _told("linear layers", lambda: _linear_forms(model))


def _structure(model: Any) -> dict[str, Any]:
    structure = inspect_model(model)
    report: dict[str, Any] = {
        "layers": None if structure.layers is None else len(structure.layers),
        "head": structure.head_transform or "inside the model's own forward",
        "separable head": structure.separable,
        "early exits": structure.no_early_exit is None,
    }
    if structure.no_early_exit is not None:
        report["no early exits because"] = structure.no_early_exit
    return report


def _served(model: Any, stream: Stream, branching: Branching) -> dict[str, Any]:
    """What is found of a model whose streams open."""
    return {
        **_told("exits", lambda: _exits(model)),
        **_told("chunked prefill", lambda: _chunked_prefill(model)),
        **_told("cache", lambda: _cache(stream)),
        "branching": branching.way,
        "branching because": branching.reason,
        **_told(WITH_PADDING, lambda: _with_left_padding(model, branching.way)),
        **_told("drafts", lambda: _drafts(model, stream)),
    }


def _told(what: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is found, or why it is not known: no failure of one fact hides the others."""
    try:
        return find()
    except Exception as error:  # a model's own code may raise anything
        return {f"{what} unknown because": _reason(error)}


def _reason(error: Exception) -> str:
    return ("" if isinstance(error, DecodingError) else f"{type(error).__name__}: ") + one_line(error)


def _exits(model: Any) -> dict[str, Any]:
    """Say how well the exits of DoLa's upper half predict the model's own text, and warn where they are noise."""
    if model.config.is_encoder_decoder or inspect_model(model).no_early_exit is not None:
        return {}
    strategy = DoLa("high")
    quality = exit_quality(model, strategy.candidates(model))
    figures = zip(quality.exits, quality.bare, quality.normed, strict=True)
    report: dict[str, Any] = {
        "nats per token of exits": ", ".join(f"{exit_}: {bare:.1f} ({normed:.1f})" for exit_, bare, normed in figures)
        + f"; in brackets with the final norm; chance {quality.chance:.1f}"
    }
    if noisy := quality.noisy():
        report["exits are noise"] = (
            f"{', '.join(map(str, noisy))} predict the model's own text worse than chance, so DoLa and SLED "
            f"choose by noise there; with the final norm (final_norm=true, as LOL and DeCo have it) "
            f"{', '.join(map(str, quality.noisy(final_norm=True))) or 'none'} do"
        )
    return report


def _chunked_prefill(model: Any) -> dict[str, Any]:
    refusal = why_not_chunked(model, CHUNK)
    return {"chunked prefill": False, "no chunked prefill because": refusal} if refusal else {"chunked prefill": True}


def _cache(stream: Stream) -> dict[str, Any]:
    """Name the kinds of the cache's layers, or say why there is none."""
    kinds = Counter(type(layer).__name__ for layer in ([] if stream.recompute_reason else layers_of(stream.cache)))
    return {"cache": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or stream.recompute_reason}


def _with_left_padding(model: Any, way: str) -> dict[str, Any]:
    """Say how rows with left padding are branched, where that is another way than without padding."""
    try:
        branching = branching_of(model)
    except ModelError as refusal:
        return {WITH_PADDING: "refused", f"{WITH_PADDING} because": one_line(refusal, 300)}
    return {} if branching.way == way else {WITH_PADDING: branching.way, f"{WITH_PADDING} because": branching.reason}


def _drafts(model: Any, stream: Stream) -> dict[str, Any]:
    """Say whether the model can read drafts, which changes its stream, or why not."""
    try:
        stream.separate_rows()
    except ModelError as refusal:
        return {"drafts": False, "no drafts because": one_line(refusal, 300)}
    if model.config.is_encoder_decoder:
        return {"drafts": True, "drafts are": "of prompt lookup, for one row, without contrastive search"}
    return {"drafts": True}


def _linear_forms(model: Any) -> dict[str, str]:
    """Name the forms in which this machine computes the linear layers over the four tokens of a step."""
    forms = measured_forms(model, CANDIDATES)
    if not forms:
        return {}
    report = {f"linear layers of {CANDIDATES} rows": ", ".join(f"{count} x {form}" for form, count in forms.items())}
    obstacle = why_not_compiled()
    return report if obstacle is None else report | {"no compiled products because": obstacle}


def _backends(model: Any) -> dict[str, str]:
    """Name the form of each operation that runs for this model, or say why none does."""
    try:
        chosen = choose("auto", input_device(model))
    except BackendError as reason:
        return dict.fromkeys(OPERATIONS, f"refused: {reason}")
    return dict.fromkeys(OPERATIONS, chosen)
