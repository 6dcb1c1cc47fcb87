"""What an engine of vLLM is started with, and what is imported for it."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.cache_utils  # noqa: F401 - before a fork, which need not import it again
from forked_process import forget, forked

from decoding.errors import OptionError
from decoding.serving.vllm.requests import ContrastiveDecodingRequest, DoLaRequest, LOLRequest
from decoding.serving.vllm.settings import EngineReaders, Settings, settings_of

CONFIG = SimpleNamespace(num_hidden_layers=12, tie_word_embeddings=False)
TIED = SimpleNamespace(num_hidden_layers=12, tie_word_embeddings=True)
AMATEUR = SimpleNamespace(num_hidden_layers=3)


@pytest.mark.parametrize(
    ("given", "config", "layers"),
    [
        ({}, CONFIG, (6, 8, 10)),
        ({"layers": []}, CONFIG, ()),
        ({"layers": [3, 0.5, 3]}, CONFIG, (3, 6)),
        ({"layers": "0.25; 11"}, CONFIG, (3, 11)),
        ({"layers": 5}, CONFIG, (5,)),
        ({"strategy": "dola"}, CONFIG, (6, 8, 10)),
        ({"strategy": {"strategy": "dola", "layers": "low"}}, CONFIG, (0, 2, 4)),
        ({"strategy": {"strategy": "dola", "layers": "low"}}, TIED, (2, 4)),
        ({"strategy": {"strategy": "dola", "layers": [1]}, "layers": [1, 2]}, CONFIG, (1, 2)),
        ({"strategy": "none"}, CONFIG, ()),
    ],
    ids=repr,
)
def test_an_engine_shows_the_layers_that_are_read(given: dict[str, Any], config: Any, layers: tuple[int, ...]) -> None:
    assert settings_of(given, config).readers.layers == layers


def test_the_engines_own_strategy_has_the_layers_of_the_model() -> None:
    readers = EngineReaders(12, False, (6, 8, 10))
    assert settings_of({}, CONFIG) == Settings(readers, None)
    assert settings_of({"strategy": "dola"}, CONFIG) == Settings(readers, DoLaRequest(layers=(6, 8, 10)))
    own: dict[str, Any] = {"strategy": "contrastive-decoding", "beta": 1}
    settings = settings_of({"amateur": "small", "strategy": own}, CONFIG, AMATEUR)
    assert settings == Settings(EngineReaders(12, False, (), "small"), ContrastiveDecodingRequest(beta=1))
    own = {"strategy": "lol", "lower_layers": [0.5, 11]}
    settings = settings_of({"amateur": "small", "strategy": own}, CONFIG, AMATEUR)
    # The amateur has 3 layers: half its depth, and its last but one.
    assert settings.readers == EngineReaders(12, False, (6, 11), "small", (2, 2))
    assert settings.default == LOLRequest(lower_layers=(6, 11))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": [1]}, "contrast: no setting 'layer'; did you mean layers or amateur? expected one of amateur, "
         "layers, strategy, second_prompts, candidates"),
        ({"amateur": 3}, "contrast: amateur=3: must be the folder or name of a model"),
        ({"amateur": " "}, "contrast: amateur=' ': must be the folder or name of a model"),
        ({"layers": [12]}, "contrast: layers=[12]: the model has 12 layers, and the last is no lower one; must be from "
         "0 to 11"),
        ({"layers": [-1]}, "contrast: layers=[-1]: expected numbers of layers from 0, such as 16, or shares of the "
         "depth between 0 and 1, such as 0.5"),
        ({"layers": "high"}, "contrast: layers=['high']: expected numbers of layers from 0, such as 16, or shares of "
         "the depth between 0 and 1, such as 0.5"),
        ({"layers": {"high": 1}}, "contrast: layers={'high': 1}: expected numbers of layers or shares of the depth, "
         "such as [16, 0.5]"),
        ({"layers": True}, "contrast: layers=True: expected numbers of layers or shares of the depth, such as "
         "[16, 0.5]"),
        ({"strategy": ["dola"]}, "contrast: strategy=['dola']: must be a name, or a request's fields such as "
         '{"strategy": "dola", "alpha": 0.2}'),
        ({"strategy": {"alpha": 0.2}}, "contrast: strategy={'alpha': 0.2}: must be a name, or a request's fields such "
         'as {"strategy": "dola", "alpha": 0.2}'),
        ({"strategy": {"strategy": "dola", "alpha": 2}}, "dola: alpha=2: must be a number from 0 to 1"),
        ({"strategy": {"strategy": "dola", "layers": [12]}}, "dola: layers=(12,): no lower layer 12; must be from 0 to "
         "11"),
        ({"strategy": "contrastive-decoding"}, "contrastive-decoding: this engine has no amateur; start it with one "
         "(\"amateur\": a model's folder or name)"),
        ({"strategy": "dola", "layers": [1]}, "dola: layers='high': this engine shows layers 1 of 0 to 11; start it "
         'with "layers": [1, 6, 8, 10]'),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refusals_say_what_is_accepted(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        settings_of(given, CONFIG)
    assert str(error.value) == message


CHECKS = ("requests", "settings", "rows", "plugin", "architectures")


def test_checks_import_no_model_code() -> None:
    def imported() -> list[str]:
        model_code = ("transformers", "vllm", "triton")
        forget("decoding", *model_code)
        for name in CHECKS:
            importlib.import_module(f"decoding.serving.vllm.{name}")
        return [name for name in model_code if name in sys.modules]

    assert forked(imported) == []


def test_checks_load_beside_a_transformers_that_the_library_refuses() -> None:
    def beside_an_old_one() -> tuple[str, str]:
        forget("decoding")
        sys.modules["transformers"].__version__ = "5.16.0"
        requests, settings, *_ = (importlib.import_module(f"decoding.serving.vllm.{name}") for name in CHECKS)
        engine = settings.settings_of({}, SimpleNamespace(num_hidden_layers=8)).readers
        request = str(requests.requested({"strategy": "dola", "alpha": "0.2"}, engine))
        with pytest.raises(ImportError) as refusal:
            importlib.import_module("decoding.transformers_private")
        return request, str(refusal.value)

    request, refusal = forked(beside_an_old_one)
    assert request == "DoLaRequest(alpha=0.2, layers=(4, 6), divergence='dola', final_norm=False)"
    assert refusal.startswith("decoding needs transformers 5.")
    assert "this is 5.16.0" in refusal
