"""Sound that Whisper's ``generate`` cuts into segments, against each segment decoded alone, by recomputation."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperNoSpeechDetection, WhisperTimeStampLogitsProcessor
from transformers.generation.utils import GenerateEncoderDecoderOutput
from transformers.modeling_outputs import BaseModelOutput

import decoding
from decoding import AudioContrast
from decoding.errors import InputError, OptionError
from decoding.generation.processors import ContrastProcessors
from decoding.strategies.contrast.scores import Contrast
from decoding.tools.architectures.tiny import scale_weights

START, END, PAD, PREVIOUS, NO_STAMPS = 2, 1, 3, 5, 48
VOCAB, SEGMENT, MELS, NEW = 100, 100, 8, 5
SUPPRESSED = [0, START, PAD, 4, PREVIOUS]
NO_STAMP = [*SUPPRESSED, *range(NO_STAMPS, VOCAB)]
STRATEGY = AudioContrast(shift=0.3)
CALL: dict[str, Any] = {"max_new_tokens": NEW, "return_timestamps": True}
FALLBACK: dict[str, Any] = {"temperature": (0.0, 0.5), "logprob_threshold": -2.2}


@pytest.fixture(scope="module")
def whisper() -> Any:
    """A tiny Whisper that hears a second at a time, and writes time stamps."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=MELS,
        max_source_positions=SEGMENT // 2, max_target_positions=48, decoder_start_token_id=START, bos_token_id=START,
        eos_token_id=END, pad_token_id=PAD, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    scale_weights(model)
    model.generation_config.update(suppress_tokens=SUPPRESSED, max_length=48, top_k=0)
    model.generation_config.no_timestamps_token_id = NO_STAMPS
    model.generation_config.prev_sot_token_id = PREVIOUS
    return model


def sounds() -> dict[str, Tensor]:
    """Two sounds that end at different times."""
    generator = torch.Generator().manual_seed(4)
    loud = torch.randn(2, MELS, 8, generator=generator).repeat_interleave(20, -1)
    features = loud + 0.3 * torch.randn(loud.shape, generator=generator)
    mask = torch.ones(2, features.shape[-1], dtype=torch.long)
    mask[1, 40:] = 0
    return {"input_features": features, "attention_mask": mask}


class Oracle:
    """What a strategy must write for the segments that transformers cuts: each row alone, in float64, without a cache.

    Args:
        model: the model, of which a copy is made, whose encoder is given the segments.
        by_expert: whether the rule of time stamps compares the expert's probabilities, as for a logits processor, which
            stands behind the model's own; otherwise those of the plausible tokens' scores.
    """

    def __init__(self, model: Any, by_expert: bool) -> None:
        self.model = WhisperForConditionalGeneration(model.config).double().eval()
        self.model.load_state_dict(model.state_dict())
        self.model.generation_config = model.generation_config
        self.model.get_encoder().register_forward_pre_hook(self.keep, with_kwargs=True)
        self.features: Tensor | None = None  # of the segment, (rows, mels, frames)
        self.by_expert = by_expert
        self.segments: list[tuple[int, bool]] = []  # (rows, drawn) of each call

    def __call__(self, model: Any, input_ids: Tensor, generation_config: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("decoder_attention_mask", torch.ones_like(input_ids))
        texts = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
        begins = [len(text) for text in texts]
        segment = self.features
        heard = [self.heard(row) for row in segment]
        self.segments.append((len(texts), bool(generation_config.do_sample)))
        steps: list[Tensor] = []
        done = [False] * len(texts)
        while len(steps) < NEW and not all(done):
            rows = zip(heard, texts, begins, strict=True)
            scores = torch.stack([self.scores(*row) for row in rows]) / generation_config.temperature
            chosen = scores.argmax(-1)
            if generation_config.do_sample:
                chosen = torch.multinomial(scores.float().softmax(-1), 1)[:, 0]
            for row, token in enumerate(chosen.tolist()):
                texts[row].append(PAD if done[row] else token)
                done[row] = done[row] or token == END
            steps.append(scores)
        new = torch.tensor([text[-len(steps) :] for text in texts])
        return GenerateEncoderDecoderOutput(sequences=torch.cat([input_ids, new], 1), scores=tuple(steps))

    def keep(self, module: Any, args: Any, kwargs: Any) -> None:
        self.features = args[0] if args else kwargs["input_features"]

    @torch.no_grad()
    def heard(self, sound: Tensor) -> Any:
        """The encoder's states of the sound and of its negatives."""
        power = 10 ** (4 * sound - 4)
        draws = torch.randn(sound.shape, generator=torch.Generator().manual_seed(0)).double()
        noisy = ((power + power.mean() / 10 * draws**2).log10() + 4) / 4
        silent = torch.full_like(sound, -1.5)
        shifted = torch.cat([silent[:, :30], sound[:, :-30]], -1)
        states = self.model.get_encoder()(torch.stack([sound, noisy, silent, shifted])).last_hidden_state
        return BaseModelOutput(last_hidden_state=states)

    @torch.no_grad()
    def scores(self, heard: Any, text: list[int], begin: int) -> Tensor:
        logits = self.model(encoder_outputs=heard, decoder_input_ids=torch.tensor([text] * 4), use_cache=False).logits
        expert, *negatives = logits[:, -1].log_softmax(-1)
        contrast = 2 * expert - torch.stack(negatives).exp().mean(0).log()
        allowed = allowed_tokens(text[begin:])
        if self.by_expert:
            allowed &= ~outdone(expert.masked_fill(~allowed, -torch.inf))
        plausible = allowed & (expert >= expert.max() + math.log(0.1))
        if not plausible.any():
            plausible = allowed & (expert >= expert[allowed].max() + math.log(0.1))
        contrast = contrast.masked_fill(~plausible, -torch.inf)
        return contrast if self.by_expert else contrast.masked_fill(outdone(contrast), -torch.inf)


def allowed_tokens(new: list[int]) -> Tensor:
    """(vocab,) True for the tokens that may follow: time stamps come first, in pairs, and never go back."""
    stamps = [token for token in new if token > NO_STAMPS]
    closed = len(new) < 2 or new[-2] > NO_STAMPS
    answer = []
    for token in range(VOCAB):
        good = token not in SUPPRESSED and token != NO_STAMPS
        if token > NO_STAMPS:
            latest = stamps[-1] if stamps else 0
            opens = bool(new) and new[-1] > NO_STAMPS and not closed
            good &= token >= latest if opens or not stamps else token > latest
            good &= not (new and new[-1] > NO_STAMPS and closed)
        else:
            good &= bool(new)
            good &= not (new and new[-1] > NO_STAMPS and not closed and token < END)
        answer.append(good)
    return torch.tensor(answer)


def outdone(log_probs: Tensor) -> Tensor:
    """(vocab,) True for all text where the time stamps together are likelier than any of it."""
    is_text = torch.arange(VOCAB) <= NO_STAMPS
    return is_text & (log_probs[~is_text].logsumexp(-1) > log_probs[is_text].max())


def expected(model: Any, by_expert: bool = False, **call: Any) -> tuple[Tensor, list[tuple[int, bool]]]:
    """What transformers returns where the oracle decodes each segment, and what it was called for."""
    oracle = Oracle(model, by_expert)
    inputs = sounds()
    inputs["input_features"] = inputs["input_features"].double()
    torch.manual_seed(1)
    return oracle.model.generate(**inputs, custom_generate=oracle, **CALL, **call), oracle.segments


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (lambda model, **call: model.generate(custom_generate=STRATEGY, **call), {}),
    "conditioned": (functools.partial(decoding.generate, strategy=STRATEGY), {"condition_on_prev_tokens": True}),
    "fallback": (functools.partial(decoding.generate, strategy="audio-contrast:shift=0.3"), FALLBACK),
}


@pytest.mark.parametrize("name", WAYS)
def test_segments_are_decoded_as_alone(name: str, whisper: Any) -> None:
    """Of sounds that end at different times, with what was written before, and with draws where a text is unlikely."""
    way, call = WAYS[name]
    right, segments = expected(whisper, **call)
    assert {rows for rows, _ in segments} == {1, 2}
    assert any(drawn for _, drawn in segments) == (name == "fallback")
    torch.manual_seed(1)
    assert torch.equal(way(whisper, **sounds(), **CALL, **call), right)


def test_a_processor_hears_the_segment_of_the_call(whisper: Any) -> None:
    """Whose negatives are the segment's; the rule of time stamps, before it, is the expert's. Beams hear it too."""
    call = {"condition_on_prev_tokens": True}
    right, _ = expected(whisper, by_expert=True, **call)
    processor = STRATEGY.logits_processor(whisper, **sounds())
    assert torch.equal(whisper.generate(**sounds(), logits_processor=[processor], **CALL, **call), right)
    assert processor.session.streams.batch == 1  # of the sound that goes on
    whisper.generate(**sounds(), logits_processor=[processor], num_beams=2, **CALL)
    assert processor.session.streams.batch == 2


@pytest.mark.parametrize("strategy", ["nucleus", STRATEGY])
def test_sampling_draws(strategy: Any, whisper: Any) -> None:
    """Though Whisper's own generate() draws only where it is given a temperature."""
    draws = {} if strategy == "nucleus" else {"do_sample": True}
    features = sounds()["input_features"][:1, :, :SEGMENT]
    texts = set()
    for seed in range(2):
        torch.manual_seed(seed)
        tokens = decoding.generate(whisper, input_features=features, strategy=strategy, max_new_tokens=4, **draws)
        texts.add(tuple(tokens[0].tolist()))
    assert len(texts) > 1


def test_time_stamps_are_compared_where_they_are_plausible(whisper: Any) -> None:
    """Of tokens that the model finds impossible, a contrast says nothing, and together they would outdo any word."""
    stamps = WhisperTimeStampLogitsProcessor(whisper.generation_config, begin_index=1)
    text = torch.tensor([[START, 55, 7]])
    model_logits = torch.full((1, VOCAB), -20.0)
    model_logits[0, [8, 9]], model_logits[0, 57] = 5.0, 4.0
    scores = torch.ones(1, VOCAB)
    scores[0, [8, 9, 57]] = torch.tensor([3.0, 2.0, 2.5])
    contrast = Contrast(lambda alpha: scores, lambda: model_logits, 0.1)
    found = ContrastProcessors([stamps]).processed(text, scores, contrast.apply_plausibility, model_logits)
    assert found.isfinite().nonzero()[:, 1].tolist() == [8, 9, 57]
    scores[0, 57] = 3.5
    found = ContrastProcessors([stamps]).processed(text, scores, contrast.apply_plausibility, model_logits)
    assert found.isfinite().nonzero()[:, 1].tolist() == [57]
    pair = ContrastProcessors([stamps]).processed(  # after words and a first stamp only its twin, or the end
        torch.tensor([[START, 55, 7, 57]]), scores, contrast.apply_plausibility, model_logits
    )
    assert pair.isfinite().nonzero()[:, 1].tolist() == [57]


def test_silence_is_measured_by_the_model_itself(whisper: Any) -> None:
    features = sounds()["input_features"][:, :, :SEGMENT]
    with torch.no_grad():
        start = torch.tensor([[START, NO_STAMPS]] * 2)
        logits = whisper(input_features=features, decoder_input_ids=start).logits[:, -1]
    detection = WhisperNoSpeechDetection(no_speech_token=NO_STAMPS - 1, begin_index=1)
    decoding.generate(
        whisper, input_features=features, strategy=STRATEGY, max_new_tokens=1, logits_processor=[detection],
        suppress_tokens=NO_STAMP,
    )  # fmt: skip
    torch.testing.assert_close(detection.no_speech_prob, logits.softmax(-1)[:, NO_STAMPS - 1])


def test_explanations_are_of_one_segment(whisper: Any) -> None:
    with pytest.raises(InputError, match="160 frames and the model hears 100 at a time"):
        decoding.explain(whisper, torch.tensor([[50, 7, 60]] * 2), STRATEGY, **sounds(), return_timestamps=True)


@pytest.mark.parametrize("call", [CALL, {"max_new_tokens": 2, "logprob_threshold": -1.0}])
def test_seeds_of_rows_are_refused(call: dict[str, Any], whisper: Any) -> None:
    with pytest.raises(OptionError, match="seeds: WhisperForConditionalGeneration decodes a row in several calls"):
        decoding.generate(whisper, **sounds(), strategy=STRATEGY, do_sample=True, seeds=[1, 2], **call)


def test_one_segment_has_seeds(whisper: Any) -> None:
    features = sounds()["input_features"][:, :, :SEGMENT]
    call = {"strategy": STRATEGY, "do_sample": True, "max_new_tokens": 3, "suppress_tokens": NO_STAMP}
    both = decoding.generate(whisper, input_features=features, seeds=[3, 4], **call)
    one = decoding.generate(whisper, input_features=features[1:], seeds=[4], **call)
    assert torch.equal(both[1:], one)


def test_long_sound_is_cut_by_generate_alone(whisper: Any) -> None:
    processor = STRATEGY.logits_processor(whisper, **sounds())
    with pytest.raises(InputError, match=r"160 frames and the model hears 100 at a time: only its own generate\(\)"):
        processor(torch.full((2, 1), START), torch.zeros(2, VOCAB))


@pytest.mark.parametrize("temperature", [(0.0, 0.5), (), (0.0, -1.0), "warm"])
def test_other_models_have_one_temperature(temperature: Any) -> None:
    prompt = torch.tensor([[5, 6, 7]])
    with pytest.raises(OptionError, match=r"temperature=.*: must be a number from 0 up"):
        decoding.generate(tiny_model("llama"), prompt, strategy="nucleus", temperature=temperature, max_new_tokens=1)
