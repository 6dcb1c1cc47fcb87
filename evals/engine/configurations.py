"""Configurations: a strategy with all that decides its numbers, and the hash that its samples are kept under.

What is hashed is what a number depends on beyond rounding: weights, config, tokenizer and chat template, the strategy
with its amateurs, the effective generation config of texts, the task, the versions of this library and of transformers
(whose code the models, ``generate`` and its processors are). Where and how a number is computed is left out: device,
kernel backend, attention, versions of torch and triton, chunks of a prefill, drafts. They change the last bits, and a
run may end on another machine than it began on. Results report them, of the process that wrote them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import transformers

from decoding.errors import OptionError
from decoding.models.devices import input_device
from decoding.models.identity import digest, fingerprint, identity
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.effective_config import effective_config, options_of_folder
from decoding.strategies.generation_options import (
    DRAFTS,
    EVALUATIONS_REFUSE,
    NO_OPTIONS,
    check_apply,
    checked_options,
)
from decoding.strategies.named_readers import change_named_readers
from decoding.strategies.parameters_text import as_results
from decoding.strategies.registry import StrategySpec
from decoding.versions import __version__

__all__ = ["Configuration", "check_distinct", "configured", "described", "digest"]

REPORTED = ("device", "drafts", "folder_generation_config")  # settings that are no part of the hash


@dataclass(frozen=True)
class Configuration:
    """One row of an evaluation's table.

    Attributes:
        spec: the strategy with all its hyper-parameters.
        settings: JSON-able, everything that decides the numbers: strategy, parameters, model, task, seed where
            tokens are sampled, versions; and the device.
        generation_config: options of transformers' ``GenerationConfig`` that were asked for, for texts.
    """

    spec: StrategySpec
    settings: Mapping[str, Any] = field(hash=False)
    generation_config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """Name and parameters of the strategy."""
        return self.spec.label

    @functools.cached_property
    def hash(self) -> str:
        """16 hexadecimal digits, which differ where the settings do. Neither the device is part of them, since a run
        may end on another device than it began on, nor drafts, with which the tokens are the same, nor what a folder
        asks for and is off, nor the names of models and adapters, whose identities are.
        """
        settings = {name: value for name, value in self.settings.items() if name not in REPORTED}
        if "model" in settings:
            settings["model"] = {name: value for name, value in settings["model"].items() if name != "name"}
        if "parameters" in settings:
            settings["parameters"] = _without_names(self.spec, settings["parameters"])
        return digest(settings)

    def seed(self, document: str) -> int:
        """The seed of a document's random draws: the same on every rank, whatever was evaluated before."""
        return int(digest([self.settings.get("seed", 0), document]), 16) % 2**31


def configured(
    specs: Sequence[StrategySpec],
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    task: Mapping[str, Any],
    seed: int = 0,
    generation_config: Mapping[str, Any] | None = NO_OPTIONS,
    engine: Mapping[str, Any] | None = None,
) -> list[Configuration]:
    """The configurations of strategies on one model.

    Args:
        specs: the strategies; each is checked against the model.
        model: a transformers model.
        tokenizer: its tokenizer, for strategies with prompts of their own.
        name: of the model, as the user gave it.
        task: JSON-able settings of the task that bear on its numbers (prompt style, a hash of the data, ...).
        seed: of random draws; part of the settings of strategies that sample.
        generation_config: options of transformers' ``GenerationConfig`` beside the strategy, such as
            ``{"repetition_penalty": 1.2}``. Those of the model's folder that change which tokens are chosen are off
            (:mod:`decoding.strategies.effective_config`). None for a task that reads likelihoods and generates no text.
        engine: JSON-able, what generates texts in place of the model; None for the model itself.

    Raises:
        OptionError: a strategy given twice, parameters that do not fit the model, or options that are unknown, out of
            range, or without effect on every strategy.
        ModelError: an amateur that cannot be loaded.
    """
    check_distinct(specs)
    specs = [spec.with_tokenizer(tokenizer) for spec in specs]
    for spec in specs:
        spec.check(model)
    options = checked_options(generation_config or {}, EVALUATIONS_REFUSE)
    check_apply(options, specs)
    of_weights = functools.cache(fingerprint)  # strategies share models; no weight changes meanwhile
    description = _described(model, name, identity(model, tokenizer, of_weights=of_weights))
    configurations = []
    for spec in specs:
        settings = {
            "strategy": spec.name,
            "parameters": spec.recorded,
            "others": _others(spec, model, of_weights),
            "model": description,
            "device": str(input_device(model)),
            "task": dict(task),
            "version": __version__,
            "transformers": transformers.__version__,
            **({"seed": seed} if spec.is_stochastic else {}),
            **({"engine": dict(engine)} if engine is not None else {}),
        }
        if generation_config is not None:
            effective = effective_config(spec, model, options)
            drafts = {name: effective.pop(name) for name in DRAFTS if name in effective}
            settings |= {"generation_config": effective, **({"drafts": drafts} if drafts else {})}
            settings["folder_generation_config"] = options_of_folder(model)
        configurations.append(Configuration(spec, settings, options))
    _check_hashes(configurations)
    return configurations


def _without_names(spec: StrategySpec, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, without the names of models and adapters in them; ``others`` has their identities."""
    unnamed = change_named_readers(type(spec.strategy), spec.parameters, lambda place, reader: None)
    changed = {name for name, value in unnamed.items() if value is not spec.parameters[name]}
    kept = {name: value for name, value in recorded.items() if name not in changed}
    return kept | {name: as_results(unnamed[name]) for name in changed if unnamed[name] is not None}


def _check_hashes(configurations: Sequence[Configuration]) -> None:
    """Raise OptionError where two strategies are one, whose amateur has two names."""
    known: dict[str, str] = {}
    for configuration in configurations:
        other = known.setdefault(configuration.hash, configuration.label)
        if other != configuration.label:
            raise OptionError(f"--strategy {configuration.label}: is {other} under another name; expected others")


def check_distinct(specs: Sequence[StrategySpec]) -> None:
    """Raise OptionError where a strategy is given twice with the same parameters."""
    labels = [spec.label for spec in specs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise OptionError(f"--strategy {twice}: given twice; expected strategies that differ")


def described(model: Any, name: str, tokenizer: Any = None) -> dict[str, Any]:
    """The description of a model in results, with the digests of :func:`decoding.models.identity.identity`."""
    return _described(model, name, identity(model, tokenizer))


def _described(model: Any, name: str, identified: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": sum(weights.numel() for key, weights in model.named_parameters() if ".lora_" not in key),
        **identified,
    }


def _others(spec: StrategySpec, model: Any, of_weights: Callable[[Any, Any], str]) -> dict[str, Any]:
    """Identities of the other readers of a contrast: an amateur's name does not say which weights it stands for."""
    if not isinstance(spec.strategy, ContrastStrategy):
        return {}
    return {
        reader.role: identity(reader.model or model, adapter=reader.adapter, of_weights=of_weights)
        for reader in spec.strategy.readers(model, 1)
        if reader.model is not None or reader.adapter is not None
    }
