"""Every strategy of the registry on a tiny llama, so that tests over all strategies take a new one up unasked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import tiny_model, word_tokenizer

from decoding import (
    LOL,
    AdaptiveContext,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    Documents,
    DoLa,
    Prompt,
    Strategy,
)
from decoding.strategies.named_readers import change_named_readers
from decoding.strategies.registry import example_of, exportable_strategies, parse_strategy

__all__ = ["ADAPTER", "DISTINCT", "EXAMPLES", "HOLDING", "OTHER_INPUTS", "OTHER_MODELS", "adapted", "shared_amateur"]

ADAPTER = "amateur-adapter"  # the example that needs a model with the adapter "liar"


@functools.cache
def shared_amateur() -> Any:
    """The second model of all examples, which is looked at once: calls leave it as it was."""
    return tiny_model("llama", seed=7)


# Those whose examples are made for the embedded models, or whose defaults do little on three layers.
_ON_A_TINY_MODEL: dict[str, Callable[[], Strategy]] = {
    "contrastive-search": ContrastiveSearch,
    "contrastive-decoding": lambda: ContrastiveDecoding(shared_amateur()),
    "dola": lambda: DoLa([1, 2]),
    "context-aware": lambda: ContextAware([7, 8]),
    "lol": lambda: LOL(shared_amateur(), [1], guidance=[5, 6]),
    "adaptive-context": lambda: AdaptiveContext([7, 8]),
    "documents": lambda: Documents([[7, 8], [9, 10, 11]]),
}

OTHER_INPUTS = {"image-contrast", "audio-contrast", "source-contrast"}  # strategies that need more than text
OTHER_MODELS = {"expert-contrast", *OTHER_INPUTS}  # those that no llama can be decoded with


def _example(name: str) -> Callable[[], Strategy]:
    """The strategy with its defaults and the examples that it declares, unless there is one for tiny models.

    Models that it names are a tiny one; texts have a tokenizer of tiny models.
    """

    def make() -> Strategy:
        strategy = parse_strategy(example_of(name)).with_tokenizer(word_tokenizer()).strategy
        given = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
        return type(strategy)(**change_named_readers(type(strategy), given, lambda place, reader: shared_amateur()))

    return _ON_A_TINY_MODEL.get(name, make)


EXAMPLES: dict[str, Callable[[], Strategy]] = {
    **{name: _example(name) for name in exportable_strategies() if name not in OTHER_MODELS},
    "amateur-prompt": lambda: ContrastiveDecoding(Prompt([5, 6])),
    ADAPTER: lambda: ContrastiveDecoding("liar"),
}

# Strategies that say which readers there are and how their scores are added, in a session that they share with
# "weighted-contrast", "contrastive-decoding", "context-aware" and "guidance": with readers that one of these has too.
_CONFIGURATIONS = {
    "adaptive-context", "documents", "masked-heads", "proxy-tuning", "safe-decoding", "skipped-layers",
}  # fmt: skip

# One example for each way to read and to score, for tests of what goes on around a formula, many calls each.
DISTINCT = [name for name in EXAMPLES if name not in _CONFIGURATIONS]

# Of these, those that hold or share something which no other one here does: for tests of what is left of a call, and of
# calls at once. It may be found out about a model or an amateur, an adapter, a second cache, layers read on the way.
HOLDING = [
    name
    for name in DISTINCT
    if name not in ("adaptive-contrastive-search", "amateur-prompt", "guidance", "sled", "top-n-sigma")
]


def adapted(model: Any) -> Any:
    """The model with a random LoRA adapter, "liar"."""
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), "liar")
    return model
