"""What is evaluated: a strategy with all that decides its numbers, and a hash of it that samples are kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from decoding.errors import OptionError
from decoding.models.devices import input_device, whole_weights
from decoding.strategies.contrast.amateurs import Prompt
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.registry import StrategySpec
from decoding.versions import __version__

__all__ = ["Configuration", "check_distinct", "configured", "described", "fingerprint"]

SAMPLED = 16  # numbers of each weight tensor that its fingerprint looks at


@dataclass(frozen=True)
class Configuration:
    """One row of an evaluation's table.

    Attributes:
        choice: the strategy with all its hyper-parameters.
        settings: JSON-able, everything that decides the numbers: strategy, parameters, model, task, seed where
            tokens are drawn, version of this library.
    """

    choice: StrategySpec
    settings: Mapping[str, Any] = field(hash=False)

    @property
    def label(self) -> str:
        """Name and parameters of the strategy."""
        return self.choice.label

    @property
    def hash(self) -> str:
        """16 hexadecimal digits; samples of other settings have another. The device is no part of it: a run may end on
        another one than it began on.
        """
        return digest({name: value for name, value in self.settings.items() if name != "device"})

    def seed(self, document: str) -> int:
        """Of the random draws on one document: the same whatever was evaluated before it, and on whichever rank."""
        return int(digest([self.settings.get("seed", 0), document]), 16) % 2**31


def configured(
    choices: Sequence[StrategySpec], model: Any, tokenizer: Any, name: str, *, task: Mapping[str, Any], seed: int = 0
) -> list[Configuration]:
    """The configurations of strategies on one model.

    Args:
        choices: the strategies; each is checked against the model.
        model: a transformers model.
        tokenizer: its tokenizer, which strategies with texts of their own are given.
        name: of the model, as it was asked for.
        task: JSON-able settings of the task that bear on its numbers (prompt style, a hash of the data, ...).
        seed: of random draws; part of the settings of strategies that draw.

    Raises:
        OptionError: a strategy given twice, or parameters that do not fit the model.
        ModelError: an amateur that cannot be had.
    """
    check_distinct(choices)
    choices = [choice.with_tokenizer(tokenizer) for choice in choices]
    for choice in choices:
        choice.check(model)
    about = described(model, name)
    made = []
    for choice in choices:
        settings = {
            "strategy": choice.name,
            "parameters": {key: _plain(value) for key, value in choice.parameters.items()},
            "others": _others(choice, model),
            "model": about,
            "device": str(input_device(model)),
            "task": dict(task),
            "version": __version__,
            **({"seed": seed} if choice.is_stochastic else {}),
        }
        made.append(Configuration(choice, settings))
    return made


def check_distinct(specs: Sequence[StrategySpec]) -> None:
    """Raise OptionError where a strategy is given twice with the same parameters."""
    labels = [spec.label for spec in specs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise OptionError(f"--strategy {twice}: given twice; expected strategies that differ")


def described(model: Any, name: str) -> dict[str, Any]:
    """What results say of a model."""
    return {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": sum(each.numel() for key, each in model.named_parameters() if ".lora_" not in key),
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(model),
    }


@torch.no_grad()
def fingerprint(model: Any, adapter: str | None = None) -> str:
    """16 hexadecimal digits that change with the weights: of a few numbers of each tensor, spread over all of it.

    Args:
        model: a transformers model; LoRA adapters on it are left out.
        adapter: the name of one of its LoRA adapters, to take that alone.
    """
    seen = hashlib.sha256()
    found = []
    for name, weights in whole_weights(model):
        part = f".{adapter}." in name if adapter else ".lora_" not in name
        if part:
            places = torch.tensor(_spread(weights.numel()), dtype=torch.long, device=weights.device)
            numbers = weights.flatten()[places].double().cpu()
            plain = name.replace(".base_layer.", ".")  # as it was called before an adapter was put on
            found.append((name, f"{plain}{tuple(weights.shape)}{numbers.tolist()}"))
    for _, text in sorted(found):
        seen.update(text.encode())
    return seen.hexdigest()[:16]


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _spread(count: int) -> list[int]:
    """Up to 16 indices into ``count`` numbers, evenly spread from the first to the last.

    Integers throughout: float32 holds none above 2^24 exactly, and places made of it fall past the end.
    """
    return [i * (count - 1) // (SAMPLED - 1) for i in range(SAMPLED)] if count else []


def _others(choice: StrategySpec, model: Any) -> dict[str, str]:
    """Fingerprints of the other readers of a contrast: an amateur's name does not say which weights it stands for."""
    if not isinstance(choice.strategy, ContrastStrategy):
        return {}
    readers = choice.strategy.readers(model, 1)
    return {
        each.role: fingerprint(each.model or model, each.adapter)
        for each in readers
        if each.model is not None or each.adapter is not None
    }


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it; of a model or a prompt, what a command line would have said."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    if isinstance(value, Prompt):
        return {"prompt": _plain(value.text)}
    return str(getattr(value, "name_or_path", "") or type(value).__name__)
