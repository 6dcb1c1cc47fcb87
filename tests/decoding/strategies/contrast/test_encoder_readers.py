"""Readers of an encoder's text or sound: each reads what it should, by recomputation apart from the library.

The oracle runs the model on a reader's whole text and inputs in one forward pass, without a cache, one row at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model
from torch import Tensor

import decoding
from decoding import (
    AudioContrast,
    ContextAware,
    ContrastiveDecoding,
    ImageContrast,
    InputError,
    ModelError,
    OptionError,
    SkippedLayers,
    SourceContrast,
    Strategy,
)
from decoding.strategies.contrast.input_changes import NoisyAudio, ShiftedAudio, SilentAudio
from decoding.strategies.contrast.reader_inputs import CallInputs
from decoding.tools.architectures.other_inputs import tiny_other_inputs

TEXT_PAIRS = ["t5", "bart", "m2m_100"]
NEW = 4

tiny = functools.cache(tiny_other_inputs)


@torch.no_grad()
def pair_logits(model: Any, encoder: Mapping[str, Any], decoded: Sequence[int]) -> Tensor:
    """(NEW, vocab) float64 after the decoder's prompt and after each generated token, the last NEW - 1 tokens."""
    return model(**encoder, decoder_input_ids=torch.tensor([decoded]), use_cache=False).logits[0, -NEW:].double()


SOURCES = [[21, 22, 23, 24, 25, 26, 27], [31, 32, 33, 34, 35]]
OTHERS = [[45, 46], [51, 52, 53]]


def sources() -> dict[str, Tensor]:
    width = max(map(len, SOURCES))
    return {
        "input_ids": torch.tensor([[*row, *[0] * (width - len(row))] for row in SOURCES]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in SOURCES]),
    }


@pytest.mark.parametrize("name", TEXT_PAIRS)
def test_source_and_language_contrast_is_its_formula_in_all_ways_in(name: str) -> None:
    model, inputs = tiny(name), sources()
    start = [1, 61]
    strategy = SourceContrast(OTHERS, language=62, source_weight=0.7, language_weight=0.1)
    given = {**inputs, "decoder_input_ids": torch.tensor([start, start])}
    output = decoding.generate(
        model, **given, strategy=strategy, max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True
    )
    for row, (source, other) in enumerate(zip(SOURCES, OTHERS, strict=True)):
        found = output.sequences[row, 2:].tolist()
        log_probs = [
            pair_logits(model, {"input_ids": torch.tensor([text])}, [*begin, *found[:-1]]).log_softmax(-1)
            for text, begin in [(source, start), (other, start), (source, [1, 62])]
        ]
        right = log_probs[0] - 0.7 * log_probs[1] - 0.1 * log_probs[2]
        for step, scores in enumerate(right):
            torch.testing.assert_close(output.scores[step][row].double(), scores, atol=1e-4, rtol=1e-4)
        assert output.sequences[row].tolist() == [*start, *right.argmax(-1).tolist()]
    same = model.generate(**given, custom_generate=strategy, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(same, output.sequences)
    processor = strategy.logits_processor(model, **inputs)
    same = model.generate(**given, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(same, output.sequences)
    sequences = model.generate(
        **given, logits_processor=[strategy.logits_processor(model, **inputs)], max_new_tokens=3, num_beams=2,
        do_sample=False,
    )  # fmt: skip
    assert sequences.shape == (2, 5)


def test_audio_contrast_is_its_formula_on_whisper_in_all_ways_in() -> None:
    model = tiny("whisper")
    frames = 2 * model.config.max_source_positions
    features = torch.randn(2, model.config.num_mel_bins, frames, generator=torch.Generator().manual_seed(5))
    strategy = AudioContrast(temperature=0.8, shift=0.5)
    output = decoding.generate(
        model, input_features=features, strategy=strategy, max_new_tokens=NEW, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    for row in range(2):
        sound = features[row : row + 1]
        power = 10 ** (4 * sound.double() - 4)
        draws = torch.randn(sound[0].shape, generator=torch.Generator().manual_seed(0)).double()
        noisy = ((power + power.mean() / 10 * draws**2).log10() + 4) / 4
        silent = torch.full_like(sound, -1.5)
        by = min(50, frames)
        shifted = torch.cat([silent[..., :by], sound[..., : frames - by]], -1)
        found = output.sequences[row, -NEW:].tolist()
        decoded = [int(model.generation_config.decoder_start_token_id), *found[:-1]]
        expert, *negatives = (
            pair_logits(model, {"input_features": heard.float()}, decoded).log_softmax(-1)
            for heard in (sound, noisy, silent, shifted)
        )
        negative = 0.8 * (torch.stack(negatives) / 0.8).exp().mean(0).log()
        right = (2 * expert - negative).masked_fill(
            expert.exp() < 0.1 * expert.exp().amax(-1, keepdim=True), -torch.inf
        )
        for step, scores in enumerate(right):
            torch.testing.assert_close(output.scores[step][row].double(), scores, atol=1e-4, rtol=1e-4)
        assert found == right.argmax(-1).tolist()
    same = model.generate(features, custom_generate=strategy, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(same[:, -NEW:], output.sequences[:, -NEW:])
    processor = strategy.logits_processor(model, input_features=features)
    same = model.generate(input_features=features, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(same[:, -NEW:], output.sequences[:, -NEW:])


@pytest.mark.parametrize("name", [*TEXT_PAIRS, "whisper"])
def test_an_encoder_decoder_has_a_degraded_self_and_another_model_as_amateur(name: str) -> None:
    model, second = tiny(name), tiny_other_inputs(name, seed=1)
    given: dict[str, Any] = sources()
    if name == "whisper":
        shape = (2, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        given = {"input_features": torch.randn(shape, generator=torch.Generator().manual_seed(5))}
    for strategy in (SkippedLayers([0]), ContrastiveDecoding(second)):
        both = decoding.generate(model, **given, strategy=strategy, max_new_tokens=NEW)
        row = 1  # the shorter one
        length = len(SOURCES[row]) if "attention_mask" in given else None
        alone = {key: value[row : row + 1, :length] for key, value in given.items()}
        one = decoding.generate(model, **alone, strategy=strategy, max_new_tokens=NEW)
        assert torch.equal(one[0], both[row])
        processor = strategy.logits_processor(model, **given)
        same = model.generate(**given, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
        assert torch.equal(same, both)


@pytest.mark.parametrize("kind", ["noise", "silence", "shift"])
def test_changed_waveforms(kind: str) -> None:
    wave = torch.sin(torch.arange(16_000) / 20.0)[None]
    model = tiny("whisper")
    given = CallInputs(model, torch.empty(1, 0), {"input_values": wave}, 1)
    changes = {"noise": NoisyAudio(snr=20.0), "silence": SilentAudio(), "shift": ShiftedAudio(0.25)}
    changed = changes[kind].inputs(given, model)["input_values"]
    if kind == "noise":
        ratio = 10 * math.log10(float((wave**2).mean() / ((changed - wave) ** 2).mean()))
        assert abs(ratio - 20.0) < 0.2  # 16,000 draws
    elif kind == "silence":
        assert not changed.any()
    else:
        assert not changed[:, :4000].any()
        assert torch.equal(changed[:, 4000:], wave[:, :12_000])


@pytest.mark.parametrize(
    ("strategy", "error", "message"),
    [
        (SourceContrast(None, language=62), InputError, "decoder's prompt, which is its start token alone"),
        (SourceContrast(None, language=10**6), OptionError, "language=1000000: must be a token from 0 to"),
        (SourceContrast(None, language="deu"), OptionError, "language='deu' is text: pass tokenizer="),
        (SourceContrast([[5], [6], [7]]), OptionError, "source: 3 texts for 2 rows"),
        (ContextAware([5]), InputError, "reads a text beside the prompt, and in T5ForConditionalGeneration"),
        (ImageContrast(), InputError, "the prompt has no image"),
    ],
)
def test_what_an_encoder_decoder_cannot_read(strategy: Strategy, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny("t5").generate(**sources(), custom_generate=strategy, max_new_tokens=2)


def test_an_amateur_of_another_kind_is_refused() -> None:
    pair, text = tiny("t5"), tiny_model("llama")
    text.config.vocab_size = pair.config.vocab_size
    with pytest.raises(
        ModelError, match="LlamaForCausalLM is decoder-only and the expert, T5ForConditionalGeneration, is"
    ):
        decoding.generate(pair, **sources(), strategy=ContrastiveDecoding(text), max_new_tokens=2)
    with pytest.raises(ModelError, match="is an encoder-decoder and the expert, LlamaForCausalLM, is decoder-only"):
        decoding.generate(text, random_ids(1, 5), strategy=ContrastiveDecoding(pair), max_new_tokens=2)
