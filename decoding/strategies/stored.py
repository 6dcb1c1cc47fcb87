"""Strategies stored in a generation config, as exported model folders hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoTokenizer, GenerationConfig

from decoding.errors import ModelError, OptionError, nearest
from decoding.generation.strategy import Strategy
from decoding.models.memo import PerModelMemo
from decoding.strategies.contrast.amateurs import Prompt
from decoding.strategies.registry import STRATEGIES, exportable_strategies
from decoding.transformers_private import commit_hash

__all__ = ["AMATEUR", "SETTINGS", "home_of", "stored_strategy"]

SETTINGS = "decoding_strategy"  # the attribute of a generation config that holds a strategy's name and parameters


AMATEUR = "amateur"  # the subfolder that holds one; "./amateur" in the settings

_files: PerModelMemo[Any] = PerModelMemo()  # the tokenizer and the folder that a model was loaded with


def stored_strategy(
    model: Any, config: GenerationConfig | None, kwargs: dict[str, Any], tokenizer: Any = None
) -> Strategy | None:
    """The strategy that a generation config holds, or else the model's own; None where there is none.

    What a config leaves out is as in the model's own, where that is the same strategy.

    Args:
        model: the generating model; an amateur is looked for in the folder that it was loaded from.
        config: of the call.
        kwargs: of the call; what it says of the strategy goes before the config, and is taken out.
        tokenizer: for strategies with texts of their own; None loads that of the model's folder where it is needed.

    Raises:
        OptionError: unknown names, or values out of range.
        ModelError: the amateur cannot be found.
    """
    settings = settings_of_call(model, config, kwargs)
    if settings is None:
        return None
    kwargs.pop(SETTINGS, None)
    own = settings_of_call(model, None, {}) or settings
    # A server's clients send generation configs; which files are read is not theirs to say.
    if "amateur" in settings and settings["amateur"] != own.get("amateur"):
        raise OptionError(
            f"{SETTINGS}: amateur={settings['amateur']!r} is another one than the model's ({own.get('amateur')!r}); "
            "export the model anew to change it"
        )
    name = settings.get("name", own.get("name"))
    parameters = {**(own if name == own.get("name") else {}), **settings}
    parameters.pop("name", None)
    if name not in exportable_strategies():
        raise OptionError(f"{SETTINGS}: unknown strategy {name!r}{nearest(str(name), exportable_strategies())}")
    accepted = [field.name for field in dataclasses.fields(STRATEGIES[name]) if field.repr]
    for unknown in sorted(parameters.keys() - accepted):
        raise OptionError(f"{SETTINGS}: {name} has no parameter {unknown!r}{nearest(unknown, accepted)}")
    try:
        if "amateur" in parameters:
            parameters["amateur"] = _amateur(model, parameters["amateur"])
        parameters |= {each: kwargs.pop(each) for each in accepted if each in kwargs}
        strategy = STRATEGIES[name](**parameters)
    except TypeError as error:  # a parameter without a default is missing, or a value is of another type
        raise OptionError(f"{SETTINGS}: {name}: {error}") from error
    if getattr(strategy, "tokenizer", strategy) is None:
        given = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, what tokenizes its texts
        strategy = strategy.with_tokenizer(
            given or _files.get(model, "tokenizer", functools.partial(_tokenizer, model))
        )
    return strategy


def settings_of_call(
    model: Any, config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The settings that a call names, or else those of its config, or the model's own where that has none."""
    own = getattr(model.generation_config, SETTINGS, None)
    settings = kwargs.get(SETTINGS, own if config is None else getattr(config, SETTINGS, own))
    if settings is not None and not isinstance(settings, Mapping):
        raise OptionError(f"{SETTINGS}={settings!r}: accepted are a name and parameters, as `decoding export` writes")
    return settings


def _amateur(model: Any, stored: Any) -> Any:
    """The amateur that stored settings stand for; one in the folder as its path."""
    if isinstance(stored, Mapping):
        return Prompt(**stored)
    if stored != f"./{AMATEUR}":
        return stored
    folder = _files.get(model, "home", functools.partial(home_of, model, allow_patterns=f"{AMATEUR}/*")) / AMATEUR
    if not folder.is_dir():
        raise ModelError(f"{model.name_or_path}: its amateur is missing, the folder {folder}; export the model anew")
    return str(folder)


def home_of(model: Any, **download: Any) -> Path:
    """The folder that a model was loaded from; of one from the hub, its local copy.

    Args:
        model: whose ``from_pretrained`` was given a folder or a hub name.
        download: for ``snapshot_download``, of a model from the hub.
    """
    if Path(model.name_or_path).is_dir():
        return Path(model.name_or_path).resolve()
    download["revision"] = commit_hash(model)
    try:
        return Path(snapshot_download(model.name_or_path, **download))
    except OfflineModeIsEnabled:  # huggingface_hub 1 asks the hub what a commit holds though it be here
        return Path(snapshot_download(model.name_or_path, **{**download, "local_files_only": True}))


def _tokenizer(model: Any) -> Any:
    return AutoTokenizer.from_pretrained(model.name_or_path, revision=commit_hash(model))
