"""A model, the strategies, and the check that a call leaves the model as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from model_state import FUSE, PROMPTS, changed, random_state, state_of
from torch import Tensor

from decoding.evals import miniature
from decoding.strategies.registry import StrategySpec, parse_strategy


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return miniature.load("expert")[1]


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded expert in training: some parameters are frozen, some modules in evaluation mode, one has a hook."""
    model, _ = miniature.load("expert")
    model.generation_config.eos_token_id = None
    model.train()
    model.model.layers[0].requires_grad_(False).eval()
    model.model.layers[-1].register_forward_hook(FUSE)
    return model


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """How the last check found the model: so it must still be as the next begins."""
    return []


@pytest.fixture
def leaves_as_before(model: Any, seen: list[dict[str, Any]]) -> Iterator[Callable[..., None]]:
    """A function that runs a call and checks that it left the model as before."""

    def check(call: Callable[[], Any], draws: bool = False) -> None:
        before, numbers = seen.pop() if seen else state_of(model), random_state()
        call()
        after = state_of(model)
        assert changed(before, after) == set()
        seen.append(after)
        if not draws:
            assert changed(numbers, random_state()) == set()

    yield check
    FUSE.passes = 0


@pytest.fixture
def spec(request: pytest.FixtureRequest, tokenizer: Any) -> StrategySpec:
    return parse_strategy(request.param).with_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> dict[str, Tensor]:
    encoding = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}
