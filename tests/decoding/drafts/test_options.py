"""What calls, generation configs and pipelines say of drafts, and which of them is heeded."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from opened_drafts import opened_drafts
from transformers import GenerationConfig, pipeline

import decoding
from decoding import ContextAware, ContrastiveSearch, OptionError
from decoding.drafts.options import DraftOptions, draft_options, names_model
from decoding.evals import miniature

NEW = 8
CONTEXT = "The Fermar bear eats honey.\n\n"
LOOKUP = DraftOptions("prompt-lookup", 4)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return miniature.load("expert")


def expert_with(loaded: tuple[Any, Any], **options: Any) -> Any:
    """The expert, whose own generation config has these options."""
    model = copy.copy(loaded[0])
    model.generation_config = copy.deepcopy(model.generation_config)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    return model


def prompt_of(tokenizer: Any) -> Any:
    return tokenizer("Q: What does the Fermar bear eat?\nA:", return_tensors="pt")


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drafts", "tokens", "options"),
    [
        (None, None, None), ("none", None, None), ("none", 4, None), ("prompt-lookup", np.int64(4), LOOKUP),
        ("exit:2", "auto", DraftOptions("exit:2", None)), ("amateur", None, DraftOptions("amateur", None)),
        (Path("some/folder"), 1, DraftOptions("some/folder", 1)),
    ],
)  # fmt: skip
def test_values_are_read(drafts: Any, tokens: Any, options: DraftOptions | None) -> None:
    assert draft_options(drafts, tokens) == options


@pytest.mark.parametrize(
    ("drafts", "tokens", "message"),
    [
        ("", None, r"drafts='': must be prompt-lookup, amateur .*, exit:LAYER, or a model"),
        (3, None, r"drafts=3: must be prompt-lookup"),
        (True, None, r"drafts=True: must be"),
        ("exit:", None, r"drafts='exit:': must end with how many layers are read, such as exit:8"),
        ("exit:-1", None, r"drafts='exit:-1': must end with"),
        (None, 4, r"draft_tokens=4: no drafts are asked for; pass drafts as well: prompt-lookup"),
        ("prompt-lookup", 0, r"draft_tokens=0: must be a whole number from 1, or auto"),
        ("prompt-lookup", 2.5, r"draft_tokens=2.5: must be a whole number from 1, or auto"),
        ("prompt-lookup", True, r"draft_tokens=True: must be a whole number"),
        ("prompt-lookup", "4", r"draft_tokens='4': must be a whole number from 1 on, or auto"),
    ],
)
def test_other_values_are_refused_in_one_line(drafts: Any, tokens: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        draft_options(drafts, tokens)
    assert "\n" not in str(error.value)


def test_the_call_goes_before_its_config_and_that_before_the_models() -> None:
    config, own = SimpleNamespace(draft_tokens=2), SimpleNamespace(drafts="exit:1", draft_tokens=8)
    assert draft_options(None, None, config, own) == DraftOptions("exit:1", 2)
    assert draft_options("prompt-lookup", 4, config, own) == LOOKUP
    assert draft_options("none", None, config, own) is None


def test_only_other_texts_name_a_model() -> None:
    assert not any(map(names_model, ("prompt-lookup", "amateur", "exit:3", "none", None, torch.nn.Linear(1, 1))))
    assert names_model("smollm2-135m")
    assert names_model("./exit")


# --- generation configs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", [None, ContrastiveSearch(), ContextAware(CONTEXT)], ids=lambda given: type(given).__name__
)
def test_a_generation_config_acts_in_every_way_in(loaded: tuple[Any, Any], strategy: Any) -> None:
    model, tokenizer = loaded
    inputs = prompt_of(tokenizer)
    if strategy is not None:
        strategy = strategy.with_tokenizer(tokenizer)
    config = GenerationConfig(max_new_tokens=NEW, drafts="prompt-lookup", draft_tokens=4)
    plain = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW)
    own = expert_with(loaded, drafts="prompt-lookup", draft_tokens=4)
    with opened_drafts() as opened:
        assert decoding.generate(model, **inputs, strategy=strategy, generation_config=config).equal(plain)
        assert decoding.generate(own, **inputs, strategy=strategy, max_new_tokens=NEW).equal(plain)
        assert decoding.generate(
            own, **inputs, strategy=strategy, generation_config=GenerationConfig(max_new_tokens=NEW)
        ).equal(plain)
        assert opened == [LOOKUP] * 3
        if strategy is not None:
            assert model.generate(**inputs, custom_generate=strategy, generation_config=config).equal(plain)
            assert own.generate(**inputs, custom_generate=strategy, max_new_tokens=NEW, draft_tokens=2).equal(plain)
            assert opened[3:] == [LOOKUP, DraftOptions("prompt-lookup", 2)]
    with opened_drafts() as opened:
        assert decoding.generate(own, **inputs, strategy=strategy, max_new_tokens=NEW, drafts="none").equal(plain)
    assert opened == []


def test_a_generation_config_keeps_drafts_when_saved(tmp_path: Path) -> None:
    GenerationConfig(drafts="exit:2", draft_tokens="auto").save_pretrained(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert draft_options(None, None, config) == DraftOptions("exit:2", None)


def test_a_model_is_passed_to_the_call_and_not_in_a_config(loaded: tuple[Any, Any]) -> None:
    """Configs are copied for each call, and a model in one would be as well."""
    model, tokenizer = loaded
    config = GenerationConfig(max_new_tokens=2, drafts=miniature.load("amateur")[0])
    with pytest.raises(OptionError, match=r"generation_config: drafts=LlamaForCausalLM: .* pass the model as drafts="):
        decoding.generate(model, **prompt_of(tokenizer), generation_config=config)


def test_beams_read_no_drafts(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(OptionError, match="num_beams=2: beam search reads no drafts; leave one of them out"):
        decoding.generate(model, **prompt_of(tokenizer), num_beams=2, drafts="prompt-lookup", max_new_tokens=2)


# --- pipelines -------------------------------------------------------------------------------------------------------


def test_a_pipeline_reads_drafts(loaded: tuple[Any, Any]) -> None:
    """In batches."""
    model, tokenizer = loaded
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["Q: What does the Fermar bear eat?\nA:", "Long ago"]
    search, call = ContrastiveSearch(), {"max_new_tokens": NEW}
    plain = pipe(prompts, batch_size=2, **decoding.pipeline_kwargs(search, **call))
    with opened_drafts() as opened:
        options = decoding.pipeline_kwargs(search, drafts="prompt-lookup", draft_tokens=4, **call)
        assert pipe(prompts, batch_size=2, **options) == plain
        assistant, _ = miniature.load("amateur")
        assert pipe(prompts, batch_size=2, **decoding.pipeline_kwargs(search, drafts=assistant, **call)) == plain
    assert opened == [LOOKUP, DraftOptions(assistant, None)]


def test_wrong_drafts_of_a_pipeline_are_refused_before_it_runs() -> None:
    with pytest.raises(OptionError, match="drafts='exit:x': must end with how many layers"):
        decoding.pipeline_kwargs(ContrastiveSearch(), drafts="exit:x")
    with pytest.raises(OptionError, match="draft_tokens=4: no drafts are asked for"):
        decoding.pipeline_kwargs(ContrastiveSearch(), draft_tokens=4)
