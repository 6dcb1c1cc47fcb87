"""The effective generation config: what a strategy decodes with, of a model's folder, the user's options and its own.

A folder's ``generation_config.json`` may hold penalties, samplers, beams and lengths: Qwen2.5's has a
``repetition_penalty`` of 1.05, BART's for summaries four beams and a ``length_penalty``. transformers applies them to
every call that does not set them, so that "greedy" would not be greedy. Where strategies are compared they are off
unless asked for. What stays tells what the model's tokens are, and how its cache is kept (``KEPT``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from decoding.drafts.options import NONE
from decoding.errors import DecodingWarning, OptionError, one_line
from decoding.generation.strategy import Strategy
from decoding.models.text_config import vocab_size
from decoding.strategies.generation_options import DRAFTS, OPTIONS, applies, check_together, check_tokens
from decoding.strategies.registry import StrategySpec
from decoding.strategies.stored import SETTINGS

__all__ = [
    "NEUTRAL_SAMPLERS",
    "decoded_with",
    "effective_config",
    "folder_config",
    "options_of_folder",
    "warn_of_folder",
    "with_strategy",
]

# How a cache is kept, and how prompts are read: time and memory, and no number.
MEMORY = ("use_cache", "prefill_chunk_size", "max_cache_len", "compile_config", "disable_compile")

# What stays of a folder's config: tokens with a meaning of their own (ends, padding, the first token of a decoder, a
# language that is forced, tokens that are no text: Whisper's suppressed ones, Marian's pad among its bad words), and
# the cache. Entries that transformers does not declare stay too: they are what a model's own generate() needs.
KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "cache_implementation",
    "cache_config", *MEMORY,
)  # fmt: skip

SAMPLERS = (
    "temperature", "top_k", "top_p", "typical_p",
    *(name for name, option in OPTIONS.items() if option.needs == "sampling"),
)  # fmt: skip
NEUTRAL_SAMPLERS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
BEAMS = tuple(name for name, option in OPTIONS.items() if option.needs == "beams")
NOT_SHOWN = {"transformers_version", "penalty_alpha", SETTINGS, *MEMORY}


@contextmanager
def decoded_with(model: Any, options: Mapping[str, Any], *, folder: bool = False) -> Iterator[None]:
    """Decode with these options in the block, in place of those of the model's folder or beside them.

    The model's own generation config is changed and given back: ``generate`` fills from it whatever a call's config
    leaves open. Nothing else may generate with the model meanwhile.

    Args:
        model: a generating transformers model, or peft's wrapper of one.
        options: as :func:`decoding.strategies.generation_options.checked_options` returns them.
        folder: keep what the folder has beside them, as ``model.generate`` does.
    """
    check_tokens(options, vocab_size(model))
    own = model.generation_config
    before = dict(vars(own))
    config = _base(own, options, folder)
    vars(own).clear()
    vars(own).update(vars(config))
    try:
        yield
    finally:
        vars(own).clear()
        vars(own).update(before)


def with_strategy(spec: StrategySpec, config: GenerationConfig) -> GenerationConfig:
    """Set a generation config to a strategy or baseline, whatever it preferred, and return it."""
    for name in OPTIONS:
        if not applies(name, spec):
            setattr(config, name, NONE if name == "drafts" else None)  # drafts=None would be the model's own
    # penalty_alpha 0 and not None: transformers fills None from the model's own generation config.
    config.update(do_sample=spec.is_stochastic, num_beams=1, penalty_alpha=0.0)
    setattr(config, SETTINGS, None)
    if spec.is_stochastic:
        if isinstance(spec.strategy, Strategy):
            config.update(**NEUTRAL_SAMPLERS)  # those of a model's folder: a sampler has its own as parameters
        elif config.top_k is None:
            config.top_k = 0  # transformers' default is 50, for strategies that have no top_k of their own
    if not isinstance(spec.strategy, Strategy):
        config.update(**spec.parameters)
    return config


def effective_config(
    spec: StrategySpec, model: Any, options: Mapping[str, Any], *, folder: bool = False
) -> dict[str, Any]:
    """What a strategy decodes with under :func:`decoded_with`, JSON-able: options that are set and have an effect."""
    check_tokens(options, vocab_size(model))
    config = with_strategy(spec, _base(model.generation_config, options, folder))
    off = {name for name in (*SAMPLERS, *BEAMS, *DRAFTS) if not _has_effect(name, spec)}
    shown = _set(config)
    return {name: value for name, value in shown.items() if name not in off | NOT_SHOWN}


def options_of_folder(model: Any) -> dict[str, Any]:
    """What a model's own generation config has that is off under :func:`decoded_with`, JSON-able."""
    declared = vars(GenerationConfig())
    return {
        name: value
        for name, value in folder_config(model).items()
        if name in declared and name not in KEPT and name not in NOT_SHOWN
    }


def folder_config(model: Any) -> dict[str, Any]:
    """All that a model's own generation config has, JSON-able."""
    return _set(model.generation_config)


def warn_of_folder(model: Any, options: Mapping[str, Any]) -> None:
    """Warn of what the folder has that would change the tokens of every strategy, and is off.

    Samplers and beams are none of it: they are a strategy's own parameters.

    Warns:
        DecodingWarning: names the options, and how to turn them on.
    """
    off = {
        name: value
        for name, value in options_of_folder(model).items()
        if name in OPTIONS
        and not OPTIONS[name].needs
        and value not in (None, OPTIONS[name].neutral)
        and name not in options
    }
    if off:
        given = ", ".join(f"{name}={value}" for name, value in off.items())
        first = next(iter(off.items()))
        warnings.warn(
            f"the model's generation_config.json has {given}: off here, so that strategies are what they are called; "
            f"--generation-config {first[0]}={first[1]} turns it on",
            DecodingWarning,
            stacklevel=2,
        )


def _base(config: GenerationConfig, options: Mapping[str, Any], folder: bool) -> GenerationConfig:
    """A copy of a generation config with options, and without its own where ``folder`` is False."""
    config = copy.deepcopy(config)
    if not folder:
        for name in vars(GenerationConfig()):
            if name not in KEPT and not name.startswith("_"):
                setattr(config, name, None)
        for name in (SETTINGS, *DRAFTS):
            setattr(config, name, None)
    conditional = {name: value for name, value in options.items() if OPTIONS[name].needs}
    try:
        config.update(**{name: value for name, value in options.items() if name not in conditional})
    except (ValueError, TypeError) as error:  # of transformers' own checks, for values such as watermarking_config's
        raise OptionError(f"generation_config: {one_line(error)}") from error
    for name, value in conditional.items():
        setattr(config, name, value)  # undeclared ones too, and no note of transformers that they need a sampler
    check_together(options, lambda name: getattr(config, name, None))
    return config


def _has_effect(name: str, spec: StrategySpec) -> bool:
    if name in OPTIONS:
        return applies(name, spec)
    return spec.is_stochastic


def _set(config: GenerationConfig) -> dict[str, Any]:
    """The entries of a generation config that are set, JSON-able."""
    return {
        name: value.to_dict() if hasattr(value, "to_dict") else value
        for name, value in sorted(config.to_dict().items())
        if value is not None and name[0] != "_"
    }
