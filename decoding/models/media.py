"""Images and sound from files, and the inputs that a model's processor makes of them and of a prompt."""

from __future__ import annotations

import inspect
import io
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decoding.errors import InputError, OptionError, one_line
from decoding.files import expanded
from decoding.models.devices import input_device
from decoding.models.inputs import TOKEN_TYPES
from decoding.models.segments import cuts_segments
from decoding.models.text_config import placeholder_tokens

__all__ = ["check_images_can_be_read", "processed", "read_image", "read_sound", "sampling_rate"]

IMAGE_PARTS = ("image_processor",)
SOUND_PARTS = ("feature_extractor", "audio_processor")  # of processors, by the names that transformers has for them
BITS = {1: np.uint8, 2: np.int16, 4: np.int32}  # of samples, by their bytes; 24 bits are read by hand


def check_images_can_be_read() -> None:
    """Raise OptionError where pillow, which reads images, is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"images need pillow ({one_line(error)}): pip install 'contrastive-decoding[images]'"
        ) from error


def read_image(file: str | Path | bytes) -> Any:
    """Read an image file, or the bytes of one, as an RGB image of pillow.

    Raises:
        InputError: there is no such file, or it is no image.
        OptionError: pillow is not installed.
    """
    check_images_can_be_read()
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else expanded(file)) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"{file!s}: there is no such file") from error
    except Exception as error:  # readers of broken files raise errors of many kinds
        name = "the image" if isinstance(file, bytes) else file
        raise InputError(f"{name}: is no image ({one_line(error)})") from error


def read_sound(path: str | Path, rate: int) -> NDArray[np.float32]:
    """Read a WAV file of PCM samples, as (samples,) float32 from -1 to 1; several channels become their mean.

    Args:
        path: of the file.
        rate: samples a second that the file must have.

    Raises:
        InputError: there is no such file, it is no PCM WAV file, is empty, or has another rate.
    """
    try:
        with wave.open(str(expanded(path)), "rb") as file:
            width, channels, given = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (wave.Error, OSError, EOFError) as error:
        raise InputError(f"{path}: is no WAV file of PCM samples ({one_line(error)})") from error
    advice = f"ffmpeg -i {path} -ar {rate} -ac 1 -sample_fmt s16 resampled.wav"
    if given != rate:
        raise InputError(f"{path}: has {given} samples a second and the model hears {rate}; resample it: {advice}")
    whole = len(data) // (width * channels) * width * channels
    if not whole:
        raise InputError(f"{path}: holds no sound")
    return _samples(data[:whole], width).reshape(-1, channels).mean(1, dtype=np.float32)


def _samples(data: bytes, width: int) -> NDArray[np.float32]:
    """(samples,) from -1 to 1; those of one byte are unsigned."""
    if width == 3:  # in the upper bytes of four
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole: NDArray[Any] = padded.view("<i4")[:, 0]
        width = 4
    else:
        whole = np.frombuffer(data, np.dtype(BITS[width]).newbyteorder("<"))
    centred = whole.astype(np.float64) - (128 if width == 1 else 0)
    return (centred / 2.0 ** (8 * width - 1)).astype(np.float32)


def sampling_rate(processor: Any) -> int:
    """The samples a second that a processor of sound takes.

    Raises:
        InputError: it is no processor of sound.
    """
    part = _part(processor, SOUND_PARTS)
    if part is None:
        raise InputError(f"the model's processor, {type(processor).__name__}, hears no sound: leave the sound out")
    return int(getattr(part, "sampling_rate", 16_000))


def processed(
    model: Any,
    processor: Any,
    prompt: str,
    images: Sequence[Any] = (),
    sound: NDArray[np.float32] | None = None,
    chat: bool = False,
) -> dict[str, Tensor]:
    """The inputs of a model for a prompt with images or sound, on its device and in its dtype.

    Args:
        model: reads them.
        processor: of the model; the tokens that stand for images and sound in the prompt are its business.
        prompt: text, with what the processor takes for an image in its place, such as ``<image>``, unless it is a chat.
            A speech recogniser with an encoder has none: "".
        images: that the prompt is about, in order.
        sound: (samples,) at the processor's rate. Of Whisper it may be longer than the model hears at a time.
        chat: put the images, the sound and the prompt into the processor's chat template as the user's message.

    Raises:
        InputError: images or sound that the processor does not take, a prompt that does not name them or that the
            model does not take, or sound longer than the model hears.
        OptionError: ``chat`` without a chat template.
    """
    if images and _part(processor, IMAGE_PARTS) is None:
        raise InputError(f"the model's processor, {type(processor).__name__}, sees no images: leave the image out")
    rate = sampling_rate(processor) if sound is not None else None
    longer = False
    if sound is not None and rate is not None:
        longer = _is_longer(model, processor, len(sound), rate)
    given: dict[str, Any] = {} if sound is None else {"audio": sound, "sampling_rate": rate}
    if longer:
        given |= {"truncation": False, "padding": "longest", "return_attention_mask": True}
    if images:
        given["images"] = list(images)
    recogniser = sound is not None and model.config.is_encoder_decoder
    if recogniser and prompt:
        raise InputError(f"{type(model).__name__} writes what it hears and reads no prompt: leave the prompt out")
    try:
        if chat:
            inputs = _chat(processor, prompt, images, sound)
        else:
            inputs = processor(**({} if recogniser else {"text": prompt}), **given, return_tensors="pt")
    except (InputError, OptionError):
        raise
    except Exception as error:  # of any kind, from the processor
        raise InputError(
            f"the model's processor, {type(processor).__name__}, cannot read the prompt ({one_line(error)})"
            f"{_hint(processor, prompt, chat)}"
        ) from error
    placeholders = placeholder_tokens(model)
    ids = inputs.get("input_ids")
    if placeholders and isinstance(ids, Tensor) and not any(token in placeholders for token in ids.flatten().tolist()):
        raise InputError(f"nothing in the prompt stands for the image or the sound{_hint(processor, prompt, chat)}")
    known = inspect.signature(model.forward).parameters
    return {
        name: value.to(input_device(model), model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        # Processors may return types of tokens that the model does not take.
        if isinstance(value, Tensor) and (name in known or name not in TOKEN_TYPES)
    }


def _part(processor: Any, names: Sequence[str]) -> Any:
    return next((part for name in names if (part := getattr(processor, name, None)) is not None), None)


def _is_longer(model: Any, processor: Any, samples: int, rate: int) -> bool:
    """True where sound is longer than the model hears at a time, and its ``generate`` cuts it at time stamps.

    Raises:
        InputError: it does not, and the processor would cut the sound off.
    """
    most = getattr(_part(processor, SOUND_PARTS), "n_samples", None)
    if not isinstance(most, int) or samples <= most:
        return False
    if not cuts_segments(model) or not hasattr(model.generation_config, "no_timestamps_token_id"):
        raise InputError(
            f"the sound has {samples / rate:.1f} seconds and the model hears {most / rate:.1f} at a time, and writes "
            "no time stamps at which longer sound is cut; cut it"
        )
    return True


def _chat(processor: Any, prompt: str, images: Sequence[Any], sound: Any) -> Any:
    if not getattr(processor, "chat_template", None):
        raise OptionError("--chat: the model's processor has no chat template; leave --chat out")
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content += [] if sound is None else [{"type": "audio", "audio": sound}]
    content.append({"type": "text", "text": prompt})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip


def _hint(processor: Any, prompt: str, chat: bool) -> str:
    """What to write where a prompt names no image or sound, by the processor's own tokens."""
    named = (getattr(processor, name, None) for name in ("image_token", "audio_token"))
    tokens = [token for token in named if isinstance(token, str)]
    if chat or not tokens or any(token in prompt for token in tokens):
        return ""
    return f"; write {' or '.join(tokens)} where it stands in the prompt, or give --chat"
