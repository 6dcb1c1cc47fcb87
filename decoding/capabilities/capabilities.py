"""Streams opened with the capabilities that their model was found to have.

A :class:`decoding.stream.stream.Stream` is told how it branches, whether its steps are captured and how its prompt is
read. The functions here find that out (once per model) and open it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.branching import branching_of
from decoding.capabilities.chunked_prefill import checked_chunking
from decoding.capabilities.cuda_graphs import check_cuda_graphs, cuda_graphs_requested, request_cuda_graphs
from decoding.errors import OptionError, shown
from decoding.models.devices import input_device
from decoding.models.inputs import check_inputs, with_named_inputs
from decoding.models.row_variants import RowVariants
from decoding.models.wrappers import unwrapped
from decoding.parameters import plain_numbers, require_count
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.stream.ways import Branching

__all__ = ["left_padded", "open_prepared_stream", "open_rows", "open_stream"]


def open_stream(
    model: Any,
    inputs: Tensor | Mapping[str, Any] | None = None,
    *,
    restorable: bool = False,
    exits: Sequence[int] = (),
    compile: bool = False,
    **named: Any,
) -> Stream:
    """Open a stream and read its prompt.

    Args:
        model: a generating transformers model.
        inputs: (batch, length) token ids, or what a tokenizer or processor returns.
        restorable: see :class:`decoding.Stream`.
        exits: numbers of layers after which outputs also have hidden states (0 for the embeddings); ascending.
        compile: capture the one-token steps and the branches; see :func:`decoding.generate`.
        named: what ``generate`` takes: ``input_ids`` (batch, length), ``attention_mask``, ...

    Raises:
        InputError: a prompt that is no tensor.
        OptionError: ``compile`` with a model or a call that cannot be captured.
        ModelError: what was given is no generating model, or has an adapter of prompt learning.

    Example:
        >>> stream = decoding.open_stream(model, **tokenizer("The town lies", return_tensors="pt"))
        >>> logits = stream.logits(stream.prompt)  # (1, vocab)
        >>> branches = stream.branch(logits.topk(4).indices)  # four candidates in one forward pass
        >>> stream.commit(torch.tensor([2]))  # keep the third
    """
    model = unwrapped(model)
    exits = plain_numbers(exits)
    if not isinstance(exits, (list, tuple)):
        raise OptionError(f"exits={shown(exits)}: must be numbers of layers such as [4, 8]")
    for exit_ in exits:
        require_count("exits", exit_, 0)
    inputs, named = with_named_inputs(inputs, named)
    if inputs is not None:
        named["inputs"] = inputs
    input_ids, model_kwargs, config = prepare_inputs(model, **named)
    request_cuda_graphs(config, compile)
    return open_prepared_stream(model, input_ids, model_kwargs, config, restorable=restorable, exits=exits)


def open_prepared_stream(
    model: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    generation_config: GenerationConfig | None = None,
    *,
    restorable: bool = False,
    exits: Sequence[int] = (),
    variants: RowVariants | None = None,
    whole_prompt: bool = True,
    prompt_states: Callable[[Tensor], None] | None = None,
) -> Stream:
    """Open a stream on inputs as ``generate`` prepares them, and read its prompt.

    Args:
        model: a generating transformers model.
        input_ids: (batch, length).
        model_kwargs: masks, positions, cache, encoder outputs; the stream owns the dictionary from here on.
        generation_config: of the call; None is the model's own, without captured steps.
        restorable: see :class:`decoding.Stream`.
        exits: see :class:`decoding.Stream`.
        variants: see :class:`decoding.Stream`.
        whole_prompt: see :meth:`decoding.Stream.prefill`.
        prompt_states: see :meth:`decoding.Stream.prefill`.

    Raises:
        OptionError: captured steps or chunked prefill with a model or a call that does not allow them.
    """
    plan = None
    if generation_config is not None and cuda_graphs_requested(generation_config):
        plan = check_cuda_graphs(model, model_kwargs, generation_config, variants)
    if generation_config is None:
        generation_config = copy.copy(model.generation_config)
        generation_config.max_length = None  # the length of the text is not known
    config = checked_chunking(model, input_ids, model_kwargs, generation_config)
    stream = Stream(
        model, input_ids, model_kwargs, config, branching=_branching_of_stream, graph_plan=plan,
        restorable=restorable, exits=exits, variants=variants,
    )  # fmt: skip
    stream.prefill(whole_prompt, prompt_states)
    return stream


def _branching_of_stream(stream: Stream) -> Branching:
    return branching_of(stream.model, stream.use_cache, stream.padded)


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts of several lengths as (rows, width) token ids, which end together, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)


def open_rows(
    model: Any,
    rows: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    variants: RowVariants | None = None,
    compile: bool = False,
) -> Stream:
    """Open a stream on texts of several lengths, to which at most ``new_tokens`` are added, and read them.

    Args:
        model: a generating transformers model.
        rows: token ids of each text.
        new_tokens: that each row may add.
        variants: see :class:`decoding.Stream`.
        compile: see :func:`open_stream`.

    Raises:
        OptionError: ``compile`` with a model that cannot be captured.
    """
    ids, mask = left_padded(rows, input_device(model))
    check_inputs(model, ids, {"attention_mask": mask})
    inputs, kwargs, config = prepare_inputs(model, input_ids=ids, attention_mask=mask)
    config.max_length = ids.shape[1] + new_tokens
    request_cuda_graphs(config, compile)
    return open_prepared_stream(model, inputs, kwargs, config, restorable=True, variants=variants, whole_prompt=False)
