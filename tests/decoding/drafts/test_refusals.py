"""What drafts cannot stand beside, and what is no drafts: one clear line each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import LLAMA_LIKE, left_padded, random_prompt, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import decoding
from decoding import (
    FSD,
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DecodingError,
    DoLa,
    InputError,
    ModelError,
    OptionError,
    Prompt,
)
from decoding.evals import miniature
from decoding.strategies.model_logits import ModelLogits

INPUTS = left_padded([random_prompt(5, 1), random_prompt(9, 2)])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def _refused(model: Any, kind: type[DecodingError], words: str, strategy: Any = None, **options: Any) -> None:
    """Hold a call to an error in one line, which comes before the model is changed in any way."""
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    with pytest.raises(kind, match=words) as error:
        decoding.generate(model, **INPUTS, strategy=strategy or ModelLogits(), **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


NO_DRAFTS: dict[str, tuple[Any, str]] = {
    "a list": (["exit:2"], "drafts=.*: must be"),
    "no such exit": ("exit:0", "drafts=exit:0: the model has 3 layers; must be exit:1 to exit:2"),
    "the whole model": ("exit:3", "exit:1 to exit:2"),
    "too many layers": ("exit:99", "exit:1 to exit:2"),
    "no number": ("exit:x", "drafts='exit:x': must end with how many layers"),
    "a share": ("exit:0.5", "must end with how many layers"),
    "another script's digits": ("exit:²", "must end with how many layers"),
}


@pytest.mark.parametrize("name", NO_DRAFTS)
def test_no_drafts(name: str, model: Any) -> None:
    drafts, words = NO_DRAFTS[name]
    _refused(model, OptionError, words, drafts=drafts)
    _refused(model, OptionError, words, drafts=drafts, strategy=ContrastiveSearch())


@pytest.mark.parametrize("name", ["look-up", "prompt_lookup", "./nowhere", "liar"])
def test_unknown_names(name: str, model: Any) -> None:
    _refused(model, ModelError, re.escape(name), drafts=name)


def test_amateurs_of_strategies_that_have_none(model: Any) -> None:
    for strategy in (ModelLogits(), ContextAware([7]), DoLa([1]), FSD(), ContrastiveSearch()):
        _refused(model, OptionError, "drafts=amateur: this strategy has no amateur", strategy, drafts="amateur")


def test_assistants_that_do_not_fit(model: Any) -> None:
    _refused(model, OptionError, "the generating model itself", drafts=model)
    _refused(model, OptionError, r"drafts=T5ForConditionalGeneration: must be", drafts=tiny_model("t5"))
    _refused(model, ModelError, "the assistant is a Linear, which generates no text", drafts=torch.nn.Linear(2, 2))
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "vocab_size": 300}))
    _refused(model, ModelError, "assistant: its vocabulary has 300 tokens and the expert's 120", drafts=other)
    _refused(model, ModelError, "MambaForCausalLM cannot read drafts", drafts=tiny_model("mamba"))
    narrow = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "max_position_embeddings": 8}))
    _refused(model, InputError, "9 tokens, which with 4 new ones is more than the context of 8", drafts=narrow)


def test_an_assistant_with_another_tokenizer() -> None:
    expert, tokenizer = miniature.load("expert")
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "vocab_size": expert.config.vocab_size * 2}))
    inputs = tokenizer("The town", return_tensors="pt")
    with pytest.raises(ModelError, match=r"assistant: its vocabulary has \d+ tokens"):
        decoding.generate(expert, **inputs, drafts=other, max_new_tokens=3)


def _cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
    "captured steps": ({"compile": True}, "draft_tokens=auto .*compile=True .*give that number"),
    "no cache": ({"use_cache": False}, "use_cache=False: .* cannot read drafts without a cache"),
    "beams": ({"num_beams": 2}, "num_beams=2"),
    "synced gpus": ({"synced_gpus": True}, "synced_gpus"),
    "static cache": ({"cache_implementation": "static"}, "shared prefix|static"),
    "assisted decoding": ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    "an assistant model": ({"assistant_model": "amateur"}, "assistant_model"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_drafts_cannot_stand_beside(name: str, model: Any) -> None:
    options, words = BESIDE[name]
    if "assistant_model" in options:
        options = {"assistant_model": tiny_model("llama", 3)}
    for strategy in (ModelLogits(), ContrastiveDecoding(Prompt([5, 6])), ContrastiveSearch()):
        _refused(model, DecodingError, words, strategy, drafts="prompt-lookup", **options)


def test_a_quantised_cache(model: Any) -> None:
    pytest.importorskip("optimum.quanto")
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "q_group_size": 16}}
    for strategy in (ModelLogits(), ContrastiveSearch()):
        _refused(model, ModelError, "drafts: a quantised cache has packed", strategy, drafts="exit:2", **quantised)


def test_rows_that_share_a_layer(model: Any) -> None:
    shared = DoLa([1, 2], per_row=False)
    _refused(
        model, OptionError, "drafts: with per_row=False the rows of a batch share a layer", shared, drafts="exit:2"
    )
    one = {name: values[:1] for name, values in INPUTS.items()}
    options: dict[str, Any] = {"strategy": shared, "max_new_tokens": 6, "do_sample": False}
    expected = decoding.generate(model, **one, **options)
    assert torch.equal(decoding.generate(model, **one, drafts="exit:2", **options), expected)


def test_drafts_of_embeddings(model: Any) -> None:
    embedded = {"inputs_embeds": model.get_input_embeddings()(INPUTS["input_ids"]).detach()}
    embedded["attention_mask"] = INPUTS["attention_mask"]
    with pytest.raises(OptionError, match="who drafts reads tokens, and the prompt is embeddings"):
        decoding.generate(model, **embedded, strategy=ModelLogits(), drafts="exit:2", max_new_tokens=3)


def test_strategies_that_refuse_come_first(model: Any) -> None:
    """A strategy that does not fit the model says so, with drafts as without."""
    calls: list[Callable[..., Any]] = [lambda **more: decoding.generate(model, **INPUTS, max_new_tokens=3, **more)]
    for strategy in (DoLa([9]), LOL(tiny_model("llama", 7), [9]), ContrastiveSearch(top_k=500)):
        messages = []
        for more in ({}, {"drafts": "exit:2"}):
            with pytest.raises(OptionError) as error:
                calls[0](strategy=strategy, **more)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
