"""What an engine is started with: its amateur, the lower layers that it shows, and the strategy of every request.

They are the key ``contrast`` of vLLM's additional configuration. They are checked where vLLM makes its configuration,
before any weights are loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.errors import ModelError, OptionError, nearest, shown
from decoding.models.layer_numbers import layer_numbers, matching_numbers, require_layers
from decoding.models.vocabularies import check_same_vocabulary
from decoding.parameters import require_count, require_flag
from decoding.serving.vllm.readers import LARGEST_SEARCH, EngineReaders
from decoding.serving.vllm.requests import (
    STRATEGY,
    ContrastiveSearchRequest,
    DoLaRequest,
    Request,
    as_list,
    requested,
)

__all__ = ["CONTRAST", "Settings", "is_adapter", "readers_of", "settings_of"]

CONTRAST = "contrast"  # the key in vLLM's additional configuration
PREFIX = "Contrast"  # of the architectures' names
# What was read of the vLLM configurations of this process, by their identity, as long as they live.
_READ: dict[str, tuple[Settings, Any]] = {}


@dataclass(frozen=True)
class Settings:
    """An engine's settings.

    Attributes:
        readers: what requests may read.
        default: the strategy of requests that name none; None for the model's own logits.
    """

    readers: EngineReaders
    default: Request | None = None


def settings_of(given: Mapping[str, Any], config: Any, amateur_config: Any = None) -> Settings:
    """Check the settings that an engine is given.

    Args:
        given: ``amateur`` (name or folder), ``layers`` (numbers, or shares of the depth), ``strategy`` (a name, or the
            fields of a request), ``second_prompts`` (true or false), ``candidates`` (a number).
        config: the model's text configuration.
        amateur_config: likewise of the amateur.

    Raises:
        OptionError: an unknown key, or a value out of range.
    """
    known = ("amateur", "layers", STRATEGY, "second_prompts", "candidates")
    for key in given:
        if key not in known:
            raise OptionError(f"{CONTRAST}: no setting {key!r}{nearest(str(key), known)}")
    depth = config.num_hidden_layers
    tied = bool(getattr(config, "tie_word_embeddings", False))
    amateur = given.get("amateur")
    if amateur is not None and (not isinstance(amateur, str) or not amateur.strip()):
        raise OptionError(f"{CONTRAST}: amateur={shown(amateur)}: must be the folder or name of a model")
    strategy = given.get(STRATEGY)
    fields = {STRATEGY: strategy} if isinstance(strategy, str) else strategy
    if fields is not None and (not isinstance(fields, Mapping) or STRATEGY not in fields):
        raise OptionError(
            f"{CONTRAST}: strategy={shown(strategy)}: must be a name, or a request's fields such as "
            '{"strategy": "dola", "alpha": 0.2}'
        )
    layers = _shown_layers(given.get("layers"), fields, depth, tied)
    amateur_layers = (
        matching_numbers(layers, depth, amateur_config.num_hidden_layers) if amateur_config is not None else ()
    )
    second_prompts = given.get("second_prompts", False)
    require_flag(f"{CONTRAST}: second_prompts", second_prompts)
    candidates = given.get("candidates", 0)
    require_count(f"{CONTRAST}: candidates", candidates, 0, high=LARGEST_SEARCH)
    adapter = is_adapter(amateur)
    if adapter:
        amateur_layers = layers
    vocab_size = getattr(config, "vocab_size", None)
    readers = EngineReaders(
        depth, tied, layers, amateur, amateur_layers, second_prompts, candidates, adapter, vocab_size
    )
    default = None if fields is None else requested(fields, readers)
    if isinstance(default, ContrastiveSearchRequest):
        raise OptionError(f"{CONTRAST}: strategy={default.name!r}: is asked for by each request; leave it out")
    if default is not None and default.needs_amateur and adapter:
        raise OptionError(
            f"{CONTRAST}: strategy={default.name!r}: with an adapter as amateur each request names it; leave it out"
        )
    if default is not None and default.reads_second_prompt:
        raise OptionError(
            f"{CONTRAST}: strategy={default.name!r}: each request has a second prompt of its own; name it in requests"
        )
    return Settings(readers, default)


def _shown_layers(given: Any, fields: Mapping[str, Any] | None, depth: int, tied: bool) -> tuple[int, ...]:
    """The layers given; else those of the engine's own strategy, or what DoLa chooses from where it has none."""
    if given is not None:
        layers = as_list(given)
        require_layers(f"{CONTRAST}: layers", layers)
        numbers = layer_numbers(layers, depth)
        if numbers and numbers[-1] >= depth:
            raise OptionError(
                f"{CONTRAST}: layers={shown(given)}: the model has {depth} layers, and the last is no lower one; must "
                f"be from 0 to {depth - 1}"
            )
        return numbers
    every = EngineReaders.of_everything(depth, tied)
    own = requested(fields, every) if fields is not None else DoLaRequest().on(every)
    return () if own is None else own.layers_read


def readers_of(vllm_config: Any) -> tuple[Settings, Any]:
    """The settings of a vLLM configuration, and the configuration of its amateur (None without one).

    They are read once a process: the checks, the model and the scheduler ask.

    Raises:
        OptionError: a setting that is none, or a way of serving that strategies do not have.
        ModelError: the amateur's tokens are others.
    """
    instance_id = vllm_config.instance_id
    if instance_id not in _READ:
        _READ[instance_id] = _read_settings(vllm_config)
        weakref.finalize(vllm_config, _READ.pop, instance_id, None)
    return _READ[instance_id]


def _read_settings(vllm_config: Any) -> tuple[Settings, Any]:
    from vllm.transformers_utils.config import get_config

    given = (vllm_config.additional_config or {}).get(CONTRAST) or {}
    if not isinstance(given, Mapping):
        raise OptionError(f'{CONTRAST}={shown(given)}: must be settings such as {{"strategy": "dola"}}')
    model_config = vllm_config.model_config
    config, amateur_config = model_config.hf_text_config, None
    amateur = given.get("amateur")
    if isinstance(amateur, str) and amateur.strip() and not is_adapter(amateur):
        try:
            amateur_config = get_config(amateur, trust_remote_code=model_config.trust_remote_code).get_text_config()
        except (OSError, ValueError) as error:
            raise ModelError(f"{CONTRAST}: amateur {amateur!r} could not be loaded: {error}") from error
    return settings_of(given, config, amateur_config), amateur_config


def is_adapter(amateur: str | None) -> bool:
    """Whether an amateur is the folder of a LoRA adapter."""
    return amateur is not None and (Path(amateur) / "adapter_config.json").is_file()


def check_vocabularies(model_config: Any, amateur: str, amateur_config: Any) -> bool:
    """Refuse an amateur of other tokens, and return whether it lacks one of the model's, padding left out.

    Raises:
        ModelError: names the first token that differs.
    """
    from transformers import AutoTokenizer

    vocabularies: list[dict[str, int] | None] = []
    for name in (model_config.tokenizer, amateur):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=model_config.trust_remote_code)
        except (OSError, ValueError):
            vocabularies.append(None)
        else:
            vocabularies.append(tokenizer.get_vocab())
    sizes = (model_config.hf_text_config.vocab_size, amateur_config.vocab_size)
    check_same_vocabulary("amateur", vocabularies[0], vocabularies[1], sizes)
    tokens = sizes[0] if vocabularies[0] is None else 1 + max(vocabularies[0].values())
    return bool(sizes[1] < tokens)
