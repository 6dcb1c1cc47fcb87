"""Images are encoded once, however many readers of a contrast see them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_images import image_rows, tiny_image_model
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

import decoding
from decoding import ContrastiveDecoding, ImageContrast, Inputs, Prompt, Strategy, WeightedContrast
from decoding.strategies.contrast import open_groups
from decoding.strategies.contrast.encoded_images import joined_encodings
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import tiny_other_inputs

pytestmark = pytest.mark.skipif(
    not hasattr(GenerationMixin, "_supports_mm_encoder_outputs"), reason="this version encodes images within forward()"
)

OWN = ("paligemma", "qwen2_5_vl", "idefics3")  # the others are built by the tools
tiny = functools.cache(tiny_other_inputs)


@functools.cache
def model_of(name: str) -> Any:
    return tiny_image_model(name) if name in OWN else tiny(name)


@functools.cache
def inputs_of(name: str) -> dict[str, Any]:
    if name in OWN:
        prompt = image_rows(name)[0]
    else:
        make = prompts_with_images(model_of(name))
        assert make is not None
        prompt = make(0)[0]
    return {"input_ids": torch.tensor([prompt.text]), **prompt.other_inputs}


@contextmanager
def images_encoded(model: Any) -> Iterator[list[int]]:
    """Count the images of each call of a model's vision tower."""
    counts: list[int] = []
    tower = next(
        module
        for name, module in model.named_modules()
        if name.split(".")[-1] in ("vision_tower", "visual", "vision_model")
    )
    handle = tower.register_forward_pre_hook(
        lambda _module, inputs, named: counts.append(len(next(v for v in (*inputs, *named.values()) if _is_image(v)))),
        with_kwargs=True,
    )
    try:
        yield counts
    finally:
        handle.remove()


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def scores(name: str, strategy: Strategy) -> tuple[Tensor, list[int]]:
    """The scores (steps, vocab) of a short text, and how many images, or patches, each call of the tower encoded."""
    with images_encoded(model_of(name)) as counts:
        output = decoding.generate(
            model_of(name), **inputs_of(name), strategy=strategy, max_new_tokens=3, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return torch.cat(output.scores), counts


@functools.cache
def _seen(name: str) -> None:
    """What is found out of a model at its first call encodes images too."""
    scores(name, ImageContrast(prompt=[7, 8]))


def _negative(name: str) -> Inputs:
    return Inputs(pixel_values=-inputs_of(name)["pixel_values"])


CASES: dict[str, tuple[Any, int]] = {  # the strategy, and how often a whole prompt's images are encoded
    "the same image": (lambda name: ImageContrast(prompt=[7, 8]), 1),
    "two more readers of it": (
        lambda name: WeightedContrast([("expert", 1.5), (Prompt([7]), -0.3), (Prompt([9]), -0.2, "other")]), 1
    ),
    "a noised image": (lambda name: ImageContrast(noise=500), 2),
    "an image of its own": (
        lambda name: ContrastiveDecoding(_negative(name)), 2
    ),
    "two readers of another image": (
        lambda name: WeightedContrast([("expert", 1.5), (_negative(name), -0.3), (_negative(name), -0.1, "b")]), 2
    ),
}  # fmt: skip


# A model decides what it encodes; which readers share it is decided alike for all, but for Qwen2-VL.
PAIRS = [
    *((case, name) for case in ("the same image", "a noised image") for name in (*OWN, "llava", "qwen2_vl")),
    *((case, name) for case in [*CASES][1:] if case != "a noised image" for name in ("paligemma", "qwen2_vl")),
]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_an_image_is_encoded_once_and_the_scores_are_the_same(
    case: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, times = CASES[case]
    _seen(name)
    found, counts = scores(name, make(name))
    assert len(counts) == times
    assert len(set(counts)) == 1
    monkeypatch.setattr(open_groups, "joined_encodings", lambda readers: None)
    wanted, before = scores(name, make(name))
    # The expert of Qwen2-VL shares no pass with its amateur, so that one other image was encoded once before, too.
    assert sum(before) > sum(counts) or (name == "qwen2_vl" and times == 2 and sum(before) == sum(counts))
    # Not to the last bit: an image is encoded alone, and was encoded beside others.
    finite = wanted.isfinite()
    assert torch.equal(found.isfinite(), finite)
    torch.testing.assert_close(found[finite], wanted[finite], rtol=1e-4, atol=1e-4)


def test_rows_that_are_repeated_are_encoded_as_before() -> None:
    strategy = ImageContrast(prompt=[7, 8])
    with images_encoded(model_of("paligemma")) as counts:
        tokens = decoding.generate(
            model_of("paligemma"),
            **inputs_of("paligemma"),
            strategy=strategy,
            max_new_tokens=2,
            do_sample=True,
            num_return_sequences=2,
        )
    assert sum(counts) > 1
    assert tokens.shape[0] == 2


def test_what_cannot_be_joined_is_not() -> None:
    def encoded(**parts: Any) -> dict[str, Any]:
        return {"image": BaseModelOutputWithPooling(**parts)}

    one, other = torch.zeros(1, 4, 8), torch.ones(2, 4, 8)
    joined = joined_encodings([encoded(pooler_output=one), encoded(pooler_output=other, last_hidden_state=one)])
    assert joined is not None
    assert torch.equal(joined["image"].pooler_output, torch.cat([one, other]))
    assert joined["image"].last_hidden_state is None
    lists = joined_encodings([encoded(pooler_output=[one[0]]), encoded(pooler_output=[other[0], other[1, :3]])])
    assert lists is not None
    assert [len(image) for image in lists["image"].pooler_output] == [4, 4, 3]
    assert joined_encodings([encoded(pooler_output=one), encoded(pooler_output=other[:, :3])]) is None
    assert joined_encodings([encoded(pooler_output=one), {}]) is None
    assert joined_encodings([{"image": {"pooler_output": one, "visual_indicator_features": one}}] * 2) is None
    assert joined_encodings([encoded(last_hidden_state=one)]) is None
