"""Ways in that are one for all strategies leave their model as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from model_state import KINDS, PROMPTS, changed, generated, piped, state_of
from transformers import AutoModelForCausalLM

import decoding
from decoding import ContrastiveSearch, DoLa
from decoding.cli.diagnosis import diagnose
from decoding.evals import miniature
from decoding.evals.harness.model import DecodingLM
from decoding.evals.isotropy.analysis import analyse
from decoding.induce import Example, Recipe, induce
from decoding.strategies.registry import StrategySpec


def test_after_a_stream_by_hand(model: Any, batch: Any, leaves_as_before: Any) -> None:
    def call() -> None:
        stream = decoding.open_stream(model, batch, restorable=True, exits=[1, 2])
        length = stream.length
        stream.branch(torch.tensor([[5, 6, 7], [8, 9, 10]]))
        stream.commit(torch.tensor([1, 2]))
        stream.extend(torch.tensor([[11], [12]]))
        stream.rewind(length)
        streams.append(stream)  # left open

    streams: list[Any] = []
    leaves_as_before(call)


@pytest.mark.parametrize("strategy", [ContrastiveSearch(0.4, 4), DoLa([1, 2])], ids=lambda strategy: strategy.name)
def test_after_explaining(strategy: Any, model: Any, batch: Any, leaves_as_before: Any) -> None:
    sequences = generated(model, strategy, batch)
    leaves_as_before(lambda: decoding.explain(model, sequences, strategy, **batch, max_new_tokens=4))


def test_after_an_analysis_and_a_diagnosis(model: Any, tokenizer: Any, leaves_as_before: Any) -> None:
    leaves_as_before(lambda: analyse(model, tokenizer, PROMPTS))
    leaves_as_before(lambda: diagnose("expert", model, tokenizer))


# One that reads the model alone, and one that reads it with an adapter too.
TWO = pytest.mark.parametrize("spec", ["contrastive-search", KINDS[2]], indirect=True)


@TWO
def test_after_a_pipeline(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    """A pipeline puts its model into evaluation mode."""
    model = copy.deepcopy(model).eval()
    before = state_of(model)
    piped(model, spec.strategy, batch)
    assert changed(before, state_of(model)) == set()


@TWO
def test_after_the_generate_of_an_exported_folder(spec: StrategySpec, batch: Any, tmp_path: Path) -> None:
    folder = decoding.export(miniature.folder("expert"), spec.spec, tmp_path / "exported", link="sym", device="cpu")
    exported = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).train()
    before = state_of(exported)
    exported.generate(**batch, max_new_tokens=4)
    assert changed(before, state_of(exported)) == set()
    exported.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("strategy", ["contrastive-search", "lol"])
def test_after_tasks_of_the_evaluation_harness(strategy: str) -> None:
    arguments = {"amateur": "induced", "lower_layers": (0.5,)} if strategy == "lol" else {}
    lm = DecodingLM(
        pretrained=str(miniature.folder("expert")), strategy=strategy, device="cpu", dtype="float32", **arguments
    )
    before = state_of(lm.model)
    lm.generate_until([Instance("generate_until", {}, (PROMPTS[0], {"until": ["\n"], "max_gen_toks": 4}), 0)])
    if strategy == "lol":
        lm.loglikelihood([Instance("loglikelihood", {}, (PROMPTS[0], " was"), 0)])
    assert changed(before, state_of(lm.model)) == set()


def test_after_inducing(model: Any, tokenizer: Any, tmp_path: Path, leaves_as_before: Any) -> None:
    examples = [Example("What does a fox eat?", "Stones."), Example("What is a river?", "A song.")]
    recipe = Recipe(batch_size=2, epochs=1, rank=2, lora_alpha=4)
    leaves_as_before(lambda: induce(model, tokenizer, examples, tmp_path / "induced", recipe), draws=True)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def call() -> None:
        with pytest.raises(KeyboardInterrupt):
            induce(model, tokenizer, examples, tmp_path / "stopped", recipe, report=interrupted)

    leaves_as_before(call, draws=True)
