"""A strategy in every form that callers give it, in every public function that takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model

import decoding
from decoding import DoLa, ModelError, OptionError, TopNSigma
from decoding.exported import generate as generate_of_exported
from decoding.generation.strategy import Strategy
from decoding.strategies.baselines import Greedy, Nucleus
from decoding.strategies.given import given_strategy
from decoding.strategies.registry import StrategySpec, parse_strategy

DOLA = [DoLa([1]), "dola:layers=1", parse_strategy("dola:layers=1")]
GREEDY = [Greedy(), "greedy", parse_strategy("greedy")]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return random_ids(1, 4)


def test_each_form_is_the_same() -> None:
    for forms in (DOLA, GREEDY):
        assert len({given_strategy(form) for form in forms}) == 1
    assert given_strategy("dola", {"layers": "1"}) == parse_strategy("dola:layers=1")


@pytest.mark.parametrize("forms", [DOLA, GREEDY], ids=["dola", "greedy"])
def test_functions_take_every_form(forms: list[Any], model: Any, prompt: torch.Tensor) -> None:
    texts = [decoding.generate(model, prompt, strategy=form, max_new_tokens=4).tolist() for form in forms]
    assert texts[0] == texts[1] == texts[2]
    sequences = torch.tensor(texts[0])
    steps = [decoding.explain(model, sequences, form, input_ids=prompt)[0].steps for form in forms]
    assert steps[0] == steps[1] == steps[2]
    assert [step.chosen.token for step in steps[0]] == texts[0][0][4:]
    scores = [decoding.score(model, prompt[0], [[5, 9]], form)[0].tolist() for form in forms]
    assert scores[0] == scores[1] == scores[2]
    with decoding.Scorer(model, prompt[0], forms) as scorer:
        for found in scorer.score([([], [[5, 9]])])[0]:
            assert found[0].normalized.tolist() == pytest.approx(scores[0], abs=1e-4)


def test_as_text_a_sampler_draws_whatever_the_config_says(model: Any, prompt: torch.Tensor) -> None:
    for form, options in (
        ("nucleus:top_p=0.9", {"top_p": 0.9, "top_k": 0}),
        (Nucleus(top_p=0.9), {"top_p": 0.9, "top_k": 0}),
        ("top-n-sigma", {"strategy": TopNSigma(), "top_k": 0}),
    ):
        torch.manual_seed(3)
        drawn = decoding.generate(model, prompt, strategy=form, max_new_tokens=8)
        torch.manual_seed(3)
        assert drawn.equal(decoding.generate(model, prompt, **options, do_sample=True, max_new_tokens=8))
        assert decoding.pipeline_kwargs(form)["do_sample"]
    by_argument = decoding.generate(model, prompt, strategy="nucleus", do_sample=False, max_new_tokens=8)
    assert by_argument.equal(decoding.generate(model, prompt, strategy="greedy", max_new_tokens=8))


def test_a_pipeline_is_given_a_strategy_or_a_baselines_options() -> None:
    assert decoding.pipeline_kwargs("dola:layers=1") == decoding.pipeline_kwargs(DoLa([1]))
    assert decoding.pipeline_kwargs("greedy") == {"do_sample": False, "num_beams": 1}
    assert decoding.pipeline_kwargs("beam:num_beams=3", max_new_tokens=5) == {
        "do_sample": False, "num_beams": 3, "max_new_tokens": 5
    }  # fmt: skip


@pytest.mark.parametrize("given", [0, DoLa, ["dola"], StrategySpec("dola", "dola")], ids=str)
def test_anything_else_is_refused_alike(given: Any, model: Any, prompt: torch.Tensor, tmp_path: Path) -> None:
    for call in (
        lambda: decoding.generate(model, prompt, strategy=given),
        lambda: decoding.explain(model, prompt, given, input_ids=prompt),
        lambda: decoding.score(model, prompt[0], [[5]], given),
        lambda: decoding.pipeline_kwargs(given),
        lambda: decoding.export("expert", given, tmp_path / "folder"),
        lambda: decoding.StrategyLogitsProcessor(given, model),
    ):
        with pytest.raises(OptionError, match="must be a strategy such as decoding") as refused:
            call()
        assert len(str(refused.value)) < 300


def test_an_export_takes_every_form_of_a_strategy_and_no_baseline(tmp_path: Path) -> None:
    for form in DOLA:
        with pytest.raises(ModelError, match="there is no such folder"):  # the strategy passed
            decoding.export("./absent", form, tmp_path / "folder")
    for form in GREEDY:
        with pytest.raises(OptionError, match="strategy greedy: cannot be exported"):
            decoding.export("./absent", form, tmp_path / "folder")


def test_text_contradicts_a_decoding_method_of_the_call(model: Any, prompt: torch.Tensor) -> None:
    for form in ("greedy", "dola:layers=1"):
        with pytest.raises(OptionError, match="custom_generate: would decode in place of"):
            decoding.generate(model, prompt, strategy=form, custom_generate=DoLa([1]), max_new_tokens=2)
    with pytest.raises(OptionError, match="transformers decodes this call: pass strategy="):
        decoding.generate(model, prompt, strategy="greedy", compile=True, max_new_tokens=2)


def test_an_exported_model_loads_no_model_that_text_names(prompt: torch.Tensor) -> None:
    """Servers pass on what their clients send."""
    exported = tiny_model("llama")
    exported.generation_config.decoding_strategy = {"name": "dola", "layers": [1]}
    with pytest.raises(OptionError, match="amateur='/etc' names another model, and an exported model loads none"):
        generate_of_exported(prompt, model=exported, strategy="contrastive-decoding:amateur=/etc", max_new_tokens=2)


def test_a_strategy_is_named_by_its_registered_name() -> None:
    class Own(DoLa):
        pass

    assert isinstance(Own([1]), Strategy)
    assert given_strategy(Own([1])).name == "dola"
    with pytest.raises(OptionError, match="strategy Own: cannot be exported"):
        decoding.export("./absent", Own([1]), "never")
