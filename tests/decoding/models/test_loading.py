"""Models by name; every failure is one line."""

import json
import shutil

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)
from word_models import tokenizer_of

from decoding import ModelError, OptionError
from decoding.models import loading
from decoding.models.loading import load
from decoding.models.releases import folder_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, num_hidden_layers=1)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


SIZES = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 32}


def _tokenizer():
    return tokenizer_of(["<unk>", "</s>", "a", "b"])


@pytest.fixture
def broken(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "broken")


def refused(spec):
    with pytest.raises(ModelError) as caught:
        load(str(spec))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_folder_gives_a_model_in_the_dtype_asked_for(saved, dtype, capfd):
    model, tokenizer = load(str(saved), "cpu", dtype)
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert not model.training
    assert tokenizer("a b")["input_ids"] == [2, 3]
    assert capfd.readouterr() == ("", "")


def test_auto_keeps_the_dtype_of_the_files(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, num_hidden_layers=1))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    assert load(str(tmp_path), "cpu", "auto")[0].dtype == torch.bfloat16


def test_an_encoder_decoder_comes_with_its_head(tmp_path):
    config = BartConfig(
        vocab_size=8, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    assert isinstance(load(str(tmp_path))[0], BartForConditionalGeneration)


def test_a_built_in_name_goes_before_everything_else(saved, monkeypatch):
    monkeypatch.setattr(loading, "BUILT_IN", {"mine": lambda dtype: load(str(saved), dtype="float32")})
    assert load("mine")[0].config.vocab_size == 4


def test_a_built_in_model_that_is_missing(monkeypatch):
    def absent(dtype):
        raise FileNotFoundError("its folder holds\nno model")

    monkeypatch.setattr(loading, "BUILT_IN", {"mine": absent})
    assert "'mine' cannot be loaded (its folder holds" in refused("mine")


def test_folders_that_are_not_there_or_hold_no_model(tmp_path):
    assert "no such folder" in refused(tmp_path / "absent")
    assert "no config.json" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refused(tmp_path)
    assert "is a file" in refused(tmp_path / "adapter_config.json")
    assert "empty" in refused("")


@pytest.mark.parametrize(
    ("name", "message"), [("~nobody-is-called-so/x", "there is no such f"), ("x" * 300, "cannot be read (")]
)
@pytest.mark.parametrize("end", ["", ".gguf"])
def test_names_that_no_file_can_have(name, message, end):
    assert message in refused(name + end)


def test_an_adapter_beside_the_weights_is_no_part_of_the_model(broken):
    (broken / "adapter_config.json").write_text("{}")
    assert "a LoRA adapter lies beside its weights" in refused(broken)


def test_an_adapter_beside_the_weights_of_a_fetched_model(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("DECODING_CACHE", str(tmp_path))
    folder = shutil.copytree(saved, folder_of("smollm2-135m"))
    load("smollm2-135m")
    (folder / "adapter_config.json").write_text("{}")
    assert "smollm2-135m: a LoRA adapter lies beside its weights" in refused("smollm2-135m")


def test_an_adapter_beside_the_weights_of_a_model_on_the_hub(saved, tmp_path, monkeypatch):
    """From the hub's cache, as it is after a download: names lead to snapshots of a commit."""
    repository = tmp_path / "models--someone--tiny"
    folder = shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load("someone/tiny")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/other"}')
    assert "someone/tiny: a LoRA adapter lies beside its weights on the hub" in refused("someone/tiny")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no-such-type"}', "\x00\x01"])
def test_a_config_that_cannot_be_read(broken, content):
    (broken / "config.json").write_text(content)
    assert str(broken) in refused(broken)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_weights_that_cannot_be_read(broken, content):
    (broken / "model.safetensors").write_bytes(content)
    assert "weights cannot be loaded" in refused(broken)


def test_weights_that_are_missing(broken):
    (broken / "model.safetensors").unlink()
    assert "weights cannot be loaded" in refused(broken)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"hidden_size": 16}])
def test_weights_that_do_not_fit_the_config(broken, change):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    assert "weights" in refused(broken)


def test_a_model_type_without_a_text_head(broken):
    (broken / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "a vit model has no head that generates text" in refused(broken)


def test_a_folder_without_a_tokenizer(broken):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    assert "tokenizer" in refused(broken)


def test_a_hub_name_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert "out of reach; did you mean expert? known by name: " in refused("exprt")
    assert "no folder of this name" in refused("someone/no-such-model")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "tpu9"}, "must be one of cpu"), ({"device": "cuda:99"}, "cpu"), ({"dtype": "int8"}, "float32")],
)
def test_devices_and_dtypes_that_are_not_there(saved, options, message):
    with pytest.raises(OptionError, match=message):
        load(str(saved), **options)
