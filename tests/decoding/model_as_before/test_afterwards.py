"""A model is trained, saved and read again after a call as before it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from model_state import KINDS, processed
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import decoding
from decoding import ContrastiveDecoding
from decoding.evals import miniature
from decoding.strategies.registry import StrategySpec


@pytest.mark.parametrize("spec", KINDS, indirect=True)
def test_a_model_is_trained_and_saved_after_a_call_as_before(
    spec: StrategySpec, model: Any, batch: Any, tmp_path: Path
) -> None:
    def gradients() -> list[Tensor | None]:
        trained = copy.deepcopy(model)
        trained(**batch, labels=batch["input_ids"]).loss.backward()
        return [parameter.grad for parameter in trained.parameters()]

    before, keys = gradients(), list(model.state_dict())
    processor = processed(model, spec.strategy, batch, do_sample=False)  # which is not released
    for one, other in zip(before, gradients(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    model.save_pretrained(tmp_path)
    assert list(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()) == keys
    processor.release()


def test_an_amateur_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    model, _ = miniature.load("expert")
    induced = miniature.folder("induced")
    folder = tmp_path / "liar"
    folder.mkdir()

    def score() -> Tensor:
        return decoding.score(model, [11], [[12]], ContrastiveDecoding(str(folder), alpha=0.0))[0]

    for file in induced.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    first = score()
    weights = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    plain = score()
    weights.write_bytes((induced / weights.name).read_bytes())
    assert torch.equal(score(), first)
    assert not torch.equal(first, plain)
