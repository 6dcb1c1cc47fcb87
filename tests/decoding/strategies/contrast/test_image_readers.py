"""Readers with images: each reads what it should, by recomputation apart from the library.

The oracle runs the model on a reader's whole text and inputs in one forward pass, without a cache, one row at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_images import image_rows, tiny_image_model
from tiny_models import tiny_model
from torch import Tensor

import decoding
from decoding import (
    LOL,
    ContrastiveDecoding,
    Guidance,
    ImageContrast,
    InputError,
    Inputs,
    OptionError,
    Prompt,
    Scorer,
    Self,
    Strategy,
    WeightedContrast,
)
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.input_changes import NoisedImages
from decoding.strategies.contrast.reader_inputs import CallInputs, call_inputs
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import tiny_other_inputs
from decoding.tools.architectures.reference import Prompt as Row
from decoding.tools.architectures.reference import batch_of

IMAGES = ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "paligemma", "idefics2", "idefics3"]
BUILT_APART = ("paligemma", "qwen2_5_vl", "idefics3")
LAYOUTS = ["llava", "qwen2_vl", "gemma3", "paligemma", "idefics2"]  # of which the other two have those of their elders
NEW = 4
TEXT = (33, 34, 35)


@functools.cache
def tiny(name: str) -> Any:
    return tiny_image_model(name) if name in BUILT_APART else tiny_other_inputs(name)


def second_model(name: str) -> Any:
    return tiny_image_model(name, seed=1) if name in BUILT_APART else tiny_other_inputs(name, seed=1)


@functools.cache
def rows_of(name: str) -> tuple[Row, ...]:
    if name in BUILT_APART:
        return image_rows(name)
    make = prompts_with_images(tiny(name))
    assert make is not None
    return tuple(make(0))


@torch.no_grad()
def next_logits(model: Any, tokens: Sequence[int], inputs: Mapping[str, Any]) -> Tensor:
    """(NEW, vocab) float64 after the prompt and after each generated token, the last NEW - 1 tokens of one row.

    The whole text is read at once: no token sees those that follow.
    """
    inputs = dict(inputs)
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        image = int((types != 0).sum())
        placeholder = model.config.image_token_id
        inputs["mm_token_type_ids"] = torch.tensor([[int(token == placeholder) for token in tokens]])
        assert int(inputs["mm_token_type_ids"].sum()) in (0, image)
    if model.config.model_type != "paligemma":
        return model(torch.tensor([tokens]), use_cache=False, **inputs).logits[0, -NEW:].double()
    # The tokens of its prompt see each other, before and behind; new ones are read one by one.
    prompt, rest = tokens[: 1 - NEW], tokens[1 - NEW :]
    output = model(torch.tensor([prompt]), use_cache=True, **inputs)
    logits = [output.logits[0, -1]]
    for token in rest:
        output = model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits[0, -1])
    return torch.stack(logits).double()


def contrasted(expert: Tensor, amateur: Tensor, beta: float, alpha: float) -> Tensor:
    scores = (1 + beta) * expert - beta * amateur
    p = expert.softmax(-1)
    return scores.masked_fill(p < alpha * p.amax(-1, keepdim=True), -torch.inf)


def noised(images: Tensor, split: Sequence[int], step: int) -> Tensor:
    """VCD's diffusion in NumPy; each image, of so many parts, with the same draws."""
    t = np.linspace(-6, 6, 1000)
    betas = 1 / (1 + np.exp(-t)) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(np.prod(1 - betas[: step + 1]))
    parts = []
    for image in images.split(list(split)):
        draws = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        parts.append(math.sqrt(kept) * image.double() + math.sqrt(1 - kept) * draws.double())
    return torch.cat(parts).float()


def without_image(name: str, tokens: Sequence[int]) -> list[int]:
    return [token for token in tokens if token != tiny(name).config.image_token_id]


# From the expert's tokens and inputs to those of the second reader.
Other = Callable[[str, list[int], dict[str, Any]], tuple[list[int], dict[str, Any]]]


def _noised(name: str, tokens: list[int], inputs: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    pixels = inputs["pixel_values"]
    return tokens, inputs | {"pixel_values": noised(pixels, [len(pixels)], 500)}


WORSE: dict[str, tuple[Callable[[], Strategy], Other]] = {
    "noise": (ImageContrast, _noised),
    "prompt": (lambda: ImageContrast(prompt=TEXT), lambda _, tokens, inputs: ([*TEXT, *tokens], inputs)),
    "blank": (
        lambda: ImageContrast(blank=True),
        lambda _, tokens, inputs: (tokens, inputs | {"pixel_values": torch.full_like(inputs["pixel_values"], 1e-6)}),
    ),
    "no image": (lambda: ImageContrast(no_image=True), lambda name, tokens, _: (without_image(name, tokens), {})),
}


def greedy_by_recomputation(
    name: str, row: Row, other: Other, found: list[int], beta: float = 1.0, alpha: float = 0.1
) -> tuple[list[int], Tensor]:
    """The tokens chosen after the prompt and each of those found, and their scores (new, vocab) -inf where a token is
    not plausible.

    Those found are right if they are those chosen.
    """
    tokens = [*row.text, *found[:-1]]
    expert = next_logits(tiny(name), tokens, row.other_inputs)
    amateur = next_logits(tiny(name), *other(name, tokens, dict(row.other_inputs)))
    scores = contrasted(expert, amateur, beta, alpha)
    return scores.argmax(-1).tolist(), scores


# How a model has its images decides about noise, which is drawn for each, about a text before them and about their
# absence. A blank image is made alike for all: of tensors with a grid beside them, and without.
CONTRASTS = [
    *((name, "noise") for name in IMAGES),
    *((name, worse) for worse in ("prompt", "no image") for name in LAYOUTS),
    *((name, "blank") for name in ("llava", "qwen2_vl")),
]


@pytest.mark.parametrize(("name", "worse"), CONTRASTS)
def test_an_image_contrast_is_its_formula_in_a_left_padded_batch_and_in_all_ways_in(name: str, worse: str) -> None:
    make, other = WORSE[worse]
    # In transformers itself, PaliGemma reads a row otherwise in a padded batch than alone.
    if (name, worse) == ("paligemma", "prompt"):
        pytest.skip("its readers have prompts of two lengths, so one of them is padded")
    rows, strategy, model = rows_of(name)[: 1 if name == "paligemma" else None], make(), tiny(name)
    batch = batch_of(model, rows, padding=0 if name == "paligemma" else 1)
    start = batch["input_ids"].shape[1]
    output = decoding.generate(
        model, **batch, strategy=strategy, max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True
    )
    for index, row in enumerate(rows):
        found = output.sequences[index, start:].tolist()
        tokens, scores = greedy_by_recomputation(name, row, other, found)
        assert found == tokens
        ours = torch.stack([step[index] for step in output.scores]).double()
        torch.testing.assert_close(ours, scores, atol=1e-4, rtol=1e-4)
    # The other ways in have the same inputs: without an image, and on two models with one.
    if worse in ("blank", "no image"):
        same = model.generate(**batch, custom_generate=strategy, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(same, output.sequences)
        beside = {key: value for key, value in batch.items() if key != "input_ids"}
        processor = strategy.logits_processor(model, **beside)
        same = model.generate(**batch, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
        assert torch.equal(same, output.sequences)


@pytest.mark.parametrize("name", IMAGES)
def test_readers_with_an_image_of_one_size_share_a_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[str]] = []

    class Recorded(FusedStreams):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            groups.extend([reader.role for reader in group.readers] for group in self.groups)

    monkeypatch.setattr("decoding.strategies.contrast.base.FusedStreams", Recorded)
    batch = batch_of(tiny(name), rows_of(name))
    decoding.generate(tiny(name), **batch, strategy=ImageContrast(), max_new_tokens=2)
    assert groups == [["expert", "amateur"]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_readers_of_texts_see_the_image_too(name: str) -> None:
    """Another model of images, an adapter's place taken by a degraded self, and a text before the prompt."""
    model, row = tiny(name), rows_of(name)[0]
    second = second_model(name)
    inputs = batch_of(model, [row])
    start = inputs["input_ids"].shape[1]
    for strategy, amateur, text in (
        (ContrastiveDecoding(second, beta=1.0), second, ()),
        (ContrastiveDecoding(Prompt(TEXT), beta=1.0), model, TEXT),
    ):
        ours = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW)[0, start:].tolist()
        tokens = [*row.text, *ours[:-1]]
        expert = next_logits(model, tokens, row.other_inputs)
        other = next_logits(amateur, [*text, *tokens], row.other_inputs)
        assert contrasted(expert, other, 1.0, 0.1).argmax(-1).tolist() == ours
    negative = decoding.generate(model, **inputs, strategy=Guidance([41, 42], scale=2.0), max_new_tokens=NEW)
    assert negative[0, :start].tolist() == list(row.text)
    ours = negative[0, start:].tolist()
    expert = next_logits(model, [*row.text, *ours[:-1]], row.other_inputs).log_softmax(-1)
    other = next_logits(model, [41, 42, *ours[:-1]], {}).log_softmax(-1)
    assert (2 * expert - other).argmax(-1).tolist() == ours


@pytest.mark.parametrize(
    ("name", "own"), [*((name, False) for name in LAYOUTS), ("llava", True), ("qwen2_vl", True), ("idefics2", True)]
)
def test_several_rows_of_a_prompt_have_its_images(name: str, own: bool) -> None:
    model, rows = tiny(name), rows_of(name)
    batch = batch_of(model, rows)
    changed = -batch["pixel_values"]
    strategy = ContrastiveDecoding(Inputs(pixel_values=changed)) if own else ImageContrast()
    once = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=NEW)
    thrice = decoding.generate(
        model, **batch, strategy=strategy, max_new_tokens=NEW, do_sample=True, top_k=1, num_return_sequences=3
    )
    assert torch.equal(thrice, once.repeat_interleave(3, 0))
    beside = {key: value for key, value in batch.items() if key != "input_ids"}
    beams = [
        model.generate(
            **inputs, num_beams=2, max_new_tokens=3, do_sample=False,
            logits_processor=[strategy.logits_processor(model, **rest)],
        )
        for inputs, rest in (
            (batch, beside), *((one, {k: v for k, v in one.items() if k != "input_ids"}) for one in _alone(model, rows))
        )
    ] if not own and name != "paligemma" else []  # fmt: skip
    for index in range(len(beams) - 1):
        assert beams[1 + index][0, -3:].tolist() == beams[0][index, -3:].tolist()


def _alone(model: Any, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [batch_of(model, [row]) for row in rows]


def test_fused_and_separate_readers_of_images_choose_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(tiny("qwen2_vl"), rows_of("qwen2_vl"))
    negative = Inputs(pixel_values=-batch["pixel_values"])
    strategy = WeightedContrast([("expert", 2), (negative, -0.7), (Self(skip_layers=[0]), -0.3)])
    fused = decoding.generate(tiny("qwen2_vl"), **batch, strategy=strategy, max_new_tokens=NEW)
    monkeypatch.setattr(WeightedContrast, "fuse", False)
    assert torch.equal(fused, decoding.generate(tiny("qwen2_vl"), **batch, strategy=strategy, max_new_tokens=NEW))


@pytest.mark.parametrize(("name", "drafts"), [("llava", "prompt-lookup"), ("qwen2_vl", "exit:1")])
def test_drafts_beside_an_image(name: str, drafts: str) -> None:
    batch = batch_of(tiny(name), rows_of(name))
    plain = decoding.generate(tiny(name), **batch, strategy=ImageContrast(), max_new_tokens=8)
    drafted = decoding.generate(tiny(name), **batch, strategy=ImageContrast(), max_new_tokens=8, drafts=drafts)
    assert torch.equal(plain, drafted)


def test_an_amateur_with_another_image_drafts_nothing() -> None:
    with pytest.raises(OptionError, match="amateur"):
        decoding.generate(
            tiny("llava"), **batch_of(tiny("llava"), rows_of("llava")), strategy=ImageContrast(), max_new_tokens=3,
            drafts="amateur",
        )  # fmt: skip


def test_images_in_a_list_are_refused() -> None:
    given = {"input_ids": torch.tensor([[20, 21]]), "pixel_values": [torch.zeros(3, 28, 28)]}
    with pytest.raises(InputError, match="pixel_values is a list: must be a tensor"):
        call_inputs(tiny("llava"), given, 1)


def test_noise_is_drawn_anew_for_each_image() -> None:
    """A row's image does not depend on its batch: patches are split by the grid of their image."""
    patches = torch.randn(16 + 24, 8)
    grid = torch.tensor([[1, 4, 4], [1, 4, 6]])
    model, ids = tiny("qwen2_vl"), torch.empty(1, 0)
    given = CallInputs(model, ids, {"pixel_values": patches, "image_grid_thw": grid}, 1)
    changed = NoisedImages(500).inputs(given, model)
    alone = CallInputs(model, ids, {"pixel_values": patches[16:], "image_grid_thw": grid[1:]}, 1)
    assert torch.equal(changed["pixel_values"][16:], NoisedImages(500).inputs(alone, model)["pixel_values"])
    torch.testing.assert_close(changed["pixel_values"], noised(patches, [16, 24], 500))
    assert not torch.equal(changed["pixel_values"], NoisedImages(500, seed=1).inputs(given, model)["pixel_values"])


def test_an_amateur_of_text_would_be_blind_to_the_image() -> None:
    model, row = tiny("llava"), rows_of("llava")[0]
    text_model = tiny_model("llama")
    text_model.config.vocab_size = model.config.get_text_config().vocab_size
    with pytest.raises(InputError, match="pixel_values: the expert alone would get it, since LlamaForCausalLM"):
        decoding.generate(model, **batch_of(model, [row]), strategy=ContrastiveDecoding(text_model), max_new_tokens=2)


def test_lower_layers_are_fused_with_an_image() -> None:
    model, row = tiny("llava"), rows_of("llava")[0]
    ids = decoding.generate(model, **batch_of(model, [row]), strategy=LOL(Prompt(TEXT), [1]), max_new_tokens=NEW)
    other = dict(batch_of(model, [row]), pixel_values=-row.other_inputs["pixel_values"])
    assert not torch.equal(ids, decoding.generate(model, **other, strategy=LOL(Prompt(TEXT), [1]), max_new_tokens=NEW))


def test_texts_are_not_scored_with_changed_inputs() -> None:
    with pytest.raises(OptionError, match="gives no score to a given token"):
        Scorer(tiny("llava"), [20, 21], [ImageContrast()])
    with pytest.raises(OptionError, match=r"the amateur reads other inputs beside the text: give decoding.score what"):
        Scorer(tiny("llava"), [20, 21], [ContrastiveDecoding(Inputs(pixel_values=torch.zeros(1)))])
