"""The probe batch and the steps that the checks of a model run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from decoding.models.inputs import context_of
from decoding.models.probe import probe_inputs
from decoding.models.text_config import text_config
from decoding.stream.cuda_graph_steps import GraphPlan
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.stream.ways import Branching, Way, may_share_prefix

__all__ = ["open_probe_stream", "probe_batch", "run_probe"]

# The names that configurations have for the number of tokens that a layer attends back.
WINDOWS = (
    "sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size",
    "local_attention",
)  # fmt: skip

PROBE_WINDOW = 256  # tokens (GPT-Neo's window): the check of a model of 134M took 1.7 s on two cores, and 3.2 s at 512
PROBE_CONTINUATION = 3  # tokens that the check reads after its prompts
PROBE_CHOICES = ((1, 2), (2, 0))  # of each of the probe's branches, by row: each of the three branches is kept once


def open_probe_stream(
    model: Any,
    inputs: dict[str, Any],
    way: Way | None = "fork",
    chunk: int | None = None,
    plan: GraphPlan | None = None,
) -> Stream:
    """Open a stream whose capabilities are given, and read its prompt.

    Args:
        model: that is checked.
        inputs: as ``generate`` takes them.
        way: how the stream branches; None for the cheapest way that its cache allows.
        chunk: number of tokens a forward pass reads of the prompt, whatever the model's own generation config has; None
            reads it in one pass.
        plan: how its steps are captured; None for steps as they are.
    """
    ids, kwargs, config = prepare_inputs(model, **inputs)
    config.prefill_chunk_size = chunk

    def branching(stream: Stream) -> Branching:
        """Asked for once the prompt is read and there is a cache."""
        sharing = not stream.recompute_reason and may_share_prefix(stream)
        return Branching(way or ("shared prefix" if sharing else "fork"), "of a check")

    stream = Stream(model, ids, kwargs, config, branching=branching, graph_plan=plan)
    stream.prefill()
    return stream


def probe_batch(model: Any, padded: bool = True) -> tuple[dict[str, Any], Tensor]:
    """A small batch of prompts as ``generate`` takes it, one left-padded, and (2, 6) tokens to continue with."""
    config = text_config(model)
    windows = [
        value for name in WINDOWS if isinstance(value := getattr(config, name, None), int) and value <= PROBE_WINDOW
    ]
    # Past each window where that is cheap; windows of thousands are the same code.
    length = max([8, *windows]) + 12
    context = context_of(model)
    if context is not None and context > PROBE_CONTINUATION:
        length = min(length, context - PROBE_CONTINUATION)
    ids = probe_inputs(model, batch=2, length=length + 6)["input_ids"]
    mask = torch.ones_like(ids[:, :length])
    if padded:
        mask[0, : length // 3] = 0
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids[:, :length]}
    if takes_mask:
        inputs["attention_mask"] = mask
    return inputs, ids[:, length:]


def run_probe(stream: Stream, ids: Tensor) -> list[Tensor]:
    """Hidden states of three steps of a stream over (2, 6) tokens: two branches, each committed, and one token.

    Where logits do not follow from them, those after the last token too: ProphetNet's come from other states.
    """
    first_kept, second_kept = torch.tensor(PROBE_CHOICES, device=ids.device)
    first = stream.branch(ids[:, :3]).hidden
    stream.commit(first_kept)
    second = stream.branch(ids[:, 3:]).hidden
    stream.commit(second_kept)
    last = stream.extend(ids[:, :1])
    return [first, second, last.hidden, *([] if stream.structure.separable else [stream.logits(last)])]
