"""Texts of evaluations by vLLM: ``--engine vllm``."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from decoding.errors import OptionError
from decoding.evals.engine.task import Shard
from decoding.serving.vllm.engine import require_vllm
from decoding.serving.vllm.offline import load_llm
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests import (
    PLAIN,
    REQUESTS,
    STRATEGY,
    ContrastiveSearchRequest,
    requested,
)
from decoding.strategies.baselines import Greedy, Sampling
from decoding.strategies.parameters_text import as_json, from_text, named_values
from decoding.strategies.registry import StrategySpec

if TYPE_CHECKING:
    from vllm import LLM

__all__ = ["VllmTexts", "asked_of_vllm", "vllm_texts"]

# Those whose requests are made of the strategy alone: a second prompt is made of each document.
SERVED = [name for name, request in REQUESTS.items() if not request.text_fields]
SAMPLING = ("temperature", "top_k", "top_p")  # parameters that vLLM has under the same names


class VllmTexts:
    """An engine that continues prompts. It starts with the first of them.

    Args:
        start: starts it.
    """

    def __init__(self, start: Callable[[], LLM]) -> None:
        self._start = start

    @functools.cached_property
    def llm(self) -> LLM:
        """The engine, whose requests may have the strategies that it was started for."""
        return self._start()

    @property
    def identity(self) -> dict[str, str]:
        """What texts depend on beside the model and the strategy; JSON-able."""
        packages = metadata.packages_distributions().get("vllm", ["vllm"])
        return {"name": "vllm", "version": metadata.version(packages[0])}

    def tokens(
        self, spec: StrategySpec, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int,
        stop: Sequence[str],
    ) -> list[list[int]]:  # fmt: skip
        """The new tokens after each prompt of token ids, up to an end token or a stop string.

        Args:
            spec: one that :func:`vllm_texts` was given.
            prompts: token ids.
            seeds: of the random draws, one for each prompt.
            max_new_tokens: at most.
            stop: strings that end a text.
        """
        from vllm import SamplingParams

        options, fields, _ = asked_of_vllm(spec)
        params = [
            SamplingParams(
                **options, seed=seed if spec.is_stochastic else None, max_tokens=max_new_tokens, stop=list(stop),
                extra_args=dict(fields),
            )
            for seed in seeds
        ]  # fmt: skip
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [list(made.outputs[0].token_ids) for made in self.llm.generate(asked, params, use_tqdm=False)]


def vllm_texts(name: str, specs: Sequence[StrategySpec], model: Any, engine_options: Sequence[str] = ()) -> VllmTexts:
    """Prepare an engine for the strategies of an evaluation, with the amateur and the lower layers that they read.

    Args:
        name: of the model.
        specs: the strategies.
        model: the same model, loaded by transformers; the engine has its dtype.
        engine_options: of ``vllm.LLM``, as ``name=value``.

    Raises:
        OptionError: vLLM is not installed or cannot serve a strategy, strategies with several amateurs, or several
            processes.
    """
    require_vllm()
    if Shard.of_environment().world > 1:
        raise OptionError(
            "--engine vllm shares out the work itself: run it without torchrun or srun, on several GPUs with "
            "--engine-option tensor_parallel_size=N"
        )
    asked = [asked_of_vllm(spec) for spec in specs]
    amateurs = sorted({str(amateur) for *_, amateur in asked if amateur is not None})
    if len(amateurs) > 1:
        raise OptionError(
            f"--engine vllm reads one amateur, and the strategies name {', '.join(amateurs)}: evaluate them apart"
        )
    config = model.config.get_text_config()
    depth, tied = config.num_hidden_layers, bool(getattr(config, "tie_word_embeddings", False))
    every = EngineReaders.of_everything(depth, tied)
    requests = [requested(fields, every) for _, fields, _ in asked]
    layers = sorted({layer for request in requests if request is not None for layer in request.layers_read})
    candidates = max(
        [request.top_k for request in requests if isinstance(request, ContrastiveSearchRequest)], default=0
    )
    options = {
        option: from_text(f"--engine-option {option}", value, bool | int | float | str)
        for option, value in named_values("--engine-option", engine_options, "gpu_memory_utilization=0.5").items()
    }
    # Results go to standard output, where vLLM's messages go unless it is told otherwise before it is imported.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    options = {"dtype": str(model.dtype).removeprefix("torch."), **options}
    amateur = amateurs[0] if amateurs else None
    return VllmTexts(lambda: load_llm(name, amateur=amateur, layers=layers, candidates=candidates, **options))


def asked_of_vllm(spec: StrategySpec) -> tuple[Mapping[str, Any], dict[str, Any], Any]:
    """What vLLM is asked for a strategy: options of ``SamplingParams``, the fields of the request, and the amateur.

    Raises:
        OptionError: vLLM does not have the strategy, or one of its parameters.
    """
    strategy = spec.strategy
    if isinstance(strategy, Greedy):
        return {"temperature": 0.0}, {STRATEGY: PLAIN}, None
    parameters = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy) if field.repr}
    defaults = {field.name: field.default for field in dataclasses.fields(strategy)}
    if isinstance(strategy, Sampling):
        known: Sequence[str] = SAMPLING
    elif spec.name in SERVED:
        known = [field.name for field in dataclasses.fields(REQUESTS[spec.name])]
    else:
        raise OptionError(f"--engine vllm does not have {spec.name}; expected greedy, sampling, {', '.join(SERVED)}")
    amateur = parameters.pop("amateur", None)
    for name, value in parameters.items():
        if name not in known and value != (1.0 if name == "typical_p" else defaults[name]):
            raise OptionError(f"--engine vllm: {spec.name} has no parameter {name} there; leave out {name}={value}")
    kept = {name: as_json(name, parameters[name]) for name in known}
    if isinstance(strategy, Sampling):
        return kept, {STRATEGY: PLAIN}, None
    return {"temperature": 0.0}, {STRATEGY: spec.name, **kept}, amateur
