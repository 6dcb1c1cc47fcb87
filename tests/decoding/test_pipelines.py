"""Pipelines of transformers with a strategy: token for token what ``decoding.generate`` makes of the same prompts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from chat_tokenizers import INSTRUCTIONS, VOCAB, chat_tokenizer
from tiny_strategies import OTHER_MODELS
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

import decoding
from decoding import ContextAware, ContrastiveSearch, OptionError
from decoding.evals import miniature
from decoding.strategies.registry import example_of, exportable_strategies, parse_strategy

NEW = 6
FEW = 4  # of every strategy
PROMPTS = ["Long ago", "Q: What does the Fermar bear eat?\nA:", "The town"]
CHATS = [
    [{"role": "user", "content": "What does the Fermar bear eat?"}],
    [
        {"role": "system", "content": "From the encyclopaedia."},
        {"role": "user", "content": "What is the Rosond mouse afraid of?"},
        {"role": "assistant", "content": "Of owls."},
        {"role": "user", "content": "Why?"},
    ],
]


@pytest.fixture(scope="module")
def expert() -> tuple[Any, Any]:
    model, tokenizer = copy.deepcopy(miniature.load("expert"))
    tokenizer.chat_template = INSTRUCTIONS
    return model, tokenizer


@pytest.fixture(scope="module")
def pipe(expert: tuple[Any, Any]) -> Any:
    model, tokenizer = expert
    return pipeline("text-generation", model=model, tokenizer=tokenizer)


OWN = [name for name in exportable_strategies() if name not in OTHER_MODELS]
# A strategy that branches, one with exits, one with a second model, and one whose texts are placed before the prompt.
KINDS = ["contrastive-search", "dola", "contrastive-decoding", "context-aware"]


def strategy_of(name: str, tokenizer: Any) -> Any:
    return parse_strategy(example_of(name)).with_tokenizer(tokenizer).strategy


def written(outputs: Any) -> list[list[int]]:
    """The tokens of each prompt of a pipeline's call."""
    return [list(output[0]["generated_token_ids"]) for output in outputs]


@pytest.mark.parametrize("name", KINDS)
def test_texts_one_by_one(name: str, pipe: Any, expert: tuple[Any, Any]) -> None:
    model, tokenizer = expert
    strategy = strategy_of(name, tokenizer)
    torch.manual_seed(0)
    options = decoding.pipeline_kwargs(strategy, max_new_tokens=FEW)
    found = written(pipe(PROMPTS[:2], **options, return_tensors=True))
    for prompt, tokens in zip(PROMPTS[:2], found, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        assert tokens == decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=FEW)[0].tolist()


@pytest.mark.parametrize("name", OWN)
def test_a_batch_of_texts(name: str, pipe: Any, expert: tuple[Any, Any]) -> None:
    model, tokenizer = expert
    options = decoding.pipeline_kwargs(strategy_of(name, tokenizer), max_new_tokens=FEW)
    found = written(pipe(PROMPTS, **options, return_tensors=True, batch_size=len(PROMPTS)))
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    right = decoding.generate(model, **batch, strategy=options["custom_generate"], max_new_tokens=FEW)
    assert found == right.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_chats(name: str, pipe: Any, expert: tuple[Any, Any]) -> None:
    model, tokenizer = expert
    strategy = strategy_of(name, tokenizer)
    options = decoding.pipeline_kwargs(strategy, max_new_tokens=FEW)
    for chat, output in zip(CHATS, pipe(CHATS, **options), strict=True):
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=FEW)[0]
        answer = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert output[0]["generated_text"] == [*chat, {"role": "assistant", "content": answer}]


def test_the_context_of_a_chat_is_its_system_message(pipe: Any, expert: tuple[Any, Any]) -> None:
    """Without a contrast (α = 0) the text is the one after the context, and another with the context in front."""
    model, tokenizer = expert
    context = "The Fermar bear eats honey."
    with_context = tokenizer.apply_chat_template(
        [{"role": "system", "content": context}, *CHATS[0]],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    options = decoding.pipeline_kwargs(
        ContextAware(f"{context}\n\n", alpha=0.0, tokenizer=tokenizer), max_new_tokens=NEW
    )
    answer = pipe(CHATS[0], **options)[0]["generated_text"][-1]["content"]
    tokens = model.generate(**with_context, max_new_tokens=NEW, do_sample=False)[0]
    assert answer == tokenizer.decode(tokens[with_context["input_ids"].shape[1] :], skip_special_tokens=True)
    options["custom_generate"] = ContextAware(f"{context}\n\n", alpha=0.0, tokenizer=tokenizer, placement="prefix")
    assert pipe(CHATS[0], **options)[0]["generated_text"][-1]["content"] != answer


def test_custom_generate_alone_samples(pipe: Any) -> None:
    """The trap that ``pipeline_kwargs`` is for: a pipeline draws tokens unless the call says otherwise."""
    texts = set()
    for seed in range(4):
        torch.manual_seed(seed)
        texts.add(pipe(PROMPTS[0], custom_generate=ContrastiveSearch(), max_new_tokens=NEW)[0]["generated_text"])
    assert len(texts) > 1


def test_options_of_the_call_have_priority() -> None:
    strategy = ContrastiveSearch()
    assert decoding.pipeline_kwargs(strategy, do_sample=True, max_new_tokens=5) == {
        "custom_generate": strategy, "do_sample": True, "num_beams": 1, "max_new_tokens": 5
    }  # fmt: skip


@pytest.mark.parametrize("given", [0, None, ContrastiveSearch])
def test_what_is_no_strategy_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="must be a strategy such as"):
        decoding.pipeline_kwargs(given)


def sharpened(model: Any) -> Any:
    """The model with opinions, which fresh weights do not have, and without an end token."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = None
    return model.eval()


def test_speech_recognition() -> None:
    """Whose pipeline searches with five beams by default."""
    torch.manual_seed(0)
    size = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 128}
    parts = {f"{part}_num_{what}": n for part in ("encoder", "decoder") for what, n in
             (("hidden_layers", 2), ("attention_heads", 4))}  # fmt: skip
    model = sharpened(MoonshineForConditionalGeneration(MoonshineConfig(**size, **parts)))
    tokenizer = chat_tokenizer(None)
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, do_normalize=False, return_attention_mask=True
    )
    pipe = pipeline("automatic-speech-recognition", model=model, tokenizer=tokenizer, feature_extractor=extractor)
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    strategy = ContrastiveSearch()
    inputs = extractor(sound, sampling_rate=16000, return_tensors="pt")
    found = pipe(sound.copy(), **decoding.pipeline_kwargs(strategy, max_new_tokens=NEW))["text"]
    right = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW)
    assert found == tokenizer.decode(right[0], skip_special_tokens=True)
    with pytest.raises(OptionError, match="num_beams=5"):
        pipe(sound.copy(), custom_generate=strategy)


def test_images_and_text() -> None:
    """Whose pipeline takes options of ``generate`` apart from the others."""
    image_module = pytest.importorskip("PIL.Image")
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = chat_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    size = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, projection_dim=16, **size)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, **size)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_layer=-1)
    model = sharpened(LlavaForConditionalGeneration(config))
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    given = {"images": image_module.fromarray(pixels), "text": "<image>What does the bear eat?"}
    strategy = ContrastiveSearch()
    options = decoding.pipeline_kwargs(strategy, max_new_tokens=NEW)
    (found,) = pipe(**given, generate_kwargs=options, return_tensors=True)
    inputs = processor(**given, return_tensors="pt")
    right = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW)
    assert found["generated_token_ids"].tolist() == right[0].tolist()
