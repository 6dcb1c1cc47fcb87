"""Identities: the same on every machine, and another where a weight, a config or a tokenizer differs."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import AutoTokenizer

from decoding.evals import miniature
from decoding.models.adapter_folders import load_adapter
from decoding.models.identity import (
    config_digest,
    fingerprint,
    identity,
    tokenizer_digest,
)


def with_weights(weights: Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(weights, requires_grad=False))
    return model


# Above 2^24 float32 no longer holds every integer. Among the shapes are embeddings of real models.
LARGE = [(2**24 - 1,), (2**24,), (2**24 + 1,), (2**24 + 16, 1), (49152, 576), (50304, 768), (128256, 512)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_tensors_have_a_fingerprint_that_changes_with_every_number(shape: tuple[int, ...]) -> None:
    weights = torch.zeros(shape, dtype=torch.bfloat16)
    seen = [fingerprint(with_weights(weights))]
    for place in (0, weights.numel() // 3, 2**24 - 5, -1):
        weights.view(-1)[place] = 1
        seen.append(fingerprint(with_weights(weights)))
    assert len(set(seen)) == 5


def test_an_empty_tensor_and_a_number_have_fingerprints() -> None:
    assert fingerprint(with_weights(torch.zeros(0, 4))) == fingerprint(with_weights(torch.ones(0, 4)))
    assert fingerprint(with_weights(torch.zeros(0, 4))) != fingerprint(with_weights(torch.zeros(0, 5)))
    assert fingerprint(with_weights(torch.tensor(1.0))) != fingerprint(with_weights(torch.tensor(2.0)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equal_numbers_have_one_fingerprint_however_they_lie_in_memory(dtype: torch.dtype) -> None:
    weights = torch.arange(12, dtype=dtype).view(3, 4)
    assert fingerprint(with_weights(weights.T.contiguous().T)) == fingerprint(with_weights(weights))


def test_a_change_of_a_few_rows_of_an_adapter_is_seen() -> None:
    model, _ = miniature.load("expert")
    adapter = load_adapter(model, miniature.folder("induced"))
    weights = next(iter(adapter.layers.values())).up.weight
    before, known = weights.clone(), fingerprint(model, adapter)
    with torch.no_grad():
        weights[3:9] += 0.5
        changed = fingerprint(model, adapter)
        weights.copy_(before)
    assert known != changed
    assert fingerprint(model, adapter) == known


# --- configs, tokenizers and adapters --------------------------------------------------------------------------------


@functools.cache
def expert() -> tuple[Any, Any]:
    return miniature.load("expert")


def saved_expert(folder: Path) -> Path:
    for part in expert():
        part.save_pretrained(folder)
    return folder


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", 500000.0), ("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("sliding_window", 8),
        ("logit_scale", 0.5), ("attention_multiplier", 0.1),
    ],
)  # fmt: skip
def test_an_entry_of_the_config_that_no_weight_tells_changes_the_identity(name: str, value: Any) -> None:
    one, other = tiny_model("llama"), tiny_model("llama")
    if name == "rope_theta":
        other.config.rope_parameters["rope_theta"] = value
    else:
        setattr(other.config, name, value)
    assert fingerprint(one) == fingerprint(other)
    assert config_digest(one) != config_digest(other)


def test_names_versions_dtype_and_cache_are_no_part_of_a_config() -> None:
    one, other = tiny_model("llama"), tiny_model("llama")
    for name, value in (("_name_or_path", "elsewhere"), ("use_cache", False), ("transformers_version", "5.0.0")):
        setattr(other.config, name, value)
    assert config_digest(one) == config_digest(other) == config_digest(other.to(torch.bfloat16))


def test_parts_of_a_config_are_compared_as_deep_as_they_go() -> None:
    from transformers import LlavaConfig

    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 2}
    one, same, other = (
        SimpleNamespace(config=LlavaConfig(vision_config=vision, text_config={"model_type": "llama", **text}))
        for text in ({}, {"_name_or_path": "elsewhere"}, {"rms_norm_eps": 1e-3})
    )
    assert config_digest(one) == config_digest(same) != config_digest(other)


WITH_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
TOKENIZER_CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "vocabulary": lambda json: json["model"]["vocab"].update({"zzz": len(json["model"]["vocab"])}),
    "merges": lambda json: json["model"]["merges"].pop(),
    "added tokens": lambda json: json["added_tokens"][-1].update(lstrip=True),
    "normaliser": lambda json: json.update(normalizer={"type": "Lowercase"}),
    "pre-tokenizer": lambda json: json.update(pre_tokenizer={"type": "WhitespaceSplit"}),
    "post-processor": lambda json: json.update(post_processor=WITH_BOS),
    "decoder": lambda json: json.update(decoder=None),
}


@pytest.mark.parametrize("part", TOKENIZER_CHANGES)
def test_every_part_of_a_fast_tokenizer_changes_its_digest(part: str, tmp_path: Path) -> None:
    folder = saved_expert(tmp_path)
    before = tokenizer_digest(AutoTokenizer.from_pretrained(folder))
    assert before == tokenizer_digest(expert()[1])  # wherever it was loaded from
    written = (folder / "tokenizer.json").read_text()
    changed(folder / "tokenizer.json", TOKENIZER_CHANGES[part])
    assert (folder / "tokenizer.json").read_text() != written
    assert tokenizer_digest(AutoTokenizer.from_pretrained(folder)) != before


def test_special_tokens_and_chat_templates_are_part_of_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved_expert(tmp_path))
    seen = [tokenizer_digest(tokenizer)]
    for template in ("{{ messages }}", "{{ messages[0] }}", {"default": "{{ messages }}", "tools": ""}):
        tokenizer.chat_template = template
        seen.append(tokenizer_digest(tokenizer))
    tokenizer.eos_token = "<pad>"
    seen.append(tokenizer_digest(tokenizer))
    assert len(set(seen)) == len(seen)


def test_calls_leave_a_tokenizers_digest_as_it_is(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved_expert(tmp_path))
    before = tokenizer_digest(tokenizer)
    tokenizer(["one", "and another"], padding="max_length", truncation=True, max_length=5)
    tokenizer.padding_side, tokenizer.model_max_length, tokenizer.name_or_path = "right", 7, "elsewhere"
    assert tokenizer_digest(tokenizer) == before


def test_a_tokenizer_of_sentencepiece_is_told_by_its_model_and_settings(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class Pieces(SentencePieceBackend):
        vocab_files_names: ClassVar = {"vocab_file": "spm.model"}

    def trained(name: str, text: str) -> Path:
        (tmp_path / name).mkdir()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter([text * 9]), model_prefix=str(tmp_path / name / "spm"), vocab_size=30,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        return tmp_path / name / "spm.model"

    def digest_of(file: Path, **settings: Any) -> str:
        return tokenizer_digest(Pieces(vocab_file=str(file), unk_token="<unk>", **settings))

    one = trained("one", "the town lies by the river and the river is old ")
    other = trained("other", "rain fell on a market where nobody sold anything at all ")
    copied = Path(shutil.copytree(one.parent, tmp_path / "copied")) / one.name
    assert digest_of(one) == digest_of(copied)
    assert len({digest_of(one), digest_of(other), digest_of(one, eos_token="</end>")}) == 3


class LikeMistralCommon:
    """The surface of transformers' MistralCommonBackend: one file, and much that it does not implement."""

    chat_template = None
    special_tokens_map: ClassVar = {"bos_token": "<s>"}

    def __init__(self, file: Path, mode: str = "test") -> None:
        self.file, self.init_kwargs = file, {"tokenizer_path": file, "mode": mode, "padding_side": "left"}

    @property
    def added_tokens_decoder(self) -> None:
        raise NotImplementedError

    def save_vocabulary(self, folder: str) -> None:
        raise NotImplementedError

    def save_pretrained(self, folder: str) -> None:
        shutil.copy(self.file, folder)

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text)}


def test_a_tokenizer_of_mistral_common_is_told_by_its_file_and_mode(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("tekken.json", "copy.json", "other.json")]
    for file, content in zip(files, ("{}", "{}", '{"config": 1}'), strict=True):
        file.write_text(content)
    one, same, other = (tokenizer_digest(LikeMistralCommon(file)) for file in files)
    assert one == same
    assert len({one, other, tokenizer_digest(LikeMistralCommon(files[0], "finetuning"))}) == 3


def test_an_active_adapter_and_what_scales_it_are_part_of_a_model() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    seen = [identity(model)]
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    peft.inject_adapter_in_model(config, model, adapter_name="liar")
    seen.append(identity(model))
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    for layer in layers:
        layer.scaling["liar"] *= 2
    seen.append(identity(model))
    for layer in layers:
        layer.enable_adapters(False)
    assert identity(model) == seen[0]
    assert len({json.dumps(each) for each in seen}) == 3
    assert identity(model, adapter="liar") == seen[2]
