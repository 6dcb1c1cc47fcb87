"""Explanations of strategies with images, sound or an encoder's text: their scores are those of the call that decoded.

``test_image_readers.py`` and ``test_encoder_readers.py`` beside the strategies have these against recomputation.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from encoder_inputs import two_sounds, two_sources
from tiny_strategies import OTHER_INPUTS

import decoding
from decoding import AudioContrast, ImageContrast, SourceContrast
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import tiny_other_inputs
from decoding.tools.architectures.reference import batch_of


@functools.cache
def _model(name: str) -> Any:
    return tiny_other_inputs(name)


def _images() -> dict[str, Any]:
    make = prompts_with_images(_model("llava"))
    assert make is not None
    return batch_of(_model("llava"), make(0))


def _sound() -> dict[str, Any]:
    return two_sounds(_model("whisper"))


CASES: dict[str, tuple[str, Any, Any, set[str]]] = {
    "image-contrast": ("llava", ImageContrast(no_image=True), _images, {"expert", "amateur"}),
    "audio-contrast": (
        "whisper", AudioContrast(shift=0.5), _sound, {"expert", "noise", "silence", "shift"}
    ),
    "source-contrast": (
        "bart", SourceContrast([[45, 46], [51, 52, 53]], language=62), two_sources,
        {"expert", "other source", "other language"},
    ),
}  # fmt: skip


def test_there_is_a_case_of_each() -> None:
    assert set(CASES) == OTHER_INPUTS


@pytest.mark.parametrize("name", CASES)
def test_the_scores_are_those_of_the_call(name: str) -> None:
    model_name, strategy, inputs_of, readers = CASES[name]
    model, inputs = _model(model_name), inputs_of()
    output = decoding.generate(
        model, **inputs, strategy=strategy, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    for row, explanation in enumerate(decoding.explain(model, output.sequences, strategy, **inputs)):
        assert set(explanation.readers) == readers
        assert len(explanation.steps) == 4
        for step, scores in zip(explanation.steps, output.scores, strict=True):
            rests = []
            for candidate in (step.chosen, *step.rejected):
                right = float(scores[row, candidate.token])
                assert (candidate.score is None) == (right == -torch.inf)
                if candidate.score is not None:
                    assert candidate.score == pytest.approx(right, abs=1e-4)
                    known = {**candidate.log_probs, **candidate.parts}
                    rests.append(right - sum(weight * known[part] for part, weight in step.weights.items()))
            assert max(rests) - min(rests) < 1e-4
