"""Prompts read piece by piece (``prefill_chunk_size``), and the models that misread a prompt in pieces.

The pieces themselves are transformers' own. Some models answer otherwise from them than from the prompt at once, and
say nothing: in transformers 5.23 those whose recurrent layers begin each piece anew (Jamba, Zamba), those that do not
mask the padding of a piece of one token (most hybrids), and encoder-decoders, whose encoder's mask is cut into pieces
too. So a model's pieces are compared with the whole before they are trusted.
"""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.probes import open_probe_stream, probe_batch
from decoding.errors import ModelError, OptionError, one_line
from decoding.models.forward_errors import ACCIDENTS, is_environment_error
from decoding.models.memo import model_cache_key
from decoding.models.probe import tolerance

__all__ = ["checked_chunking", "enable_chunked_prefill", "why_not_chunked"]

MOST = 2**31 - 1  # tokens of a piece that torch can count with
PIECES = 5  # of the check's prompts, which have 20 tokens and more

_checking = threading.RLock()
_checked: weakref.WeakKeyDictionary[Any, dict[tuple[object, ...], str]] = weakref.WeakKeyDictionary()


def enable_chunked_prefill(model: Any, size: int | None, padded: bool) -> None:
    """Have a model read every prompt in pieces of ``size`` tokens from now on, in transformers' own decoding too.

    Args:
        model: a generating transformers model.
        size: tokens of a piece; None leaves the model as it is.
        padded: whether prompts will have padding before them.

    Raises:
        OptionError: a size that is none, or a model that reads a prompt otherwise in pieces than at once.
    """
    if size is not None:
        _check(model, size, padded)
        model.generation_config.prefill_chunk_size = min(size, MOST)


def checked_chunking(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], config: GenerationConfig
) -> GenerationConfig:
    """The generation config of a call, its ``prefill_chunk_size`` looked at; without it where the prompt is one piece.

    Raises:
        OptionError: a size that is none, a prompt of embeddings, or a model that reads a prompt otherwise in pieces
            than at once.
    """
    size = config.prefill_chunk_size
    if size is None:
        return config
    if model_kwargs.get("inputs_embeds") is not None:
        raise OptionError(f"prefill_chunk_size={size}: only prompts of input_ids are read in pieces; leave it out")
    if isinstance(size, int) and size >= input_ids.shape[1] > 0 and not model.config.is_encoder_decoder:
        config = copy.copy(config)
        config.prefill_chunk_size = None
    else:
        mask = model_kwargs.get("attention_mask")
        _check(model, size, padded=mask is not None and not bool(mask.all()))
    return config


def _check(model: Any, size: Any, padded: bool) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise OptionError(f"prefill_chunk_size={size!r}: accepted are whole numbers from 1")
    why = why_not_chunked(model, size, padded)
    if why:
        raise OptionError(f"prefill_chunk_size={size}: {type(model).__name__} {why}; leave it out")


@torch.no_grad()
def why_not_chunked(model: Any, size: int, padded: bool = True) -> str:
    """Why a model's prompts are not to be read in pieces of so many tokens; empty where they may be.

    Checked once per model, attention implementation, dtype and device, on two rows of a few tokens.

    Args:
        model: a generating transformers model.
        size: tokens of a piece; a piece of one takes ways of its own through some models.
        padded: whether rows have padding before them.
    """
    if model.config.is_encoder_decoder:
        return "is an encoder-decoder, whose encoder reads the prompt at once"
    key = (*model_cache_key(model), size == 1, padded)
    with _checking:
        per_model = _checked.setdefault(model, {})
        if key not in per_model:
            per_model[key] = ""  # which the check's own pieces find here
            found = None
            try:
                found = _misread(model, size == 1, padded)
            finally:
                if found is None:
                    del per_model[key]
            per_model[key] = found or ""
        return per_model[key]


def _misread(model: Any, by_token: bool, padded: bool) -> str | None:
    """As :func:`why_not_chunked`; None where the model gives no numbers, which says nothing of its pieces."""
    inputs, further = probe_batch(model, padded)
    whole = open_probe_stream(model, inputs)
    if whole.cacheless:
        return f"is read without a cache ({whole.cacheless})"
    # What the last piece left in the cache shows in a token behind it.
    expected = torch.cat([whole.prompt.hidden, whole.extend(further[:, :1]).hidden], dim=1)
    if not bool(expected.isfinite().all()):
        return None
    try:
        pieces = open_probe_stream(model, inputs, 1 if by_token else max(2, inputs["input_ids"].shape[1] // PIECES))
        found = torch.cat([pieces.prompt.hidden, pieces.extend(further[:, :1]).hidden], dim=1)
    except (*ACCIDENTS, OptionError, ModelError) as failure:
        refusal = failure.__cause__ or failure
        if is_environment_error(refusal):
            raise
        return f"cannot read a prompt in pieces ({type(refusal).__name__}: {one_line(refusal, 80)})"
    mask = torch.nn.functional.pad(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])), (0, 1), value=1)
    error = _apart(found, expected, mask.bool())
    if error < tolerance(model.dtype):
        return ""
    return f"reads a prompt otherwise in pieces than at once (relative error {error:.1e})"


def _apart(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Relative error of the middle token of the row that is worst, of (rows, n, dim).

    Not of all tokens: in half precision rounding sends one here and there to another expert.
    """
    error = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1).clamp_min(1e-30)
    return max(float(row[kept.to(row.device)].median()) for row, kept in zip(error, mask, strict=True))
