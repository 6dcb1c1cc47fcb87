"""Configurations: a strategy with all that decides its numbers, and the hash that its samples are kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from decoding.errors import OptionError
from decoding.models.adapters import Adapter, LoadedAdapter
from decoding.models.devices import input_device, whole_weights
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.parameters_text import as_results
from decoding.strategies.registry import StrategySpec
from decoding.versions import __version__

__all__ = ["Configuration", "check_distinct", "configured", "described", "fingerprint"]

SAMPLED = 16  # numbers of each weight tensor that its fingerprint is made of


@dataclass(frozen=True)
class Configuration:
    """One row of an evaluation's table.

    Attributes:
        spec: the strategy with all its hyper-parameters.
        settings: JSON-able, everything that decides the numbers: strategy, parameters, model, task, seed where
            tokens are sampled, version of this library.
    """

    spec: StrategySpec
    settings: Mapping[str, Any] = field(hash=False)

    @property
    def label(self) -> str:
        """Name and parameters of the strategy."""
        return self.spec.label

    @property
    def hash(self) -> str:
        """16 hexadecimal digits, which differ where the settings do. The device is no part of them: a run may end on
        another device than it began on.
        """
        return digest({name: value for name, value in self.settings.items() if name != "device"})

    def seed(self, document: str) -> int:
        """The seed of a document's random draws: the same on every rank, whatever was evaluated before."""
        return int(digest([self.settings.get("seed", 0), document]), 16) % 2**31


def configured(
    specs: Sequence[StrategySpec], model: Any, tokenizer: Any, name: str, *, task: Mapping[str, Any], seed: int = 0
) -> list[Configuration]:
    """The configurations of strategies on one model.

    Args:
        specs: the strategies; each is checked against the model.
        model: a transformers model.
        tokenizer: its tokenizer, for strategies with prompts of their own.
        name: of the model, as the user gave it.
        task: JSON-able settings of the task that bear on its numbers (prompt style, a hash of the data, ...).
        seed: of random draws; part of the settings of strategies that sample.

    Raises:
        OptionError: a strategy given twice, or parameters that do not fit the model.
        ModelError: an amateur that cannot be loaded.
    """
    check_distinct(specs)
    specs = [spec.with_tokenizer(tokenizer) for spec in specs]
    for spec in specs:
        spec.check(model)
    description = described(model, name)
    configurations = []
    for spec in specs:
        settings = {
            "strategy": spec.name,
            "parameters": {key: as_results(value) for key, value in spec.parameters.items()},
            "others": _others(spec, model),
            "model": description,
            "device": str(input_device(model)),
            "task": dict(task),
            "version": __version__,
            **({"seed": seed} if spec.is_stochastic else {}),
        }
        configurations.append(Configuration(spec, settings))
    return configurations


def check_distinct(specs: Sequence[StrategySpec]) -> None:
    """Raise OptionError where a strategy is given twice with the same parameters."""
    labels = [spec.label for spec in specs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise OptionError(f"--strategy {twice}: given twice; expected strategies that differ")


def described(model: Any, name: str) -> dict[str, Any]:
    """The description of a model in results."""
    return {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": sum(weights.numel() for key, weights in model.named_parameters() if ".lora_" not in key),
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(model),
    }


@torch.no_grad()
def fingerprint(model: Any, adapter: Adapter | None = None) -> str:
    """16 hexadecimal digits that change with the weights, made of a few numbers from all over each tensor.

    Args:
        model: a transformers model; LoRA adapters on it are left out.
        adapter: one of its LoRA adapters, by name, or one beside it, to take that alone.
    """
    lines = []
    weights_by_name = adapter.named_weights() if isinstance(adapter, LoadedAdapter) else whole_weights(model)
    for name, weights in weights_by_name:
        part = ".lora_" not in name
        if adapter is not None:
            part = isinstance(adapter, LoadedAdapter) or f".{adapter}." in name
        if part:
            places = torch.tensor(_spread(weights.numel()), dtype=torch.long, device=weights.device)
            numbers = weights.flatten()[places].double().cpu()
            plain = name.replace(".base_layer.", ".")  # as it was called before an adapter was put on
            lines.append((name, f"{plain}{tuple(weights.shape)}{numbers.tolist()}"))
    return hashlib.sha256("".join(line for _, line in sorted(lines)).encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _spread(count: int) -> list[int]:
    """``SAMPLED`` indices into ``count`` numbers, evenly spread from the first to the last; none for no numbers.

    Made of integers: float32 does not hold all integers above 2^24, and indices made with it fall past the end.
    """
    return [i * (count - 1) // (SAMPLED - 1) for i in range(SAMPLED)] if count else []


def _others(spec: StrategySpec, model: Any) -> dict[str, str]:
    """Fingerprints of the other readers of a contrast: an amateur's name does not say which weights it stands for."""
    if not isinstance(spec.strategy, ContrastStrategy):
        return {}
    return {
        reader.role: fingerprint(reader.model or model, reader.adapter)
        for reader in spec.strategy.readers(model, 1)
        if reader.model is not None or reader.adapter is not None
    }
