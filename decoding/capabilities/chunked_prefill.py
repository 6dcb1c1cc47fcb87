"""Chunked prefill (``prefill_chunk_size``), and the models that misread a prompt in chunks.

The chunks themselves are transformers' own. Some models silently answer differently from chunks than from the whole
prompt: in transformers 5.23 those whose recurrent layers start again at each chunk (Jamba, Zamba), those that do not
mask the padding of a chunk of one token (most hybrids), and encoder-decoders, whose encoder's mask is cut into chunks
too. So a model's chunks are compared with the whole prompt before they are used.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.probes import open_probe_stream, probe_batch
from decoding.errors import ModelError, OptionError, one_line
from decoding.models.forward_errors import ACCIDENTS, is_environment_error
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import tolerance
from decoding.parameters import plain_number, require_count

__all__ = ["checked_chunking", "enable_chunked_prefill", "why_not_chunked"]

LARGEST_CHUNK = 2**31 - 1  # tokens, the most that torch can split by
CHUNKS = 5  # of the check's prompts, which have 20 tokens and more

_memo = PerModelMemo[str | None]()


def enable_chunked_prefill(model: Any, size: int | None, padded: bool) -> None:
    """Turn on chunked prefill for every prompt of a model, in transformers' own decoding too.

    Args:
        model: a generating transformers model.
        size: number of tokens of a chunk; None leaves the model as it is.
        padded: True where prompts will have left padding.

    Raises:
        OptionError: a size out of range, or a model that misreads a prompt in chunks.
    """
    if size is not None:
        _check(model, size, padded)
        model.generation_config.prefill_chunk_size = min(size, LARGEST_CHUNK)


def checked_chunking(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], config: GenerationConfig
) -> GenerationConfig:
    """The generation config of a call with its ``prefill_chunk_size`` checked, and removed where the prompt is one
    chunk.

    Raises:
        OptionError: a size out of range, a prompt of embeddings, or a model that misreads a prompt in chunks.
    """
    size = plain_number(config.prefill_chunk_size)
    if size is None:
        return config
    if size is not config.prefill_chunk_size:
        config = copy.copy(config)
        config.prefill_chunk_size = size
    if model_kwargs.get("inputs_embeds") is not None:
        raise OptionError(f"prefill_chunk_size={size}: chunked prefill needs a prompt of input_ids; leave it out")
    if isinstance(size, int) and size >= input_ids.shape[1] > 0 and not model.config.is_encoder_decoder:
        config = copy.copy(config)
        config.prefill_chunk_size = None
    else:
        mask = model_kwargs.get("attention_mask")
        _check(model, size, padded=mask is not None and not bool(mask.all()))
    return config


def _check(model: Any, size: Any, padded: bool) -> None:
    require_count("prefill_chunk_size", size, 1)
    why = why_not_chunked(model, size, padded)
    if why:
        raise OptionError(f"prefill_chunk_size={size}: {type(model).__name__} {why}; leave it out")


@torch.no_grad()
def why_not_chunked(model: Any, size: int, padded: bool = True) -> str:
    """The reason why a model's prompts cannot be read in chunks of this size; empty where they can.

    Checked once per model, attention implementation, dtype and device, on two rows of a few tokens.

    Args:
        model: a generating transformers model.
        size: number of tokens of a chunk; a chunk of one goes through code of its own in some models.
        padded: True where rows have left padding.
    """
    if model.config.is_encoder_decoder:
        return "is an encoder-decoder, whose encoder reads the prompt in one pass"
    reason = _memo.get(
        model,
        (*model_cache_key(model), size == 1, padded),
        lambda: _why_misread(model, size == 1, padded),
        is_final=lambda reason: reason is not None,
    )
    return reason or ""


def _why_misread(model: Any, by_token: bool, padded: bool) -> str | None:
    """The reason of :func:`why_not_chunked`; None where the model's outputs are no numbers, which tells nothing."""
    inputs, further = probe_batch(model, padded)
    whole = open_probe_stream(model, inputs)
    if whole.recompute_reason:
        return f"is read without a cache ({whole.recompute_reason})"
    # What the last chunk left in the cache shows in a token after it.
    expected = torch.cat([whole.prompt.hidden, whole.extend(further[:, :1]).hidden], dim=1)
    if not bool(expected.isfinite().all()):
        return None
    try:
        size = 1 if by_token else max(2, inputs["input_ids"].shape[1] // CHUNKS)
        chunked = open_probe_stream(model, inputs, chunk=size)
        states = torch.cat([chunked.prompt.hidden, chunked.extend(further[:, :1]).hidden], dim=1)
    except (*ACCIDENTS, OptionError, ModelError) as failure:
        refusal = failure.__cause__ or failure
        if is_environment_error(refusal):
            raise
        return f"cannot read a prompt in chunks ({type(refusal).__name__}: {one_line(refusal, 80)})"
    mask = torch.nn.functional.pad(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])), (0, 1), value=1)
    error = _median_error(states, expected, mask.bool())
    if error < tolerance(model.dtype):
        return ""
    return f"reads a prompt differently in chunks than in one pass (relative error {error:.1e})"


def _median_error(states: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Relative error of the median token of the worst row, of (rows, n, dim).

    Not of all tokens: in half precision rounding sends one here and there to another expert.
    """
    error = (states.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1).clamp_min(1e-30)
    return max(float(row[kept.to(row.device)].median()) for row, kept in zip(error, mask, strict=True))
