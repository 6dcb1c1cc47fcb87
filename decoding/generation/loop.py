"""The token loop that decodes every strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from decoding.errors import DecodingError, OptionError
from decoding.generation.draws import draw
from decoding.generation.session import Session, most_probable
from decoding.models.devices import broadcast_from_rank0
from decoding.models.forward_errors import not_a_number, within_memory
from decoding.transformers_private import (
    CACHE_ARGUMENT,
    cache_in,
    has_unfinished_sequences,
    is_callers_cache,
    optimized_for_decode,
    pad_token,
)

__all__ = ["Record", "decode", "no_token"]


@torch.no_grad()
def decode(
    open_session: Callable[..., Session],
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    temperature: float,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generators: Sequence[torch.Generator] | None,
    synced_gpus: bool,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> Any:
    """Choose token after token until every row is finished; the contract of transformers' ``GenerationMixin._sample``.

    Args:
        open_session: opens the session whose scores choose: :meth:`decoding.generation.strategy.Strategy.session`.
        model: the generating model.
        input_ids: (batch, length) the prompt.
        logits_processor: acts on the model's logits.
        temperature: divides the strategy's scores when sampling.
        stopping_criteria: as transformers prepared them.
        generation_config: likewise.
        generators: see :func:`decoding.generation.draws.draw`.
        synced_gpus: whether all ranks must run the same number of forward passes.
        streamer: already has the prompt; None for none.
        model_kwargs: masks, positions, cache, encoder outputs.

    Returns:
        (batch, length) token ids, or a ``Generate...Output`` where ``return_dict_in_generate`` asks for it.
    """
    as_dict = generation_config.return_dict_in_generate
    cache = cache_in(model_kwargs)
    cache_outlives = as_dict or is_callers_cache(cache)
    encoder_outputs = model_kwargs.get("encoder_outputs")
    record = Record(generation_config, model.config.is_encoder_decoder)
    pad: Any = pad_token(generation_config)
    if pad is not None:
        pad = pad.to(input_ids.device)
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    rows, length = input_ids.shape
    what = f"{rows} rows of {length} tokens and more"
    with within_memory(model, what):
        session = open_session(model, input_ids, model_kwargs, generation_config, restorable=bool(cache_outlives))
    unfinished = torch.ones(rows, dtype=torch.long, device=input_ids.device)
    finished_here = False
    try:
        with within_memory(model, what), optimized_for_decode(model):
            while True:
                scores = None
                if generation_config.do_sample or record.scores is not None:
                    scores = session.scores(input_ids, logits_processor)
                if scores is None:
                    chosen = session.greedy(input_ids, logits_processor)
                elif generation_config.do_sample:
                    chosen = broadcast_from_rank0(model, draw(scores / temperature, generators))
                else:
                    chosen = most_probable(scores)
                if not finished_here:
                    record.step(session, scores)
                    stuck = (chosen < 0) & (unfinished > 0)
                    tokens = chosen.clamp(min=0)
                    if has_eos:
                        tokens = tokens * unfinished + pad * (1 - unfinished)
                    input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
                    unfinished = unfinished & ~stopping_criteria(input_ids, record.scores)
                    # Both in one copy to the host: a GPU is waited for once.
                    finished_here, is_stuck = torch.stack([unfinished.max() == 0, stuck.any()]).tolist()
                    if is_stuck:
                        raise no_token(model, session, int(stuck.nonzero()[0]), input_ids.shape[1] - length - 1)
                    if streamer is not None:
                        streamer.put(tokens.cpu())
                # Under synced_gpus a rank that is done goes on with forward passes until all are, on the tokens it has.
                if not has_unfinished_sequences(model, finished_here, synced_gpus, input_ids.device):
                    break
                session.advance(tokens)
        cache = session.close() if cache_outlives else None
    finally:
        session.release()
    if streamer is not None:
        streamer.end()
    return record.output(input_ids, cache, encoder_outputs) if as_dict else input_ids


def no_token(model: Any, session: Session, row: int, step: int) -> DecodingError:
    """The error of a row that has no token to choose."""
    where = f"at step {step} (row {row})"
    if bool(session.logits[row].isnan().any()):
        return not_a_number(model, "model", row, step)
    return OptionError(
        f"no token is left to choose {where}: the call's logits processors exclude every one, or make scores that are "
        "no numbers"
    )


class Record:
    """The values of each step that ``return_dict_in_generate`` asks for."""

    def __init__(self, config: GenerationConfig, encoder_decoder: bool) -> None:
        def wanted(flag: bool | None) -> tuple[Any, ...] | None:
            return () if config.return_dict_in_generate and flag else None

        self.encoder_decoder = encoder_decoder
        self.scores = wanted(config.output_scores)
        self.logits = wanted(config.output_logits)
        self.attentions = wanted(config.output_attentions)
        self.cross_attentions = wanted(config.output_attentions and encoder_decoder)
        self.hidden_states = wanted(config.output_hidden_states)

    def step(self, session: Any, scores: Tensor | None) -> None:
        """Keep one step: its scores, where they are wanted, and the forward pass that its logits came from."""
        output = session.output
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (session.logits.to(dtype=torch.float32, copy=True),)
        if self.attentions is not None:
            self.attentions += (output.attentions,)
        if self.cross_attentions is not None:
            self.cross_attentions += (output.cross_attentions,)
        if self.hidden_states is not None:
            self.hidden_states += (output.hidden_states,)

    def output(self, sequences: Tensor, cache: Any, encoder_outputs: Any) -> Any:
        """The output object that ``model.generate`` would return."""
        common = {
            "sequences": sequences,
            "scores": self.scores,
            "logits": self.logits,
            CACHE_ARGUMENT: cache,
        }
        if not self.encoder_decoder:
            return GenerateDecoderOnlyOutput(**common, attentions=self.attentions, hidden_states=self.hidden_states)
        return GenerateEncoderDecoderOutput(
            **common,
            encoder_attentions=encoder_outputs.get("attentions") if self.attentions is not None else None,
            encoder_hidden_states=encoder_outputs.get("hidden_states") if self.hidden_states is not None else None,
            decoder_attentions=self.attentions,
            cross_attentions=self.cross_attentions,
            decoder_hidden_states=self.hidden_states,
        )
