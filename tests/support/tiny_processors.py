"""Tiny random models of images and of sound in folders, each with a processor; and small images and sounds."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from decoding.models.quiet import quiet
from decoding.tools.architectures.tiny import scale_weights

RATE = 16_000  # samples a second
SECONDS = 1  # that the tiny Whisper hears at a time
MELS = 8
SIZE = 28  # of the tiny LLaVA's images, in pixels: two by two patches
WORDS = [
    "<unk>", "</s>", "<s>", "<pad>", "<image>", "USER", "ASSISTANT", ":", "?", "yes", "no", "Yes", "No",
    *(f"w{i}" for i in range(40)),
]  # fmt: skip
IMAGE_TOKEN = WORDS.index("<image>")
FIRST_STAMP = len(WORDS) - 20  # of a Whisper that writes time stamps, whose last words they are
CHAT = (
    "{% for m in messages %}USER : {% for part in m.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        padding_side="left",
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    return tokenizer


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **more
    }  # fmt: skip


def save_llava(folder: Path, seed: int = 0) -> str:
    """A LLaVA that sees images of ``SIZE``; with its processor and a chat template."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_sizes(image_size=SIZE, patch_size=SIZE // 2, projection_dim=16)),
        text_config=LlamaConfig(
            **_sizes(vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=2, eos_token_id=1, pad_token_id=3)
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    scale_weights(model)
    model.generation_config.eos_token_id = None  # random models end at random
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )  # which needs no torchvision
    processor = LlavaProcessor(
        images, word_tokenizer(), patch_size=SIZE // 2, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(folder)


def save_whisper(folder: Path, seed: int = 0, stamps: bool = False) -> str:
    """A Whisper that hears ``SECONDS`` at a time; with its processor. With ``stamps`` it hears longer sound too."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=MELS,
        max_source_positions=50 * SECONDS, max_target_positions=48, decoder_start_token_id=2, bos_token_id=2,
        eos_token_id=1, pad_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    scale_weights(model)
    # As real ones do: neither an end nor the start token is written here.
    model.generation_config.update(suppress_tokens=[0, 1, 2, 3, IMAGE_TOKEN], max_length=48)
    if stamps:
        model.generation_config.no_timestamps_token_id = FIRST_STAMP - 1
        model.generation_config._from_model_config = False  # or it would be made anew, and this is not in the model's
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS), word_tokenizer())
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(folder)


def save_translator(name: str, folder: Path, seed: int = 0) -> str:
    """A tiny "t5" or "m2m_100" with the tokenizer of words."""
    torch.manual_seed(seed)
    tokens = {
        "vocab_size": len(WORDS),
        "decoder_start_token_id": 2,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 3,
    }
    model: Any
    if name == "t5":
        model = T5ForConditionalGeneration(
            T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **tokens)
        ).eval()
    else:
        model = M2M100ForConditionalGeneration(
            M2M100Config(
                d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, **tokens,
            )
        ).eval()  # fmt: skip
    scale_weights(model)
    model.generation_config.eos_token_id = None  # random models end at random
    with quiet():
        model.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
    return str(folder)


def write_square(path: Path, colour: tuple[int, int, int], size: int = SIZE) -> Path:
    """A PNG of one colour with a darker square in it."""
    from PIL import Image

    pixels = np.full((size, size, 3), colour, np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] //= 3
    Image.fromarray(pixels).save(path)
    return path


def tone(frequency: float = 440.0, seconds: float = SECONDS, rate: int = RATE) -> np.ndarray[Any, Any]:
    """(samples,) float32 of a tone that grows louder."""
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.linspace(0.2, 1, len(time))).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray[Any, Any], rate: int = RATE, width: int = 2, channels: int = 1) -> Path:
    """A WAV file of samples from -1 to 1 in every channel, of so many bytes each."""
    whole = np.round(np.repeat(samples, channels).astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype("<i8")
    data = (whole + (128 if width == 1 else 0)).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def save_qwen2_vl(folder: Path, seed: int = 0) -> str:
    """A Qwen2-VL with its processor, which needs torchvision."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(name, special=True) for name in names]})
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    text = _sizes(
        vocab_size=len(tokenizer), max_position_embeddings=64, num_key_value_heads=2, bos_token_id=2, eos_token_id=1,
        pad_token_id=3, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 7},
        vision_start_token_id=start, vision_end_token_id=end, image_token_id=image, video_token_id=video,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config).eval()
    scale_weights(model)
    model.generation_config.eos_token_id = None
    size = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=7, size=size), tokenizer, Qwen2VLVideoProcessor(patch_size=7, size=size),
        chat_template=CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(folder)
