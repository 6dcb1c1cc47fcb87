"""The V2 runner's state of a model with readers: its sampler contrasts before all other processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

from decoding.serving.vllm.groups import groups_in_batch, share_tokens
from decoding.serving.vllm.processor import FirstStage, Processor

__all__ = ["model_state_class"]


def model_state_class(model: Any, own: Callable[[], Any] | None) -> type[Any]:
    """The class of states that vLLM has for a model, with the strategies' stage in its sampler.

    Args:
        model: with readers.
        own: the ``get_model_state_cls`` that its class of vLLM has; None where it has none.
    """
    base = own() if own is not None else resolve_model_state_cls(model.vllm_config, model.model)

    class StrategyModelState(base):  # type: ignore[misc, valid-type]
        def custom_sampler(self, sampler: Any) -> tuple[Any, Any] | None:
            custom = super().custom_sampler(sampler)
            chosen = sampler if custom is None else custom[0]
            for processor in list(chosen.logits_processors):
                if isinstance(processor, Processor):
                    self._strategies = processor
                    chosen.logits_processors.insert(0, FirstStage(processor))
            return custom

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            entries = self._strategies.entries_of(input_batch.idx_mapping_np.tolist())
            self.model.groups = groups_in_batch(entries)
            self.model.begin_step(entries, input_batch.query_start_loc_np.tolist())
            share_tokens(self.model.groups, input_batch.input_ids, input_batch.positions, input_batch.query_start_loc)
            return super().prepare_inputs(input_batch, req_states)

    return StrategyModelState
