"""Drafts of encoder-decoders, by lookup in what the encoder reads and in the text: the tokens are those without."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import decoding
from decoding import FSD, ContrastiveSearch, DraftRecord, ModelError, OptionError, SkippedLayers, SourceContrast
from decoding.capabilities.capabilities import open_stream
from decoding.tools.architectures.other_inputs import tiny_other_inputs

NEW = 16
STRATEGIES = {
    "t5": None,
    "bart": SourceContrast([45, 46], language=62),
    "m2m_100": SkippedLayers([0]),
}


@functools.cache
def model_of(name: str) -> Any:
    return tiny_other_inputs(name)


def inputs(rows: int = 1) -> dict[str, Tensor]:
    ids = torch.tensor([[21, 22, 23, 24, 25, 26]] * rows)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": torch.tensor([[1, 61]] * rows),
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_tokens_are_those_without_drafts(name: str) -> None:
    """A random model repeats itself, so that drafts are taken; what the call returns beside the tokens is the same."""
    model, strategy, record = model_of(name), STRATEGIES[name], DraftRecord()
    call = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    plain = decoding.generate(model, **inputs(), strategy=strategy, **call)
    drafted = decoding.generate(
        model, **inputs(), strategy=strategy, **call, drafts="prompt-lookup", draft_tokens=3, draft_record=record
    )
    assert torch.equal(drafted.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(drafted.scores), torch.stack(plain.scores), atol=1e-4, rtol=1e-4)
    assert type(drafted) is type(plain)
    assert drafted.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    assert any(accepted for _, accepted in record.rows[0].values())


def test_drafts_come_from_what_the_encoder_reads() -> None:
    """The text counts on from 21, as the source does, and as the decoder's text has not yet."""

    def counts(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) != ids[:, -1:] + 1, -torch.inf)

    record, start = DraftRecord(), torch.tensor([[1, 20]])
    drafted = decoding.generate(
        model_of("t5"), **{**inputs(), "decoder_input_ids": start}, max_new_tokens=5, do_sample=False,
        logits_processor=[counts], drafts="prompt-lookup", draft_tokens=4, draft_record=record,
    )  # fmt: skip
    assert drafted.tolist() == [[1, 20, 21, 22, 23, 24, 25]]
    assert record.rows == [{3: (22, True), 4: (23, True), 5: (24, True)}]  # the first has no match, the last follows


def test_sampled_tokens_of_a_row_with_a_seed_are_the_same() -> None:
    call = {"strategy": FSD(), "max_new_tokens": 8, "do_sample": True, "temperature": 0.3, "seeds": [5]}
    plain = decoding.generate(model_of("t5"), **inputs(), **call)
    assert torch.equal(decoding.generate(model_of("t5"), **inputs(), **call, drafts="prompt-lookup"), plain)


@pytest.mark.parametrize(
    ("rows", "call", "error", "message"),
    [
        (2, {}, OptionError, "drafts: the rows of T5ForConditionalGeneration, an encoder-decoder, have one length"),
        (1, {"drafts": "exit:1"}, OptionError, "an encoder-decoder, must be prompt-lookup"),
        (1, {"strategy": ContrastiveSearch()}, ModelError, "whose candidates cannot be read side by side"),
    ],
)
def test_what_is_refused(rows: int, call: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"drafts": "prompt-lookup", "max_new_tokens": 4, "do_sample": False} | call
    with pytest.raises(error, match=message):
        decoding.generate(model_of("t5"), **inputs(rows), **call)


def test_a_model_that_reads_one_token_at_a_time_is_refused() -> None:
    with pytest.raises(ModelError, match="ProphetNetForConditionalGeneration does not read several tokens after its"):
        decoding.generate(
            model_of("prophetnet"), inputs()["input_ids"], max_new_tokens=3, do_sample=False, drafts="prompt-lookup"
        )


def test_a_model_that_reads_several_tokens_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_other_inputs("bart", seed=3)
    positions = model.model.decoder.embed_positions
    forward = type(positions).forward
    monkeypatch.setattr(  # as a decoder that takes every token of a pass for the first of it
        positions,
        "forward",
        lambda ids, past=0, position_ids=None: forward(positions, ids[:, :1], past).expand(-1, ids.shape[1], -1),
    )
    stream = open_stream(model, **inputs())
    with pytest.raises(ModelError, match="reads several tokens in one pass otherwise than one after another"):
        stream.separate_rows()
    stream.release()
