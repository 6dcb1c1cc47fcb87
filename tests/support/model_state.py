"""What a caller may rely on after a call: a model's state before and after, and the strategies that call it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from tiny_strategies import OTHER_MODELS
from torch import Tensor
from transformers import pipeline

import decoding
from decoding.evals import miniature
from decoding.strategies.registry import STRATEGIES, example_of, exportable_strategies, parse_strategy

__all__ = [
    "ALL",
    "FUSE",
    "KINDS",
    "NEW",
    "OWN",
    "PROMPTS",
    "changed",
    "generated",
    "piped",
    "processed",
    "random_state",
    "state_of",
    "tokenizer_of_models",
]

NEW = 3  # tokens of a call: as many as come before what raises at its third call
PROMPTS = ["The old clockmaker", "A river in the town of Varn"]
AMATEURS = ("amateur", "induced", "prompt:A lie.")  # a model, a LoRA adapter beside the model, a prompt
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def specs_of(names: Any) -> list[str]:
    """A spec of each strategy, or one for each kind of amateur where it has one."""
    specs = []
    for name in names:
        if name in OTHER_MODELS:
            continue
        example = example_of(name)
        kinds = AMATEURS if "amateur" in parse_strategy(example).parameters else ("",)
        specs += [example.replace("amateur=amateur", f"amateur={kind}") for kind in kinds]
    return specs


ALL = specs_of(STRATEGIES)
OWN = specs_of(exportable_strategies())
# One of each kind of change to a model: none, rows of an adapter, its exits, exits, layers left out, heads masked.
KINDS = [
    "contrastive-search", "contrastive-decoding:amateur=induced", "lol:amateur=induced,lower_layers=0.5,0.75", "sled",
    "skipped-layers", "masked-heads:heads=0.0",
]  # fmt: skip
assert set(KINDS) < set(OWN)


def state_of(model: Any) -> dict[str, Any]:
    """Everything of a model and of torch that a caller may rely on after a call, but for the random numbers."""
    modules = list(model.named_modules())
    configs = (model.config, model.config.get_text_config(decoder=True))
    return {
        "modules": [(name, id(module), type(module), module.training) for name, module in modules],
        "attributes": [(name, sorted(vars(module))) for name, module in modules],
        "forward": [id(vars(module).get("forward")) for _, module in modules],
        "hooks": [(name, [list(getattr(module, hook)) for hook in HOOKS]) for name, module in modules],
        "parameters": [(name, id(value), value.requires_grad, value.dtype) for name, value in model.named_parameters()],
        "gradients": [value.grad is None for value in model.parameters()],
        "buffers": [(name, id(value)) for name, value in model.named_buffers()],
        "keys": list(model.state_dict()),
        "weights": [value.sum(dtype=torch.float64).item() for value in model.state_dict().values()],
        "adapters": sorted(getattr(model, "peft_config", {})),
        "config": [config.to_json_string(use_diff=False) for config in configs],
        "attention": [config._attn_implementation for config in configs],
        "cache": [getattr(config, "use_cache", None) for config in configs],
        "generation config": (id(model.generation_config), model.generation_config.to_json_string(use_diff=False)),
        "dtype": model.dtype,
        "torch": (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_device(),
        ),
    }  # fmt: skip


def random_state() -> dict[str, Any]:
    kind, numbers, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": (kind, numbers.tobytes(), *rest),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if before[key] != after[key]}


class Fuse:
    """A forward hook of the user's that raises in a pass of the model."""

    def __init__(self) -> None:
        self.passes, self.error = 0, RuntimeError

    def __call__(self, *_: Any) -> None:
        if self.passes:
            self.passes -= 1
            if not self.passes:
                raise self.error("the fuse has blown")


FUSE = Fuse()


def generated(model: Any, strategy: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    return decoding.generate(model, **batch, strategy=strategy, **{"max_new_tokens": NEW, **options})


def processed(model: Any, strategy: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    """The processor is alive as the model is looked at, and not released."""
    processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
    model.generate(**batch, logits_processor=[processor], **{"max_new_tokens": NEW, **options})
    return processor


def tokenizer_of_models() -> Any:
    return miniature.load("expert")[1]


def piped(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer_of_models())
    pipe(PROMPTS[0], **decoding.pipeline_kwargs(strategy, max_new_tokens=NEW))
