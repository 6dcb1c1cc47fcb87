"""The logits-processor form in plain ``model.generate``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from search_oracle import contrastive_search_tokens
from tiny_models import TOKENS, VOCAB, random_ids, tiny_model

import decoding
from decoding import ContrastiveSearch, ContrastiveSearchLogitsProcessor, DoLa, InputError, OptionError

SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


def _processor(model: Any, **inputs: Any) -> ContrastiveSearchLogitsProcessor:
    return ContrastiveSearchLogitsProcessor(model, **SEARCH, **inputs)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-sliding", "bloom", "mamba"])
def test_greedy_choice_from_its_scores_is_contrastive_search(name: str) -> None:
    model, ids = tiny_model(name), random_ids(2, 9)
    given = model.generate(ids, logits_processor=[_processor(model)], max_new_tokens=8, do_sample=False)
    assert given.tolist() == decoding.generate(model, ids, max_new_tokens=8, **SEARCH).tolist()


@pytest.mark.parametrize("given", [True, False], ids=["mask-given", "mask-from-pads"])
def test_left_padded_batches(given: bool) -> None:
    model = tiny_model("llama")
    prompts = [random_ids(4, seed=1).tolist(), random_ids(9, seed=2).tolist()]
    ids = torch.tensor([[0] * 5 + prompts[0], prompts[1]])
    mask = (ids != 0).long()
    processor = _processor(model, attention_mask=mask) if given else _processor(model)
    tokens = model.generate(ids, attention_mask=mask, logits_processor=[processor], max_new_tokens=10, do_sample=False)
    for row, prompt in zip(tokens[:, 9:].tolist(), prompts, strict=True):
        assert row == contrastive_search_tokens(model, prompt, 0.6, 4, 10)


def test_encoder_decoder_models_give_it_the_encoders_input() -> None:
    model, ids = tiny_model("t5"), random_ids(2, 7)
    processor = _processor(model, input_ids=ids)
    tokens = model.generate(ids, logits_processor=[processor], max_new_tokens=8, do_sample=False, num_beams=1)
    expected = decoding.generate(model, ids, max_new_tokens=8, num_beams=1, do_sample=False, **SEARCH)
    assert tokens.tolist() == expected.tolist()
    with pytest.raises(InputError, match="needs the encoder's input_ids"):
        _processor(model)


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba"])
def test_beam_search_over_contrastive_scores(name: str) -> None:
    """Against beam search written out, in which the strategy scores each hypothesis."""
    model, prompt, beams, steps = tiny_model(name), random_ids(9, seed=3), 3, 4
    given = model.generate(
        prompt[None], logits_processor=[_processor(model)], num_beams=beams, max_new_tokens=steps, do_sample=False
    )
    hypotheses = [(0.0, prompt.tolist())]
    for _ in range(steps):
        grown = [
            (score + gain, [*text, token]) for score, text in hypotheses for token, gain in _scores(model, text).items()
        ]
        hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    assert given[0].tolist() == hypotheses[0][1]


def _scores(model: Any, text: list[int]) -> dict[int, float]:
    ids = torch.tensor([text])
    output = decoding.generate(  # the mask keeps generated pad tokens from being taken for padding
        model, ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, return_dict_in_generate=True,
        output_scores=True, **SEARCH,
    )  # fmt: skip
    return {i: score for i, score in enumerate(output.scores[0][0].tolist()) if math.isfinite(score)}


def test_beams_that_finish_at_different_steps(capfd: pytest.CaptureFixture[str]) -> None:
    model, ids = tiny_model("llama"), random_ids(2, 8)
    free = decoding.generate(model, ids, max_new_tokens=8, **SEARCH)[:, 8:]
    ends = [free[0, 1].item(), free[1, 5].item()]
    tokens = model.generate(
        ids, logits_processor=[_processor(model)], num_beams=4, max_new_tokens=12, eos_token_id=ends, pad_token_id=0
    )
    assert tokens.shape[0] == 2
    assert tokens[:, :8].tolist() == ids.tolist()


def test_sampling_and_several_return_sequences_stay_within_the_candidates() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 8)
    torch.manual_seed(0)
    tokens = model.generate(
        ids, logits_processor=[_processor(model)], do_sample=True, top_k=0, temperature=5.0, num_return_sequences=3,
        max_new_tokens=4,
    )  # fmt: skip
    assert len({tuple(row) for row in tokens.tolist()}) > 1
    for row in tokens.tolist():
        for end in range(8, 12):
            assert row[end] in _scores(model, row[:end])


def test_processors_before_it_act_on_the_candidates() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 8)
    banned = decoding.generate(model, ids, max_new_tokens=1, **SEARCH)[0, -1].item()
    options = {"max_new_tokens": 10, "bad_words_ids": [[banned]], "repetition_penalty": 1.3, "do_sample": False}
    given = model.generate(ids, logits_processor=[_processor(model)], **options)
    assert given.tolist() == decoding.generate(model, ids, **options, **SEARCH).tolist()


def test_one_processor_serves_one_call_after_another() -> None:
    model = tiny_model("llama")
    processor = _processor(model)
    for seed, length in ((1, 8), (2, 8), (1, 8), (3, 5)):
        ids = random_ids(1, length, seed=seed)
        given = model.generate(ids, logits_processor=[processor], max_new_tokens=7, do_sample=False)
        assert given.tolist() == decoding.generate(model, ids, max_new_tokens=7, **SEARCH).tolist()


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "bloom", "mamba"])
def test_a_token_that_somebody_else_chose_is_followed(name: str) -> None:
    """A processor behind it may force any token; the next scores must be those of the text as it then is."""
    model, ids = tiny_model(name), random_ids(1, 8)
    processor = _processor(model)
    processor(ids, model(ids).logits[:, -1].detach())
    forced = next(token for token in range(3, VOCAB) if token not in _scores(model, ids[0].tolist()))
    text = torch.cat([ids, torch.tensor([[forced]])], dim=1)
    scores = processor(text, model(text).logits[:, -1].detach())[0]
    expected = _scores(model, text[0].tolist())
    torch.testing.assert_close(scores[list(expected)], torch.tensor(list(expected.values())), atol=1e-5, rtol=1e-4)


def test_padding_that_cannot_be_told_from_text_is_asked_for() -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = 0
    ids = torch.tensor([[0, 0, 5, 6]])
    with pytest.raises(InputError, match="pass attention_mask"):
        model.generate(ids, logits_processor=[_processor(model)], attention_mask=torch.ones_like(ids), max_new_tokens=2)
    mask = (ids != 0).long()
    processor = _processor(model, attention_mask=mask)
    model.generate(ids, logits_processor=[processor], attention_mask=mask, max_new_tokens=2)


def test_bad_hyper_parameters_are_refused_when_it_is_made() -> None:
    with pytest.raises(OptionError, match="top_k=999"):
        ContrastiveSearchLogitsProcessor(tiny_model("llama"), top_k=999)
    with pytest.raises(OptionError, match="penalty_alpha=2"):
        ContrastiveSearchLogitsProcessor(tiny_model("llama"), penalty_alpha=2)
    assert ContrastiveSearch().logits_processor(tiny_model("llama")).supports_continuous_batching is False


# --- encoder-decoders whose encoder reads no tokens -------------------------------------------------------------------


def _whisper() -> tuple[Any, dict[str, Any]]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCAB, num_mel_bins=8, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=20,
        max_target_positions=40, decoder_start_token_id=1, begin_suppress_tokens=[0], **TOKENS,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config), {"input_features": torch.randn(2, 8, 40)}


def _image_captions() -> tuple[Any, dict[str, Any]]:
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    encoder = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    decoder = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=2, n_positions=40, **TOKENS)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)
    return model, {"pixel_values": torch.randn(2, 3, 8, 8)}


@pytest.mark.parametrize("make", [_whisper, _image_captions])
@pytest.mark.parametrize("strategy", [ContrastiveSearch(0.6, 4), DoLa([0, 1])], ids=["contrastive-search", "dola"])
def test_the_encoder_reads_what_its_model_is_given(make: Any, strategy: Any) -> None:
    """Sound and images by the name that the model has for them; without them the message has that name."""
    torch.manual_seed(0)
    model, inputs = make()
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    settings = {"max_new_tokens": 6, "do_sample": False}
    expected = decoding.generate(model, **inputs, strategy=strategy, **settings)
    processor = strategy.logits_processor(model, **inputs)
    assert model.generate(**inputs, logits_processor=[processor], **settings).tolist() == expected.tolist()
    with pytest.raises(InputError, match=f"its processor needs the encoder's {next(iter(inputs))}"):
        strategy.logits_processor(model)
