"""``decoding generate`` with images, sound and translations gives what the library's and transformers' calls give."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_results import refused
from tiny_processors import (
    RATE,
    SECONDS,
    save_llava,
    save_qwen2_vl,
    save_translator,
    save_whisper,
    tone,
    word_tokenizer,
    write_square,
    write_wav,
)
from transformers import AutoModelForImageTextToText, AutoModelForSpeechSeq2Seq, AutoProcessor

import decoding
from decoding import AudioContrast, ImageContrast, SourceContrast
from decoding.cli.app import run
from decoding.models.media import read_image
from decoding.strategies.registry import parse_strategy

PROMPT = "USER : <image> w1 w2 ASSISTANT :"
Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("models_loaded_once")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models, and files."""
    folder = tmp_path_factory.mktemp("media")
    return {
        "llava": save_llava(folder / "llava"),
        "whisper": save_whisper(folder / "whisper"),
        "stamps": save_whisper(folder / "stamps", stamps=True),
        "image": str(write_square(folder / "red.png", (220, 40, 40))),
        "other": str(write_square(folder / "blue.png", (30, 60, 230))),
        "sound": str(write_wav(folder / "tone.wav", tone())),
    }


@pytest.fixture
def generate(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``decoding generate``; (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["generate", "--max-new-tokens", "6", *arguments])
        return code, *capfd.readouterr()

    return call


def record(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


IMAGE_STRATEGIES = {
    "greedy": None,
    "image-contrast": ImageContrast(),
    "image-contrast:noise=900,beta=2.0,seed=3": ImageContrast(noise=900, beta=2.0, seed=3),
    "image-contrast:blank=true": ImageContrast(blank=True),
    "image-contrast:no_image=true": ImageContrast(no_image=True),
    "image-contrast:prompt=w7 w8,placement=prefix": ImageContrast(
        prompt="w7 w8", placement="prefix", tokenizer=word_tokenizer()
    ),
}


# Two images, where they are read, made noise, or left out.
@pytest.mark.parametrize(
    ("strategy", "images"),
    [
        *((strategy, 1) for strategy in IMAGE_STRATEGIES),
        *((strategy, 2) for strategy in ("greedy", "image-contrast", "image-contrast:no_image=true")),
    ],
)
def test_images_give_the_tokens_of_the_processor_and_generate(
    strategy: str, images: int, generate: Run, media: dict[str, str]
) -> None:
    paths, prompt = [media["image"], media["other"]][:images], PROMPT.replace("<image>", "<image> " * images)
    files = [word for path in paths for word in ("--image", path)]
    made = record(generate("--model", media["llava"], *files, "--prompt", prompt, "--strategy", strategy, "--json"))
    model = AutoModelForImageTextToText.from_pretrained(media["llava"])
    processor = AutoProcessor.from_pretrained(media["llava"])
    inputs = processor(images=[read_image(path) for path in paths], text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 4 * images
    tokens = decoding.generate(model, **inputs, strategy=IMAGE_STRATEGIES[strategy], max_new_tokens=6, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert made["continuation"].strip() == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert (made["prompt"], made["images"]) == (prompt, paths)


def test_another_image_gives_another_text(generate: Run, media: dict[str, str]) -> None:
    texts = {
        generate("--model", media["llava"], "--image", media[name], "--prompt", PROMPT, "--strategy", "image-contrast")
        for name in ("image", "other")
    }
    assert len(texts) == 2


def test_a_chat_goes_through_the_template_of_the_processor(generate: Run, media: dict[str, str]) -> None:
    of_image = ("--model", media["llava"], "--image", media["image"], "--strategy", "image-contrast", "--json")
    chat = record(generate(*of_image, "--prompt", "w1 w2", "--chat"))
    written = record(generate(*of_image, "--prompt", "USER : <image> w1 w2 ASSISTANT :"))
    assert chat["text"] == written["continuation"].strip()


def test_a_chat_without_an_image_has_the_prompt_in_it(generate: Run, media: dict[str, str]) -> None:
    """The template writes nothing of a message that is text and no list of parts."""
    text = ("--model", media["llava"], "--strategy", "greedy", "--json")
    chat = record(generate(*text, "--prompt", "w1 w2", "--chat"))
    assert chat["text"] == record(generate(*text, "--prompt", "USER : w1 w2 ASSISTANT :"))["continuation"].strip()
    assert chat["text"] != record(generate(*text, "--prompt", "w9", "--chat"))["text"]


def test_a_confusing_prompt_is_the_system_message_of_a_chat(generate: Run, media: dict[str, str]) -> None:
    chat = ("--model", media["llava"], "--image", media["image"], "--prompt", "w1", "--chat", "--json")
    placed = record(generate(*chat, "--strategy", "image-contrast:prompt=w7 w8,placement=system"))
    inputs = AutoProcessor.from_pretrained(media["llava"])(
        images=[read_image(media["image"])], text="USER : <image> w1 ASSISTANT :", return_tensors="pt"
    )
    model, tokenizer = decoding.load(media["llava"], "cpu")
    strategy = ImageContrast(prompt="w7 w8", placement="system", tokenizer=tokenizer)
    tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=6)
    assert placed["text"] == tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("strategy", ["greedy", "audio-contrast", "audio-contrast:negatives=shift,shift=0.3", "beam"])
def test_sound_is_written_down_as_by_whispers_own_generate(strategy: str, generate: Run, media: dict[str, str]) -> None:
    made = record(generate("--model", media["whisper"], "--audio", media["sound"], "--strategy", strategy, "--json"))
    model = AutoModelForSpeechSeq2Seq.from_pretrained(media["whisper"])
    processor = AutoProcessor.from_pretrained(media["whisper"])
    inputs = processor(audio=tone(), sampling_rate=RATE, return_tensors="pt")
    ways: dict[str, Any] = {
        "greedy": {}, "beam": {"num_beams": 4}, "audio-contrast": {"custom_generate": AudioContrast()},
    }.get(strategy, {"custom_generate": AudioContrast(negatives="shift", shift=0.3)})  # fmt: skip
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, **ways)[0]
    assert made["text"] == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert (made["new_tokens"], made["prompt"], made["audio"]) == (6, "", media["sound"])


@pytest.mark.parametrize("strategy", ["greedy", "audio-contrast"])
def test_long_sound_is_written_down_segment_by_segment(
    strategy: str, generate: Run, media: dict[str, str], tmp_path: Path
) -> None:
    sound = tone(seconds=SECONDS + 0.5)
    long = ("--model", media["stamps"], "--audio", str(write_wav(tmp_path / "long.wav", sound)), "--strategy", strategy)
    made = record(generate(*long, "--json"))
    assert "--stream: sound that is longer than the model hears" in refused(*generate(*long, "--stream"))
    model = AutoModelForSpeechSeq2Seq.from_pretrained(media["stamps"])
    processor = AutoProcessor.from_pretrained(media["stamps"])
    inputs = processor(
        audio=sound, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest",
        return_attention_mask=True,
    )  # fmt: skip
    custom = {} if strategy == "greedy" else {"custom_generate": AudioContrast()}
    tokens = model.generate(**inputs, max_new_tokens=6, return_timestamps=True, **custom)[0]
    assert made["text"] == processor.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("strategy", ["greedy", "audio-contrast"])
def test_what_is_heard_can_be_streamed(strategy: str, generate: Run, media: dict[str, str]) -> None:
    of_sound = ("--model", media["whisper"], "--audio", media["sound"], "--strategy", strategy)
    assert generate(*of_sound, "--stream") == generate(*of_sound)


def test_the_longest_text_of_whisper_fits_its_decoder(generate: Run, media: dict[str, str]) -> None:
    sound = ("--model", media["whisper"], "--audio", media["sound"], "--strategy", "greedy", "--json")
    assert record(generate(*sound, "--max-new-tokens", "44"))["new_tokens"] == 44
    assert "--max-new-tokens 45: must be 1 to 44" in refused(*generate(*sound, "--max-new-tokens", "45"))


@pytest.fixture(scope="module")
def faults(media: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files and folders that something is wrong with."""
    folder = tmp_path_factory.mktemp("faults")
    broken = Path(shutil.copytree(media["llava"], folder / "broken"))
    (broken / "processor_config.json").write_text("{")
    missing = Path(shutil.copytree(media["llava"], folder / "missing"))
    (missing / "processor_config.json").unlink()
    (missing / "chat_template.jinja").unlink()
    unchatty = Path(shutil.copytree(media["llava"], folder / "unchatty"))
    (unchatty / "chat_template.jinja").unlink()
    return media | {
        "broken": str(broken), "missing": str(missing), "unchatty": str(unchatty),
        "slow": str(write_wav(folder / "slow.wav", tone(rate=8000), rate=8000)),
        "long": str(write_wav(folder / "long.wav", tone(seconds=SECONDS + 0.5))),
        "empty": str(write_wav(folder / "empty.wav", np.zeros(0, np.float32))),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("expert --image {image}", "expert: has no processor of images or sound; it is a model of text"),
        ("expert --audio {sound}", "expert: has no processor of images or sound; it is a model of text"),
        ("{whisper} --image {image}", "WhisperProcessor, sees no images"),
        ("{llava} --audio {sound}", "LlavaProcessor, hears no sound"),
        ("{llava} --image {sound}", "tone.wav: is no image (cannot identify"),
        ("{llava} --image ./absent.png", "absent.png: there is no such file"),
        ("{whisper} --audio {image}", "red.png: is no WAV file of PCM samples"),
        ("{whisper} --audio ./absent.wav", "absent.wav: there is no such file"),
        ("{whisper} --audio {slow}", "slow.wav: has 8000 samples a second and the model hears 16000; resample it"),
        ("{whisper} --audio {long}", "the sound has 1.5 seconds and the model hears 1.0 at a time"),
        ("{whisper} --audio {empty}", "empty.wav: holds no sound"),
        ("{whisper} --audio {sound} --prompt w1", "WhisperForConditionalGeneration writes what it hears and reads no"),
        ("{whisper} --prompt w1", "WhisperForConditionalGeneration reads input_features and no text: give --audio"),
        ("{whisper} --audio {sound} --chat", "the model's processor has no chat template"),
        ("{llava} --image {image} --prompt w1", "write <image> where it stands in the prompt, or give --chat"),
        ("{unchatty} --image {image} --prompt w1 --chat", "the model's processor has no chat template"),
        ("{llava} --prompt w1 --strategy image-contrast", "image-contrast changes the image of the prompt: give"),
        ("{whisper} --strategy audio-contrast", "audio-contrast changes the sound: give --audio FILE"),
        ("{broken} --image {image}", "broken: its processor_config.json cannot be read"),
        ("{missing} --image {image}", "missing: "),
        ("{llava} --image {image} --prompt <image>w1" + " w1" * 70, "the prompt has"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(arguments: str, message: str, generate: Run, faults: dict[str, str]) -> None:
    model, *words = arguments.split(" --")
    more = [part for word in words for part in f"--{word}".format(**faults).split(" ", 1)]
    if "--prompt" not in more and "--audio" not in more and "--strategy" not in more:
        more += ["--prompt", "<image>"]
    if "--strategy" not in more:
        more += ["--strategy", "greedy"]
    assert message in refused(*generate("--model", model.format(**faults), *more))


def test_images_without_pillow_say_what_to_install(
    generate: Run, media: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    line = refused(*generate("--model", media["llava"], "--image", media["image"], "--prompt", PROMPT))
    assert "pip install 'contrastive-decoding[images]'" in line


# --- translations ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a tiny T5 and a tiny M2M-100, whose w30 to w34 are taken for languages."""
    folder = tmp_path_factory.mktemp("translators")
    return {name: save_translator(name, folder / name) for name in ("t5", "m2m_100")}


@pytest.mark.parametrize("name", ["t5", "m2m_100"])
def test_another_source_and_language_are_those_of_decoding_generate(
    name: str, generate: Run, translators: dict[str, str]
) -> None:
    tokenizer = word_tokenizer()
    first, other = (tokenizer.convert_tokens_to_ids(word) for word in ("w30", "w31"))
    made = record(
        generate("--model", translators[name], "--prompt", "w1 w2 w3", "--strategy", "source-contrast", "--json",
                 "--set", "source=w8 w9", "--set", "language=w31",
                 "--generation-config", f"forced_bos_token_id={first}")
    )  # fmt: skip
    model, _ = decoding.load(translators[name], "cpu")
    inputs = tokenizer("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
    start = model.generation_config.decoder_start_token_id
    tokens = decoding.generate(
        model, **inputs, decoder_input_ids=torch.tensor([[start, first]]), max_new_tokens=6,
        strategy=SourceContrast("w8 w9", language=other, tokenizer=tokenizer),
    )  # fmt: skip
    assert made["text"] == tokenizer.decode(tokens[0, 1:], skip_special_tokens=True)
    assert made["text"].startswith("w30 ")
    alone = record(generate("--model", translators[name], "--prompt", "w1 w2 w3", "--strategy", "greedy", "--json",
                            "--generation-config", f"forced_bos_token_id={first}"))  # fmt: skip
    assert alone["text"].split()[0] == "w30"


def test_a_language_to_replace_must_be_named(generate: Run, translators: dict[str, str]) -> None:
    contrast = (
        "--model",
        translators["m2m_100"],
        "--prompt",
        "w1",
        "--strategy",
        "source-contrast:source=none,language=w31",
    )
    assert "give forced_bos_token_id=ID (--generation-config on the command line)" in refused(*generate(*contrast))


def test_another_source_needs_an_encoder(generate: Run) -> None:
    assert "decoder-only" in refused(*generate("--prompt", "Long ago", "--strategy", "source-contrast:source=Once"))


@pytest.mark.parametrize("strategy", ["greedy", "image-contrast:noise=900", "image-contrast:no_image=true"])
def test_images_of_several_sizes_for_qwen2_vl(strategy: str, generate: Run, tmp_path: Path) -> None:
    """Its processor cuts images of any size into patches, and needs torchvision for videos."""
    pytest.importorskip("torchvision", reason="the processor of Qwen2-VL needs torchvision")
    folder = save_qwen2_vl(tmp_path / "qwen")
    paths = [write_square(tmp_path / "red.png", (220, 40, 40)), write_square(tmp_path / "blue.png", (30, 60, 230), 43)]
    files = [word for path in paths for word in ("--image", str(path))]
    made = record(generate("--model", folder, *files, "--prompt", "w1 w2", "--chat", "--strategy", strategy, "--json"))
    images = "<|vision_start|><|image_pad|><|vision_end|> " * 2
    model, processor = decoding.load(folder, "cpu")[0], AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=[read_image(path) for path in paths], text=f"USER : {images}w1 w2 ASSISTANT :", return_tensors="pt"
    )
    assert inputs["image_grid_thw"].shape == (2, 3)
    tokens = decoding.generate(
        model, **inputs, strategy=parse_strategy(strategy).strategy if strategy != "greedy" else None, max_new_tokens=6
    )
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert made["text"] == processor.tokenizer.decode(new, skip_special_tokens=True)
    careless = generate("--model", folder, *files, "--prompt", "w1 w2", "--strategy", strategy)
    assert "write <|image_pad|> where it stands in the prompt, or give --chat" in refused(*careless)
