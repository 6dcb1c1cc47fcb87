"""The token loop with drafts: a round reads each row's last token and its drafts in one pass, then checks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from decoding.drafts.ahead import DraftsAhead
from decoding.drafts.length import DraftLength
from decoding.drafts.lower_texts import LowerTexts
from decoding.drafts.proposer import Drafts, Proposer
from decoding.drafts.record import DraftRecord
from decoding.drafts.texts_read import TextsRead
from decoding.generation.drafted_output import Streamed
from decoding.generation.drafted_rounds import Rounds
from decoding.generation.row_texts import RowTexts
from decoding.generation.session import Session
from decoding.models.forward_errors import within_memory
from decoding.transformers_private import cache_in, is_callers_cache, optimized_for_decode, pad_token

__all__ = ["Drafting", "decode_with_drafts"]


@dataclass(frozen=True)
class Drafting:
    """The drafts of one call.

    Attributes:
        open_proposer: opens what proposes them; reads the prompt where it must. Is given the prompt's tokens of each
            row, without padding, the number of tokens that the call may add, and what ``reading`` found.
        length: says how many of a proposer's are read in each round of a session.
        record: filled with what becomes of them; None for no record.
        filled_up: whether a round of some drafts is filled up to as many as were asked for, so that passes have two
            sizes: this one, and one token.
        reading: finds in a session, given the prompts too, who has read the text and may draft with its stream; it
            returns None where nobody may. None where who drafts is none of the session's.
    """

    open_proposer: Callable[..., Proposer]
    length: Callable[[Proposer, Session], DraftLength]
    record: DraftRecord | None = None
    filled_up: bool = False
    reading: Callable[[Session, Sequence[Sequence[int]]], TextsRead | LowerTexts | None] | None = None


@torch.no_grad()
def decode_with_drafts(
    open_session: Callable[..., Session],
    drafting: Drafting,
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    temperature: float,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generators: Sequence[torch.Generator] | None,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> Any:
    """Choose tokens until every row is finished, as :func:`decoding.generation.loop.decode` does, by way of drafts.

    Args:
        open_session: as there.
        drafting: what proposes drafts, and how many.
        model: as there; an encoder-decoder has one row.
        input_ids: as there, and so are the others and what is returned.
        logits_processor: each place of a pass is processed as after its own text.
        temperature: divides the strategy's scores when sampling.
        stopping_criteria: each token is shown to them.
        generation_config: likewise.
        generators: one for each row, which then draws what it draws without drafts; None for the global one.
        streamer: gets whole runs of accepted tokens.
        model_kwargs: masks, positions, cache.
    """
    cache = cache_in(model_kwargs)
    keeps_cache = bool(generation_config.return_dict_in_generate) or is_callers_cache(cache)
    is_pair = bool(model.config.is_encoder_decoder)
    mask = model_kwargs.get("decoder_attention_mask" if is_pair else "attention_mask")
    encoder_outputs = model_kwargs.get("encoder_outputs")
    pad: Any = pad_token(generation_config)
    texts = RowTexts(input_ids, mask, 0 if pad is None else int(pad))
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    rows, length = input_ids.shape
    new_tokens = int(generation_config.max_length) - length
    what = f"{rows} rows of {length} tokens and more"
    proposer: Proposer | None = None
    session: Session | None = None
    try:
        with within_memory(model, what):
            if drafting.reading is None:  # what it refuses is refused before a cache is changed
                proposer = drafting.open_proposer(texts.tokens, new_tokens)
            session = open_session(model, input_ids, model_kwargs, generation_config, restorable=keeps_cache)
            session.begin_drafts()
            if proposer is None:
                assert drafting.reading is not None
                reading = drafting.reading(session, texts.tokens)
                proposer = drafting.open_proposer(texts.tokens, new_tokens, reading)
        rounds = Rounds(
            session, texts, model, logits_processor, temperature, stopping_criteria, generation_config, generators,
            pads=has_eos, whole=keeps_cache or not has_eos, draft_record=drafting.record,
        )  # fmt: skip
        ahead, draft_length = DraftsAhead(proposer), drafting.length(proposer, session)
        put = Streamed(streamer, texts)
        with within_memory(model, what), optimized_for_decode(model):
            rounds.choose(Drafts(input_ids.new_zeros(rows, 0), [0] * rows))
            put.until(rounds.settled)
            while rounds.going:
                most = min(draft_length.begin(), new_tokens)
                wanted = [max(min(most, rounds.room(row)), 0) for row in range(rows)]
                proposed = ahead.propose(texts.tokens, wanted)
                drafts = rounds.with_padding(draft_length.cut(proposed, rounds.open))
                if drafting.filled_up and any(drafts.counts):
                    drafts = drafts.filled_up(most)
                draft_length.end(drafts, rounds.run(drafts, ahead, draft_length))
                put.until(rounds.settled)
        draft_length.close()
        total = max(rounds.finish_length.values())
        cache = None
        if keeps_cache:
            session.rewind_to(total - 1 - length)
            cache = session.close()
    finally:
        if proposer is not None:
            proposer.release()
        if session is not None:
            session.release()
    put.end(total)
    ids = texts.cut(total)
    return (
        rounds.record.output(ids, total - length, cache, encoder_outputs)
        if generation_config.return_dict_in_generate
        else ids
    )
