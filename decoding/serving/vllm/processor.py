"""Puts the strategies' scores where vLLM's sampler takes logits from, on both of its model runners.

Both runners make one instance for each engine. Of a batch, rows whose requests ask for no strategy stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from decoding.serving.vllm.admission import Entrance, fields_of, scores_prompt
from decoding.serving.vllm.engines import MODELS
from decoding.serving.vllm.groups import Entry, Member, groups_in_batch
from decoding.serving.vllm.requests import GROUP, PlainRequest, requested
from decoding.serving.vllm.rows import Rows, grouped
from decoding.serving.vllm.scores import masked_scores, scores_of
from decoding.serving.vllm.search import leave_one

__all__ = ["FirstStage", "Processor", "contrast"]


class Processor(Entrance, ProcessorV1, ProcessorV2):
    """The base of ``StrategyProcessor``, the entry point of group ``vllm.logits_processors``."""

    def __init__(self, vllm_config: Any, device_or_states: Any, pin_memory: bool | None = None) -> None:
        self._engine: str = vllm_config.instance_id
        self._entries: dict[int, Entry] = {}  # by place in the batch (V1), or by slot (V2)
        self._groups: list[Rows] | None = None
        self._grouped: tuple[tuple[int, Entry], ...] = ()

    @property
    def model(self) -> Any:
        """The engine's model, if it has readers; None where another class of models runs."""
        return MODELS.get(self._engine)

    def entry_of(self, params: SamplingParams) -> Entry | None:
        """The request's strategy on this engine, the engine's own where it names none; None for the model's logits."""
        model = self.model
        fields = fields_of(params)
        if model is None:
            return None
        request = model.default if fields is None else requested(fields, model.readers)
        if request is None:
            if model.default is None:
                return None
            request = PlainRequest()  # in place of the engine's own scores
        member = None if fields is None else fields.get(GROUP)
        return Entry(request, None if member is None else Member(*member), scores_prompt(params))

    # The V1 runner.

    def is_argmax_invariant(self) -> bool:
        """False: strategies choose other tokens."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Note which request stands at which place of the batch."""
        changed = process_dict_updates(
            self._entries, batch_update, lambda params, prompt_ids, output_ids: self.entry_of(params)
        )
        if changed or batch_update is not None:
            self._groups = None
        if (model := self.model) is not None:
            model.begin_step(self._entries.items())
            if batch_update is not None:
                model.groups = groups_in_batch(self._entries.items())

    # The V2 runner: the strategies' scores come first of all stages, and plausibility last.

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Note the request of a slot."""
        entry = self.entry_of(sampling_params)
        if entry is None:
            self._entries.pop(req_idx, None)
        else:
            self._entries[req_idx] = entry
        return entry is not None

    def entries_of(self, slots: Iterable[int]) -> tuple[tuple[int, Entry], ...]:
        """Places in a step's batch, whose slots are given, and what stands there."""
        return tuple((at, self._entries[slot]) for at, slot in enumerate(slots) if slot in self._entries)

    def groups_of(self, ctx: Any, device: torch.device) -> list[Rows]:
        """The rows of a step by kind; rows of the batch change places from step to step."""
        slots = ctx.idx_mapping_np
        if len(ctx.expanded_idx_mapping) != len(slots):  # drafts: a request has several rows
            slots = ctx.expanded_idx_mapping.cpu().numpy()
        entries = self.entries_of(slots.tolist())
        if self._groups is None or entries != self._grouped:
            self._groups, self._grouped = grouped(entries, device), entries
        return self._groups

    def first_stage(self, logits: Tensor, ctx: Any) -> Tensor:
        """The strategies' scores in place of logits, before other processors change them."""
        if (model := self.model) is not None and model.step is not None:
            for rows in self.groups_of(ctx, logits.device):
                contrast(model, rows, logits, masks=False)
        return logits

    # Both.

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """(batch, vocab) float32 with the strategies' scores at the rows that have one, in place.

        On the V2 runner the scores are there, processed, and plausibility alone is applied.
        """
        model = self.model
        if model is None or model.step is None:
            return logits
        if ctx is None:
            if self._groups is None:
                self._groups = grouped(sorted(self._entries.items()), logits.device)
            for rows in self._groups:
                contrast(model, rows, logits)
        else:
            for rows in self.groups_of(ctx, logits.device):
                logits[rows.at] = masked_scores(rows, logits[rows.at], model.step.readers_of(model, rows))
        if model.step.forced is not None:
            leave_one(logits, *model.step.forced)
        model.step = None
        return logits


def __getattr__(name: str) -> Any:
    """``StrategyProcessor``: a class of its own for each list of processors that vLLM loads."""
    if name != "StrategyProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return Processor.loaded()


class FirstStage(ProcessorV2):
    """The V2 runner's first processor, which puts the scores of a :class:`Processor` in place of logits."""

    def __init__(self, strategies: Processor) -> None:
        self._strategies = strategies

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """False: the processor itself notes requests."""
        return False

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """The strategies' scores."""
        return self._strategies.first_stage(logits, ctx)


def contrast(model: Any, rows: Rows, logits: Tensor, masks: bool = True) -> None:
    """Replace a batch's logits by scores, in place, at the rows of one group.

    What earlier processors did to the logits is done to the scores: what they added is added, and what they excluded
    is excluded. Plausibility comes last, among the tokens that are left.

    Args:
        model: the engine's.
        rows: of one kind.
        logits: (batch, vocab) float32, processed.
        masks: whether plausibility is applied now.
    """
    step, at = model.step, rows.at
    given, returned = logits[at], step.returned[at].float()
    own = [request == model.default for request in rows.requests]
    readers = step.readers_of(model, rows)
    if all(own):
        scores = given
    else:
        scores = scores_of(rows, readers)
        if not (given.is_cpu and torch.equal(given, returned)):  # a GPU would make the host wait for the answer
            moved = given - returned
            scores = scores + torch.where(moved.isfinite(), moved, 0.0)
            scores = scores.masked_fill(given.isneginf() & ~returned.isneginf(), -torch.inf)
        if any(own):  # the engine's own scores are there already
            kept = torch.tensor(own, device=logits.device)[:, None]
            scores = torch.where(kept, given, scores)
    logits[at] = masked_scores(rows, scores, readers) if masks else scores
