"""Adapters that are attached to a model and detached leave it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_model

import decoding
from decoding import ContrastiveDecoding, ModelError, OptionError
from decoding.models.adapters import adapters_of, attach, detach

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a llama's query projections."""
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    home = tmp_path_factory.mktemp("adapters")
    peft.get_peft_model(tiny_model("llama"), config, adapter_name="liar").save_pretrained(home)
    return home / "liar"


def _state(model: Any) -> dict[str, Any]:
    """All that a call must leave as it was."""
    return {
        "parameters": {name: (id(weight), weight.requires_grad) for name, weight in model.named_parameters()},
        "modules": {name: (type(module), module.training) for name, module in model.named_modules()},
        "hooks": [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks],
        "attributes": sorted(vars(model)),
        "loaded": getattr(model, "_hf_peft_config_loaded", False),
        "config": model.config.to_dict(),
        "generation config": model.generation_config.to_dict(),
        "adapters": adapters_of(model),
    }


def test_a_model_trains_on_with_an_adapter_attached(folder: Path) -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].requires_grad_(False)
    model.model.layers[1].eval()
    before = {id(weight): weight.requires_grad for weight in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    attach(model, folder)
    decoding.generate(model, IDS, strategy=ContrastiveDecoding("liar"), max_new_tokens=2)
    assert {id(weight): weight.requires_grad for weight in model.parameters() if id(weight) in before} == before
    assert {module: module.training for module in modes} == modes
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if "lora_" in name)
    model(IDS, labels=IDS).loss.backward()
    assert model.lm_head.weight.grad is not None
    assert model.model.layers[0].mlp.down_proj.weight.grad is None


def test_a_detached_adapter_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    model = tiny_model("llama").train()
    before, logits = _state(model), model(IDS).logits
    attach(model, folder)
    decoding.generate(model, IDS, strategy=ContrastiveDecoding("liar"), max_new_tokens=2)
    detach(model, "liar")
    assert _state(model) == before
    assert torch.equal(model(IDS).logits, logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(IDS).logits, logits)
    assert attach(model, folder) == "liar"  # and again


def test_an_adapter_that_does_not_fit_leaves_nothing(folder: Path) -> None:
    model = tiny_model("gpt2").train()
    before = _state(model)
    with pytest.raises(ModelError, match="cannot be loaded"):
        attach(model, folder)
    assert _state(model) == before


def test_other_adapters_stay_when_one_is_detached(folder: Path) -> None:
    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]), adapter_name="task")
    before = _state(model)
    attach(model, folder)
    detach(model, "liar")
    assert _state(model) == before
    assert wrapped.active_adapter == "task"


def test_only_attached_adapters_are_detached() -> None:
    with pytest.raises(OptionError, match="adapter 'liar': none of this name was attached"):
        detach(tiny_model("llama"), "liar")
