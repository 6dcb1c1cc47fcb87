"""Strategies stored in a generation config, as exported model folders hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoTokenizer, GenerationConfig

from decoding.errors import ModelError, OptionError, nearest
from decoding.generation.strategy import Strategy
from decoding.models.gguf import is_gguf
from decoding.models.loading import load_tokenizer
from decoding.models.memo import PerModelMemo
from decoding.strategies.named_readers import change_named_readers, named_readers
from decoding.strategies.registry import STRATEGIES, exportable_strategies
from decoding.transformers_private import commit_hash

__all__ = ["SETTINGS", "home_of", "stored_strategy"]

SETTINGS = "decoding_strategy"  # the attribute of a generation config that holds a strategy's name and parameters

_files: PerModelMemo[Any] = PerModelMemo()  # the tokenizer and the folder that a model was loaded with


def stored_strategy(
    model: Any, config: GenerationConfig | None, kwargs: dict[str, Any], tokenizer: Any = None
) -> Strategy | None:
    """The strategy that a generation config holds, or else the model's own; None where there is none.

    Parameters that a config leaves out are those of the model's own config, where that has the same strategy.

    Args:
        model: the generating model; models that the strategy names are looked for in the folder that it was loaded
            from.
        config: of the call.
        kwargs: of the call; its parameters of the strategy have priority over the config, and are removed.
        tokenizer: for strategies that have texts; None loads that of the model's folder where it is needed.

    Raises:
        OptionError: unknown names, values out of range, or a model that the model's own settings do not name.
        ModelError: a model that the settings name cannot be found.
    """
    settings = settings_of_call(model, config, kwargs)
    if settings is None:
        return None
    kwargs.pop(SETTINGS, None)
    of_model = settings_of_call(model, None, {}) or settings
    name = settings.get("name", of_model.get("name"))
    parameters = {**(of_model if name == of_model.get("name") else {}), **settings}
    parameters.pop("name", None)
    if name not in exportable_strategies():
        raise OptionError(
            f"{SETTINGS}: unknown strategy {name!r}{nearest(str(name), exportable_strategies())}; install the package "
            "that has it, or register it with decoding.register"
        )
    known = [field.name for field in dataclasses.fields(STRATEGIES[name]) if field.repr]
    for unknown in sorted(parameters.keys() - known):
        raise OptionError(f"{SETTINGS}: {name} has no parameter {unknown!r}{nearest(unknown, known)}")
    try:
        named = _check_named(name, parameters, of_model)
        parameters = change_named_readers(
            STRATEGIES[name], parameters, lambda place, reader: _with_path(model, place, reader, named)
        )
        parameters |= {parameter: kwargs.pop(parameter) for parameter in known if parameter in kwargs}
        strategy = STRATEGIES[name](**parameters)
    except TypeError as error:  # a parameter without a default is missing, or a value is of another type
        raise OptionError(f"{SETTINGS}: {name}: {error}") from error
    if getattr(strategy, "tokenizer", strategy) is None:
        if tokenizer is None:
            tokenizer = _files.get(model, "tokenizer", functools.partial(_tokenizer, model))
        strategy = strategy.with_tokenizer(tokenizer)
    return strategy


def settings_of_call(
    model: Any, config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The settings that a call names, or else those of its config, or the model's own where that has none."""
    of_model = getattr(model.generation_config, SETTINGS, None)
    settings = kwargs.get(SETTINGS, of_model if config is None else getattr(config, SETTINGS, of_model))
    if settings is not None and not isinstance(settings, Mapping):
        raise OptionError(f"{SETTINGS}={settings!r}: must be a name and parameters, as `decoding export` writes them")
    return settings


def _check_named(name: str, parameters: Mapping[str, Any], of_model: Mapping[str, Any]) -> list[Any]:
    """The models that a call's parameters name.

    A server's clients send generation configs; they must not choose which files are read.

    Raises:
        OptionError: one that the model's own settings do not name.
    """
    own = of_model.get("name")
    allowed = [*named_readers(STRATEGIES[own], of_model).values()] if own in exportable_strategies() else []
    named = named_readers(STRATEGIES[name], parameters)
    for place, reader in named.items():
        if reader not in allowed:
            models = " or ".join(map(repr, allowed)) or None
            raise OptionError(
                f"{SETTINGS}: {place}={reader!r} is not the model's ({models}); export the model again to change it"
            )
    return list(named.values())


def _with_path(model: Any, place: str, stored: Any, named: Sequence[Any]) -> Any:
    """A reader that stored settings name; one in the model's own folder, ``./amateur``, as its path."""
    if not _is_inside(stored):
        return stored
    patterns = tuple(f"{Path(reader)}/*" for reader in named if _is_inside(reader))
    home = _files.get(model, ("home", patterns), functools.partial(home_of, model, allow_patterns=[*patterns]))
    folder = home / stored
    if not folder.is_dir():
        raise ModelError(f"{model.name_or_path}: its {place} is missing, the folder {folder}; export the model again")
    return str(folder)


def _is_inside(stored: Any) -> bool:
    return isinstance(stored, str) and stored.startswith("./") and Path(stored).name == stored[2:]


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
    if is_gguf(model.name_or_path):
        return load_tokenizer(model.name_or_path)
    return AutoTokenizer.from_pretrained(model.name_or_path, revision=commit_hash(model))
