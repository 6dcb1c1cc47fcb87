"""Strategies, prompts and scripts of tests that hold calls with drafts to the same calls without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from scripted_drafts import drafted
from tiny_models import left_padded, random_prompt, tiny_model
from tiny_strategies import ADAPTER, EXAMPLES, adapted
from torch import Tensor

import decoding
from decoding import FSD, LOL, ContrastiveDecoding, ContrastiveSearch, DoLa
from decoding.strategies.model_logits import ModelLogits

__all__ = [
    "ENDING", "NEW", "PROMPTS", "SCRIPTS", "STRATEGIES", "amateur", "llama", "model_of", "plain", "plain_text",
    "with_script",
]  # fmt: skip

NEW = 10
PROMPTS = [random_prompt(5, 1), random_prompt(13, 2), random_prompt(2, 3), random_prompt(8, 4)]
ENDING = ["greedy", "contrastive-decoding", "contrastive-search"]  # a session of each kind
SCRIPTS: list[tuple[int | str, dict[str, Any]]] = [
    (1, {"wrong": 0.3}),
    (3, {"wrong": 0.2, "seed": 5}),  # rows take each number of tokens in a round
    ("auto", {"wrong": 0.05}),
    (4, {"wrong": 0.0, "short": 0.0}),
]


@functools.cache
def amateur() -> Any:
    """A model of the same tokens."""
    return tiny_model("llama", seed=7)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "greedy": ModelLogits,
    **EXAMPLES,
    "log-probs": lambda: ContrastiveDecoding(amateur(), form="log_probs", alpha=0.3),
    "last-token": lambda: ContrastiveDecoding(amateur(), amateur_context="last_token"),
    "dola-high": lambda: DoLa("high"),
    "lol-entropy": lambda: LOL(amateur(), [0.5], fusion="entropy"),
    "fsd-4": lambda: FSD(0.5, 5, n=4),
    "window": lambda: ContrastiveSearch(0.5, 6, max_history=5),
}

STRATEGIES = {name: functools.cache(make) for name, make in STRATEGIES.items()}  # a new amateur would be checked again


@functools.cache
def llama() -> Any:
    """The model of most calls."""
    return tiny_model("llama")


@functools.cache
def _with_adapter() -> Any:
    return adapted(tiny_model("llama"))


def model_of(name: str) -> Any:
    """The model that a strategy is tried with."""
    return _with_adapter() if name == ADAPTER else llama()


def plain(model: Any, inputs: Any, **options: Any) -> Any:
    """What a call gives, of :data:`NEW` tokens if it does not say more."""
    return decoding.generate(model, **inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})


@functools.cache
def plain_text(name: str, rows: int) -> Tensor:
    """(rows, tokens) what a strategy writes after the first prompts without drafts; several tests hold others to it."""
    return plain(model_of(name), left_padded(PROMPTS[:rows]), strategy=STRATEGIES[name]())


def with_script(model: Any, sequences: Tensor, inputs: Any, **options: Any) -> Any:
    """What :func:`plain` gives with scripted drafts, and these; see :func:`scripted_drafts.drafted`."""
    return drafted(model, sequences, inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
