"""Texts of the page behind `decoding play`, asked for as a visitor does, on the embedded expert."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from decoding.evals import miniature
from decoding.play.playground import Job, Playground
from decoding.play.requests import Progress, TextRequest, Written
from decoding.strategies.registry import parse_strategy

__all__ = ["NEW", "PROMPT", "SPECS", "Held", "failure", "finished", "needs_the_expert", "request", "written"]

PROMPT, NEW = "The old clockmaker", 7
SPECS = (
    "greedy", "nucleus:top_p=0.8", "contrastive-search:top_k=6", "contrastive-decoding:amateur=amateur,beta=1.0",
    "dola:layers=2,3,alpha=0.3", "fsd", "top-n-sigma", "context-aware:context=It was late, and dark.",
)  # fmt: skip

needs_the_expert = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


def request(spec: str = "greedy", **changes: Any) -> TextRequest:
    return TextRequest("expert", parse_strategy(spec), **{"prompt": PROMPT, "max_new_tokens": NEW, **changes})


def finished(job: Job) -> tuple[Progress, ...]:
    return list(job.states())[-1]


def written(playground: Playground, *requests: TextRequest) -> list[Written]:
    states = finished(playground.start("test", requests))
    assert [state.note for state in states if state.failed] == []
    return [state.written for state in states if state.written is not None]


def failure(playground: Playground, wanted: TextRequest) -> str:
    (state,) = finished(playground.start("test", [wanted]))
    assert state.failed
    assert "\n" not in state.note
    return state.note


class Held:
    """A loader whose model waits before a forward pass until it is released; and a count of its passes."""

    def __init__(self, model: Any, tokenizer: Any, passes: int) -> None:
        self.passes = 0
        self.reached = threading.Event()
        self.released = threading.Event()
        self._model, self._tokenizer, self._free = model, tokenizer, passes
        self._hook = model.register_forward_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self.passes += 1
        if self.passes > self._free:
            self.reached.set()
            assert self.released.wait(60)

    def load(self, name: str) -> tuple[Any, Any]:
        """Return the model whatever its name."""
        return self._model, self._tokenizer

    def close(self) -> None:
        """Let the model be as it was."""
        self.released.set()
        self._hook.remove()
