"""LoRA amateurs given as folders: beside adapters of the user's, in threads, in quantised models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model

import decoding
from decoding import ContrastiveDecoding, ModelError
from decoding.models.adapter_folders import load_adapter
from decoding.models.wrappers import unwrapped

peft = pytest.importorskip("peft", reason="needs peft")

IDS = random_ids(2, 6)


def _adapted(name: str, seed: int, model: Any = None) -> Any:
    """A PeftModel with an adapter that says something: fresh LoRA matrices add nothing."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = peft.get_peft_model(model or tiny_model("llama"), config, adapter_name=name).eval()
    torch.manual_seed(seed)
    for parameter_name, parameter in adapted.named_parameters():
        if f".{name}." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("liar", "fool"), 1):
        _adapted(name, seed).save_pretrained(home)
    return [home / "liar", home / "fool"]


@pytest.fixture(scope="module")
def merged(folders: list[Path]) -> list[Any]:
    """The adapters as models of their own."""
    return [_adapted(folder.name, seed).merge_and_unload().eval() for seed, folder in enumerate(folders, 1)]


def _tokens(model: Any, amateur: Any) -> list[list[int]]:
    return decoding.generate(model, IDS, strategy=ContrastiveDecoding(amateur), max_new_tokens=6).tolist()


def _active() -> Any:
    return _adapted("task", 5)


def _inside() -> Any:
    return _adapted("task", 5).get_base_model()


def _disabled() -> Any:
    model = _adapted("task", 5)
    model.base_model.disable_adapter_layers()
    return model


def _second_of_two() -> Any:
    model = _adapted("other", 7)
    model.add_adapter("task", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("task")
    return model


def _same_name() -> Any:
    return _adapted("liar", 6)


@pytest.mark.parametrize("make", [_active, _inside, _disabled, _second_of_two, _same_name])
def test_the_amateur_is_the_base_model_with_its_adapter_alone(
    make: Callable[[], Any], folders: list[Path], merged: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """The adapters of the user's own stay the expert's, and act no longer where they are disabled."""
    model = make()
    logits = model(IDS).logits
    expected = _tokens(model, merged[0])
    assert _tokens(model, str(folders[0])) == expected != _tokens(tiny_model("llama", seed=3), merged[0])
    assert torch.equal(model(IDS).logits, logits)
    assert "MISSING" not in "".join(capfd.readouterr())  # what peft and transformers say of the user's own


def test_adapters_that_are_merged_between_two_calls_are_refused(folders: list[Path]) -> None:
    model = _active()
    first = _tokens(model, str(folders[0]))
    model.merge_adapter()
    with pytest.raises(ModelError, match=r"merged into its weights.*unmerge_adapter"):
        _tokens(model, str(folders[0]))
    model.unmerge_adapter()
    assert _tokens(model, str(folders[0])) == first


def test_an_adapter_is_loaded_once_for_a_model_and_draws_nothing(folders: list[Path]) -> None:
    model = tiny_model("llama")
    before = torch.get_rng_state()
    loaded = load_adapter(model, folders[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert load_adapter(model, folders[0]) is loaded
    assert not any(weights.requires_grad for _, weights in loaded.named_weights())


def test_threads_generate_with_other_adapters_on_one_model(folders: list[Path], merged: list[Any]) -> None:
    model = tiny_model("llama")
    amateurs = [str(folder) for folder in folders] * 2
    expected = [_tokens(model, amateur) for amateur in merged] * 2
    plain = model.generate(IDS, max_new_tokens=6, do_sample=False).tolist()
    found: dict[int, Any] = {}
    start = threading.Barrier(len(amateurs) + 1)

    def call(i: int) -> None:
        start.wait()
        found[i] = [_tokens(model, amateurs[i]) for _ in range(2)]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(amateurs))]
    for thread in threads:
        thread.start()
    start.wait()
    beside = [model.generate(IDS, max_new_tokens=6, do_sample=False).tolist() for _ in range(2)]
    for thread in threads:
        thread.join()
    assert beside == [plain] * 2
    assert [found[i] for i in range(len(amateurs))] == [[tokens] * 2 for tokens in expected]
    assert expected[0] != expected[1]


def test_an_adapter_is_beside_a_quantised_model(folders: list[Path]) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    model = tiny_model("llama")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    greedy = model.generate(IDS, max_new_tokens=10, do_sample=False).tolist()
    tokens = _tokens(model, str(folders[0]))
    assert model.generate(IDS, max_new_tokens=10, do_sample=False).tolist() == greedy != tokens
    on_it = tiny_model("llama")
    quanto.quantize(on_it, weights=quanto.qint8)
    quanto.freeze(on_it)
    on_it.load_adapter(str(folders[0]), "liar")
    assert _tokens(on_it, "liar") == tokens
    assert unwrapped(model) is model
