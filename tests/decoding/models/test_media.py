"""Images and sound of files, the classes that load models of them, and their processors."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_processors import IMAGE_TOKEN, SIZE, save_llava, save_whisper, tone, word_tokenizer, write_square, write_wav
from transformers import LlavaForConditionalGeneration, WhisperForConditionalGeneration

import decoding
from decoding import InputError, ModelError
from decoding.models.loading import load_processor
from decoding.models.media import processed, read_image, read_sound, sampling_rate


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_models_of_images_and_sound_are_loaded_whole(llava: str, whisper: str, dtype: str | None) -> None:
    for folder, kind in ((llava, LlavaForConditionalGeneration), (whisper, WhisperForConditionalGeneration)):
        model, tokenizer = decoding.load(folder, "cpu", dtype)
        assert isinstance(model, kind)
        assert not model.training
        assert model.dtype == (torch.bfloat16 if dtype else torch.float32)
        saved = kind.from_pretrained(folder, dtype=model.dtype).state_dict()
        assert all(torch.equal(weights, saved[name]) for name, weights in model.state_dict().items())
        assert tokenizer("w1 w2")["input_ids"] == word_tokenizer()("w1 w2")["input_ids"]


def test_a_folder_says_which_of_two_classes_wrote_it(llava: str, tmp_path: Path) -> None:
    """Qwen 3.5 has a class of text and one of images for one kind of config."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from decoding.models.loading import _auto_class

    config = AutoConfig.for_model("qwen3_5")
    text, images = (
        mapping[type(config)].__name__
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    )
    assert text != images
    for written_by, auto in (
        (None, "AutoModelForCausalLM"), (text, "AutoModelForCausalLM"), (images, "AutoModelForImageTextToText"),
    ):  # fmt: skip
        config.architectures = None if written_by is None else [written_by]
        assert _auto_class("folder", config).__name__ == auto


def test_inputs_are_on_the_models_device_and_in_its_dtype(llava: str, tmp_path: Path) -> None:
    image = read_image(write_square(tmp_path / "red.png", (220, 40, 40), size=50))
    model, _ = decoding.load(llava, "cpu", "bfloat16")
    inputs = processed(model, load_processor(llava), "<image> w1", [image])
    assert inputs["input_ids"].tolist() == [[IMAGE_TOKEN] * 4 + word_tokenizer().encode("w1")]
    assert (inputs["pixel_values"].shape, inputs["pixel_values"].dtype) == ((1, 3, SIZE, SIZE), torch.bfloat16)
    reds, greens = inputs["pixel_values"][0, :2].float().mean((1, 2)).tolist()
    assert reds > greens + 1


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_gives_its_samples(width: int, channels: int, tmp_path: Path) -> None:
    samples = tone(seconds=0.1)
    read = read_sound(write_wav(tmp_path / "tone.wav", samples, width=width, channels=channels), 16_000)
    assert (read.shape, read.dtype) == (samples.shape, np.float32)
    assert np.abs(read - samples).max() <= 2.0 ** (2 - 8 * width) + 1e-6  # the step of so many bits


def test_channels_become_their_mean(tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.array([[1000, 3000], [-2000, 0]], "<i2").tobytes())
    np.testing.assert_allclose(read_sound(path, 16_000), np.array([2000, -1000]) / 2**15)


def test_a_text_model_has_no_processor(tmp_path: Path, whisper: str) -> None:
    folder = tmp_path / "text"
    from tiny_models import tiny_model

    tiny_model("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    for spec in (str(folder), "expert"):
        with pytest.raises(ModelError, match="has no processor of images or sound; it is a model of text"):
            load_processor(spec)
    assert sampling_rate(load_processor(whisper)) == 16_000


@pytest.mark.parametrize("fault", ["{", '{"processor_class": "NoSuchProcessor"}', "[]"])
def test_a_broken_processor_is_one_line(fault: str, llava: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "broken"))
    (folder / "processor_config.json").write_text(fault)
    with pytest.raises(ModelError) as caught:
        load_processor(str(folder))
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_an_image_that_the_prompt_does_not_name_is_refused(llava: str, tmp_path: Path) -> None:
    """Where the processor raises an error itself, as LLaVA's does since transformers 5.18, and where it would not."""
    image = read_image(write_square(tmp_path / "red.png", (220, 40, 40)))
    model, _ = decoding.load(llava, "cpu")
    processor = load_processor(llava)
    refusal = r"(LlavaProcessor, cannot read|nothing in the prompt stands for) .*; write <image> where it stands"
    with pytest.raises(InputError, match=refusal):
        processed(model, processor, "w1", [image])

    class Careless:
        """A processor that takes an image and writes no token for it, as Qwen2-VL's does."""

        image_processor, image_token = processor.image_processor, "<image>"

        def __call__(self, text: str, images: object, return_tensors: str) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.tensor([processor.tokenizer.encode(text)])}

    with pytest.raises(InputError, match="nothing in the prompt stands for the image or the sound; write <image>"):
        processed(model, Careless(), "w1", [image])
