"""Anything but a generating model, or a tokenizer, is refused in one line by every public function."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import tiny_model
from torch import nn
from transformers import T5EncoderModel

import decoding
from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DoLa,
    ModelError,
    OptionError,
    StrategyLogitsProcessor,
)
from decoding.evals.isotropy import analyse
from decoding.evals.metrics.likelihood import coherence, perplexity
from decoding.induce import Example, induce
from decoding.models.wrappers import check_model, unwrapped
from decoding.text import encoded

IDS = torch.tensor([[5, 6, 7]])

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "gpt2", "model='gpt2': expected a model, not its name"),
    "a path": (lambda: Path("some/folder"), "model='some/folder': expected a model, not its name"),
    "DataParallel": (lambda: nn.DataParallel(tiny_model("llama")), "wrapped in DataParallel, .*give the model inside"),
    "no head": (lambda: tiny_model("llama").model, "is a LlamaModel, which generates no text: expected a model with"),
    "an encoder": (lambda: T5EncoderModel(tiny_model("t5").config), "is a T5EncoderModel, which generates no text"),
    "a plain module": (lambda: nn.Linear(2, 2), "is a Linear, which generates no text"),
    "a pair, as load() returns": (lambda: (tiny_model("llama"), None), "must be a transformers model .* is a tuple"),
    "nothing": (lambda: None, "must be a transformers model .* is a NoneType"),
}

WAYS_IN: dict[str, Callable[[Any], Any]] = {
    "generate": lambda model: decoding.generate(model, IDS, max_new_tokens=1),
    "generate with a strategy": lambda model: decoding.generate(model, IDS, strategy=DoLa([0]), max_new_tokens=1),
    "processor": lambda model: StrategyLogitsProcessor(ContrastiveSearch(), model),
    "named processor": lambda model: decoding.DoLaLogitsProcessor(model, layers=[0]),
    "score": lambda model: decoding.score(model, [5, 6], [[7]]),
    "stream": lambda model: decoding.open_stream(model, input_ids=IDS),
    "explanation": lambda model: decoding.explain(model, IDS, ContrastiveSearch(), input_ids=IDS),
    "induce": lambda model: induce(model, None, [Example("q", "a")], "never-written"),
}


@pytest.mark.parametrize("way_in", WAYS_IN)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_generating_model_is_refused_in_one_line(wrong: str, way_in: str) -> None:
    make, message = WRONG[wrong]
    with pytest.raises(ModelError, match=message) as caught:
        WAYS_IN[way_in](make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["DataParallel", "no head", "an encoder", "a plain module"])
def test_an_amateur_that_generates_no_text_is_refused_in_one_line(wrong: str) -> None:
    make, message = WRONG[wrong]
    with pytest.raises(ModelError, match="the amateur .*" + message):
        decoding.generate(tiny_model("llama"), IDS, strategy=ContrastiveDecoding(make()), max_new_tokens=1)


def test_wrappers_that_generate_are_let_through() -> None:
    model = tiny_model("llama")
    assert unwrapped(model) is model
    assert unwrapped(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))) is model
    check_model(torch.compile(tiny_model("llama")))
    facade = types.SimpleNamespace(generate=functools.partial(model.generate), config=model.config)
    check_model(facade)


PROMPT_LEARNING = {
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
}


def with_virtual_tokens(kind: str) -> Any:
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), PROMPT_LEARNING[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


@pytest.mark.parametrize("way_in", ["processor", "named processor", "score", "stream", "explanation", "induce"])
@pytest.mark.parametrize("kind", PROMPT_LEARNING)
def test_virtual_tokens_are_not_left_out_silently(kind: str, way_in: str) -> None:
    """The model inside would be read without its virtual tokens."""
    with pytest.raises(ModelError, match=f"the model has a {kind} adapter, whose virtual tokens"):
        WAYS_IN[way_in](with_virtual_tokens(kind))


@pytest.mark.skipif(
    Version(transformers.__version__) >= Version("5.24") and Version(peft.__version__) <= Version("0.21.2"),
    reason="peft does not know transformers' new name of the cache: its own generate() loses the virtual tokens",
)
@pytest.mark.parametrize("kind", PROMPT_LEARNING)
def test_generating_reads_the_virtual_tokens(kind: str) -> None:
    model, ids = with_virtual_tokens(kind), torch.tensor([[11, 12, 13, 14]])
    plain = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    greedy = decoding.generate(model, input_ids=ids, strategy=ContrastiveSearch(0.0, 4), max_new_tokens=8)
    assert greedy.tolist() == plain.tolist()
    with model.disable_adapter():
        without = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert without.tolist() != plain.tolist()


NO_TOKENIZERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "expert", "tokenizer='expert': expected a tokenizer, not its name; decoding.load"),
    "a path": (lambda: Path("some/folder"), "tokenizer='some/folder': expected a tokenizer, not its name"),
    "a model": (lambda: tiny_model("llama"), "tokenizer=LlamaForCausalLM.*: must be a tokenizer of transformers"),
    "a class": (lambda: transformers.PreTrainedTokenizerFast, "must be a tokenizer of transformers"),
    "a number": (lambda: 5, "tokenizer=5: must be a tokenizer of transformers"),
    "a function": (lambda: len, "must be a tokenizer of transformers"),
    "the inside of a fast one": (lambda: loaded()[1].backend_tokenizer, "must be a tokenizer of transformers"),
}

WAYS_OF_TOKENIZERS: dict[str, Callable[[Any], Any]] = {
    "a context": lambda tokenizer: ContextAware("a town", tokenizer=tokenizer),
    "an amateur": lambda tokenizer: ContrastiveDecoding("amateur", tokenizer=tokenizer),
    "guidance": lambda tokenizer: LOL("amateur", [1], tokenizer=tokenizer),
    "later": lambda tokenizer: DoLa([0]).with_tokenizer(tokenizer),
    "generate": lambda tokenizer: decoding.generate(loaded()[0], IDS, strategy=DoLa([0]), tokenizer=tokenizer),
    "pipeline_kwargs": lambda tokenizer: decoding.pipeline_kwargs(DoLa([0]), tokenizer=tokenizer),
    "score": lambda tokenizer: decoding.score(loaded()[0], "a", " b", tokenizer=tokenizer),
    "Scorer": lambda tokenizer: decoding.Scorer(loaded()[0], [5], [None], tokenizer=tokenizer),
    "perplexity": lambda tokenizer: perplexity(["a town"], loaded()[0], tokenizer),
    "coherence": lambda tokenizer: coherence(["a"], [" town"], loaded()[0], tokenizer),
    "isotropy": lambda tokenizer: analyse(loaded()[0], tokenizer, ["a town"]),
    "text": lambda tokenizer: encoded(loaded()[0], tokenizer, "a town"),
    "induce": lambda tokenizer: induce(tiny_model("llama"), tokenizer, [Example("a", "b")], "never"),
}


@functools.cache
def loaded() -> Any:
    return decoding.load("amateur")


@pytest.mark.parametrize("wrong", NO_TOKENIZERS)
@pytest.mark.parametrize("way_in", WAYS_OF_TOKENIZERS)
def test_what_cannot_tokenise_is_refused_in_one_line(way_in: str, wrong: str) -> None:
    make, message = NO_TOKENIZERS[wrong]
    with pytest.raises(OptionError, match=message) as raised:
        WAYS_OF_TOKENIZERS[way_in](make())
    assert len(str(raised.value)) < 250


def test_the_tokenizer_in_a_processor_is_taken() -> None:
    model, tokenizer = loaded()

    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    found = ContextAware("In the town ", tokenizer=Processor())
    assert found.tokenizer is tokenizer
    inputs = tokenizer("the old", return_tensors="pt")
    tokens = [
        decoding.generate(model, **inputs, strategy=ContextAware("In the town "), tokenizer=given, max_new_tokens=4)
        for given in (tokenizer, Processor())
    ]
    assert tokens[0].tolist() == tokens[1].tolist()
