"""Checks of the model and the tokenizer that a caller gives, and the model inside a wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from decoding.errors import ModelError, OptionError, shown

__all__ = ["check_model", "require_decoder_only", "text_tokenizer", "unwrapped"]


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


def require_decoder_only(model: Any, what: Any = None) -> None:
    """Raise ModelError, which names what asks for it, where a model is an encoder-decoder."""
    if model.config.is_encoder_decoder:
        asking = "" if what is None else f"{what}: "
        raise ModelError(f"{asking}{type(model).__name__} is an encoder-decoder; must be a decoder-only model")


def text_tokenizer(tokenizer: Any, required: bool = True) -> Any:
    """The tokenizer that a caller gives; of a processor, its part for texts.

    Args:
        tokenizer: what a caller gave.
        required: False lets None pass.

    Raises:
        OptionError: what cannot tokenise: a name, a model, a tokenizer's class, the inside of a fast tokenizer. It says
            what was given and what is expected.
    """
    if tokenizer is None and not required:
        return None
    if isinstance(tokenizer, (str, Path)):
        raise OptionError(
            f"tokenizer={str(tokenizer)!r}: expected a tokenizer, not its name; decoding.load(...) returns one beside "
            "its model"
        )
    if not hasattr(tokenizer, "get_vocab"):
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    is_object = callable(tokenizer) and not isinstance(tokenizer, (type, nn.Module))
    if not (is_object and callable(getattr(tokenizer, "decode", None))):
        raise OptionError(
            f"tokenizer={shown(tokenizer)}: must be a tokenizer of transformers, such as AutoTokenizer loads"
        )
    return tokenizer
