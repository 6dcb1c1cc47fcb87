"""Checks of the model that a caller gives, and the model inside a wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from decoding.errors import ModelError

__all__ = ["check_model", "unwrapped"]


def unwrapped(model: Any, role: str = "model") -> Any:
    """The transformers model inside a ``PeftModel``, its adapters in place; another generating model itself.

    Args:
        model: what a caller gave.
        role: names it in messages.

    Raises:
        ModelError: see :func:`check_model`; or the adapter is one of prompt learning (prefix tuning, prompt tuning,
            p-tuning), which the model inside would be read without.
    """
    check_model(model, role)
    inner = getattr(model, "get_base_model", None)
    if inner is None or not hasattr(model, "peft_config"):
        return model
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ModelError(
            f"the {role} has a {kind} adapter, whose virtual tokens only its own forward() and generate() add: "
            "generate with it (strategy=... or custom_generate=...), or give a model with a LoRA adapter or none"
        )
    return inner()


def check_model(model: Any, role: str = "model") -> None:
    """Refuse what does not generate text: a name, a model without a head, one wrapped for several devices.

    Args:
        model: what a caller gave.
        role: names it in the message.

    Raises:
        ModelError: says what was given and what is expected.
    """
    kind = type(model).__name__
    if isinstance(model, (str, Path)):
        raise ModelError(f"{role}={str(model)!r}: expected a model, not its name; decoding.load(...) returns one")
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise ModelError(f"the {role} is wrapped in {kind}, which cannot generate: give the model inside, its .module")
    if not callable(getattr(model, "generate", None)) or not hasattr(model, "config"):
        if isinstance(model, nn.Module):
            raise ModelError(
                f"the {role} is a {kind}, which generates no text: expected a model with a head, such as "
                "AutoModelForCausalLM loads"
            )
        raise ModelError(f"the {role} must be a transformers model that generates text, and is a {kind}")
