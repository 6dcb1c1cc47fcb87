"""Every public function with one or two arguments of another kind: a result, or one of the project's errors in a line.

Strings stand for lists, NumPy numbers and tensors for Python numbers, wrapped and half-made things for models.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from mixed_precision import prepared
from tiny_models import VOCAB, random_ids, tiny_model, word_tokenizer
from torch import nn
from transformers import AutoModel, BatchEncoding, PreTrainedTokenizerFast

import decoding
from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DoLa,
    Prompt,
    Scorer,
    StrategyLogitsProcessor,
)
from decoding.errors import DecodingError
from decoding.evals.metrics import multiple_choice
from decoding.evals.metrics.likelihood import coherence, perplexity
from decoding.evals.metrics.overlap import bleu, chrf, rouge, self_bleu
from decoding.evals.metrics.passing import mean_pass_at_k, pass_at_k
from decoding.evals.metrics.repetition import distinct, diversity, repetition
from decoding.induce.recipe import Recipe
from decoding.strategies.registration import StrategyRegistry
from decoding.strategies.registry import STRATEGIES, parse_strategy

DRAWS = 2000

VALUES: list[Any] = [
    None, True, 0, 1, 3, -1, 2.5, 0.5, float("nan"), float("inf"), 3j, "", "the sea the sea", "3", "0.5", b"sea",
    [], [1, 2], (0, 2), ["the sea", "a town"], [None], [[1, 2], [3]], [0.5], [True], {}, {"text": 1}, {1, 2}, object(),
    np.int64(3), np.float32(0.6), np.float16(0.5), np.bool_(True), np.str_("high"), np.array(3), np.array([1, 2]),
    np.array([[1.5]]), np.array(["the sea", "a town"]), np.array([]), torch.tensor(2), torch.tensor(0.5),
    torch.tensor([1, 2]), torch.tensor([[1, 2, 3]]), torch.tensor([[1.5]]), torch.tensor([0.5], dtype=torch.bfloat16),
    torch.empty((), device="meta"), torch.zeros(0, 3, dtype=torch.long), BatchEncoding({"input_ids": [[1, 2]]}),
    BatchEncoding({"input_ids": torch.tensor([[1, 2]])}), Prompt("a town"), Prompt([3, 4]), DoLa([0, 1]), DoLa,
    ContrastiveSearch(), len, torch.ones(1, 2, dtype=torch.complex64), 10**400, 1e300, PreTrainedTokenizerFast,
    {"bias": 2.0, "nope": 1}, "  ", ["", "a town"], {"en": ""}, [[3], []],
]  # fmt: skip


_tokenizer = cache(word_tokenizer)


@cache
def _models() -> list[Any]:
    """Models that generate, and what is taken for one."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    headless = AutoModel.from_config(tiny_model("llama").config)
    return [
        tiny_model("llama"),
        tiny_model("llama").to(torch.bfloat16),
        tiny_model("llama").to(torch.float64),
        tiny_model("mamba"),
        tiny_model("t5"),
        prepared(tiny_model("llama")),
        get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])),
        get_peft_model(tiny_model("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        tiny_model("llama").to("meta"),
        nn.DataParallel(tiny_model("llama")),
        nn.Sequential(tiny_model("llama")),
        headless,
        nn.Linear(2, 2),
        "llama",
        None,
        type(headless),
    ]


def _generate(model: Any, inputs: Any, strategy: Any, tokenizer: Any, attention_mask: Any, compile: Any) -> Any:
    return decoding.generate(
        model, inputs, strategy=strategy, tokenizer=tokenizer, attention_mask=attention_mask, compile=compile,
        max_new_tokens=2, do_sample=False,
    )  # fmt: skip


def _with_options(model: Any, inputs: Any, **options: Any) -> Any:
    given = {name: value for name, value in options.items() if value is not None}
    return decoding.generate(model, inputs, strategy=DoLa([0, 1]), **given)


def _piped(strategy: Any, tokenizer: Any, max_new_tokens: Any) -> Any:
    return decoding.pipeline_kwargs(strategy, tokenizer=tokenizer, max_new_tokens=max_new_tokens)


def _sampled(model: Any, inputs: Any, seeds: Any) -> Any:
    return decoding.generate(model, inputs, seeds=seeds, do_sample=True, max_new_tokens=2)


def _by_arguments(model: Any, inputs: Any, penalty_alpha: Any, top_k: Any) -> Any:
    return decoding.generate(model, inputs, penalty_alpha=penalty_alpha, top_k=top_k, max_new_tokens=2)


def _processed(model: Any, strategy: Any, attention_mask: Any, input_ids: Any, scores: Any) -> Any:
    return StrategyLogitsProcessor(strategy, model, attention_mask=attention_mask)(input_ids, scores)


def _with_inputs(model: Any, **inputs: Any) -> Any:
    return decoding.generate(model, **inputs, strategy=ContrastiveSearch(), max_new_tokens=2)


def _registered(name: Any, strategy_class: Any) -> Any:
    return StrategyRegistry({}).register(name, strategy_class)


def _streamed(model: Any, inputs: Any, restorable: Any, exits: Any, attention_mask: Any) -> Any:
    stream = decoding.open_stream(model, inputs, restorable=restorable, exits=exits, attention_mask=attention_mask)
    return stream.logits(stream.prompt)


def _scored(model: Any, prefix: Any, strategies: Any, prompt: Any, continuations: Any, max_branch_tokens: Any) -> Any:
    with Scorer(model, prefix, strategies, max_branch_tokens=max_branch_tokens) as scorer:
        return scorer.score([(prompt, continuations)])


def _explained(model: Any, sequences: Any, strategy: Any, input_ids: Any, **options: Any) -> Any:
    return decoding.explain(model, sequences, strategy, input_ids=input_ids, **options)


OPTIONS = (
    "generation_config", "stopping_criteria", "streamer", "logits_processor", "compile_config", "watermarking_config",
    "cache_config", "sequence_bias", "bad_words_ids", "suppress_tokens", "exponential_decay_length_penalty",
    "repetition_penalty", "no_repeat_ngram_size", "min_length", "max_time", "eos_token_id", "stop_strings",
    "renormalize_logits", "do_sample", "num_beams", "continuous_batching_config",
)  # fmt: skip
TEXTS = ["w5 w9 w3", "w8 w8 w8 w8"]


def _arguments_of(strategy: type) -> dict[str, Any]:
    """The parameters of a strategy: the examples that it declares, and its defaults."""
    return {
        field.name: field.metadata.get("example") if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(strategy)
    }


# By name: the function, and values for its arguments that go well.
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **{kind.__name__: (kind, _arguments_of(kind)) for kind in map(STRATEGIES.__getitem__, STRATEGIES)},
    "LOL": (LOL, _arguments_of(LOL) | {"amateur": Prompt([3]), "lower_layers": [0.5]}),
    "ContrastiveDecoding": (ContrastiveDecoding, _arguments_of(ContrastiveDecoding) | {"amateur": Prompt([3])}),
    "ContextAware": (ContextAware, _arguments_of(ContextAware) | {"context": [3, 4]}),
    "Recipe": (Recipe, {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, "dropout": 0.0, "template": "{question}"}),
    "parse_strategy": (parse_strategy, {"spec": "dola:alpha=0.2"}),
    "load": (decoding.load, {"spec": "./nowhere", "device": "cpu", "dtype": "float32"}),
    "generate": (
        _generate,
        {"model": None, "inputs": random_ids(1, 5), "strategy": DoLa([0, 1]), "tokenizer": None,
         "attention_mask": None, "compile": False},
    ),
    "generate-with-options": (
        _with_options,
        {"model": None, "inputs": random_ids(1, 5), "max_new_tokens": 2, **dict.fromkeys(OPTIONS)},
    ),
    "pipeline_kwargs": (_piped, {"strategy": DoLa([0, 1]), "tokenizer": "tokenizer", "max_new_tokens": 2}),
    "Prompt": (Prompt, {"text": "a town"}),
    "generate-from-seeds": (_sampled, {"model": None, "inputs": random_ids(1, 5), "seeds": [3]}),
    "generate-by-arguments": (
        _by_arguments, {"model": None, "inputs": random_ids(1, 5), "penalty_alpha": 0.6, "top_k": 4}
    ),
    "logits_processor": (
        _processed,
        {"model": None, "strategy": DoLa([0, 1]), "attention_mask": None, "input_ids": random_ids(1, 4),
         "scores": torch.zeros(1, VOCAB)},
    ),
    "generate-with-inputs": (
        _with_inputs,
        {"model": None, "input_ids": random_ids(1, 5), "inputs_embeds": None, "position_ids": None,
         "past_key_values": None},
    ),
    "register": (_registered, {"name": "contrastive-search", "strategy_class": ContrastiveSearch}),
    "open_stream": (
        _streamed,
        {"model": None, "inputs": random_ids(1, 5), "restorable": False, "exits": [1], "attention_mask": None},
    ),
    "score": (
        decoding.score,
        {"model": None, "prompt": [4, 5], "continuations": [[6], [7, 8]], "strategy": DoLa([0, 1]),
         "normalized": True, "floor": -1000.0},
    ),
    "score-of-text": (
        decoding.score,
        {"model": None, "prompt": "w4 w5", "continuations": TEXTS, "strategy": None, "tokenizer": "tokenizer"},
    ),
    "Scorer": (
        _scored,
        {"model": None, "prefix": [4, 5], "strategies": [None], "prompt": [6], "continuations": [[7]],
         "max_branch_tokens": None},
    ),
    "explain": (
        _explained,
        {"model": None, "sequences": random_ids(1, 6), "strategy": ContrastiveSearch(), "input_ids": random_ids(1, 4),
         "tokenizer": "tokenizer", "alternatives": 5, "draft_record": None},
    ),
    "repetition": (repetition, {"texts": TEXTS, "n": 2, "units": "whitespace", "paper_exact": True}),
    "diversity": (diversity, {"texts": TEXTS, "units": "whitespace", "paper_exact": True}),
    "distinct": (distinct, {"texts": TEXTS, "n": 2, "units": "whitespace"}),
    "bleu": (bleu, {"texts": TEXTS, "references": TEXTS, "tokenize": "13a", "lowercase": False}),
    "chrf": (chrf, {"texts": TEXTS, "references": TEXTS, "word_order": 0}),
    "rouge": (rouge, {"texts": TEXTS, "references": TEXTS, "units": "whitespace"}),
    "self_bleu": (self_bleu, {"texts": TEXTS, "units": "whitespace", "order": 4}),
    "coherence": (
        coherence,
        {"prefixes": TEXTS, "texts": TEXTS, "model": None, "tokenizer": "tokenizer", "max_length": None,
         "tokens_at_once": 64},
    ),
    "perplexity": (
        perplexity,
        {"texts": TEXTS, "model": None, "tokenizer": "tokenizer", "max_length": None, "tokens_at_once": 64},
    ),
    "pass_at_k": (pass_at_k, {"samples": 10, "passed": 1, "k": 5}),
    "mean_pass_at_k": (mean_pass_at_k, {"outcomes": [[True, False]], "k": 1}),
    "mc1": (multiple_choice.mc1, {"best": -1.0, "false": [-2.0]}),
    "mc2": (multiple_choice.mc2, {"true": [-1.0], "false": [-2.0]}),
    "mc3": (multiple_choice.mc3, {"true": [-1.0], "false": [-2.0]}),
}  # fmt: skip

# Truth values, of which any object has one.
TRUSTED = {"restorable", "paper_exact", "lowercase"}


def _drawn(draw: random.Random, name: str) -> dict[str, Any]:
    """Arguments of a function, one or two of them of another kind."""
    arguments = dict(FUNCTIONS[name][1])
    open_to = [argument for argument in arguments if argument not in TRUSTED]
    odd = draw.sample(open_to, k=min(len(open_to), draw.choice([1, 1, 2])))
    for argument in arguments:
        if argument == "model":
            arguments[argument] = draw.choice(_models()) if "model" in odd else _models()[0]
        elif argument in odd:
            arguments[argument] = draw.choice(VALUES)
            if argument == "units" and callable(arguments[argument]):  # the caller's own function
                arguments[argument] = "characters"
        elif argument == "tokenizer" and arguments[argument] == "tokenizer":
            arguments[argument] = _tokenizer()
    return arguments


def outcome(name: str, arguments: dict[str, Any]) -> str:
    """The kind of end of a call: "result", or the name of one of the project's errors; else what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FUNCTIONS[name][0](**arguments)
    except DecodingError as error:
        return (
            type(error).__name__ if str(error) and "\n" not in str(error) else f"{name}: {str(error)!r} is not one line"
        )
    except Exception as error:
        given = ", ".join(f"{key}={str(value)[:60]!r}" for key, value in arguments.items())
        return f"{name}({given}) raised {type(error).__name__}: {error}."
    return "result"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_another_kind_end_in_a_result_or_in_one_line(name: str) -> None:
    draw = random.Random(name)
    torch.manual_seed(0)
    ends = collections.Counter(outcome(name, _drawn(draw, name)) for _ in range(-(-DRAWS // len(FUNCTIONS))))
    broken = [end for end in ends if not (end == "result" or end.endswith("Error"))]
    assert not broken, "\n".join(broken)
