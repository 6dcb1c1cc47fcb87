"""LoRA adapters that are loaded from a folder for a model, and stay beside it: the model is never changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decoding.errors import ModelError
from decoding.files import expanded
from decoding.models.adapters import (
    LoadedAdapter,
    LoraWeights,
    adapters_of,
    check_not_merged,
    check_plain_lora,
    is_lora,
    is_plain_layer,
    lora_weights,
)
from decoding.models.devices import input_device, is_offloaded
from decoding.models.memo import PerModelMemo
from decoding.models.quiet import quiet
from decoding.models.settings import settings_kept

__all__ = ["is_adapter_folder", "load_adapter"]

_loaded: PerModelMemo[LoadedAdapter] = PerModelMemo()


def is_adapter_folder(folder: str | Path) -> bool:
    """True where a folder of this name holds an adapter; a name that cannot be read is for whoever loads it to tell."""
    try:
        return (expanded(folder) / "adapter_config.json").is_file()
    except OSError:  # no permission, or a name that is too long
        return False


def load_adapter(model: Any, folder: str | Path, name: str | None = None) -> LoadedAdapter:
    """Load a LoRA adapter for a model, once, and leave the model as it is.

    Args:
        model: a transformers model.
        folder: the folder that ``save_pretrained`` of an adapter wrote.
        name: the name of the adapter; by default that of the folder.

    Raises:
        ModelError: peft is not installed, the adapter does not fit the model, or its rows cannot share a batch with the
            base model's; or the model is offloaded.
    """
    path = expanded(folder).resolve()
    name = (name or path.name).replace(".", "_")
    key = (str(path), name, str(model.dtype), str(input_device(model)), _last_change(path))

    def load() -> LoadedAdapter:
        _loaded.discard(model, lambda other: other[:2] == key[:2])  # of another device, or written again since
        return _beside(model, folder, path, name)

    adapter = _loaded.get(model, key, load)
    check_not_merged(model)  # at each call: the user may merge those on the model at any time
    return adapter


def _beside(model: Any, folder: str | Path, path: Path, name: str) -> LoadedAdapter:
    on_model = name
    while on_model in adapters_of(model):
        on_model += "_"
    _check_loadable(model, folder)
    skeleton = _skeleton(model)
    with settings_kept(model):  # the skeleton has the model's own parameters
        _load(skeleton, path, on_model)
    check_plain_lora(skeleton, on_model)
    layers = {}
    for module, layer in skeleton.named_modules():
        if is_lora(layer) and on_model in layer.lora_A:
            if not is_plain_layer(layer, {on_model}):
                raise ModelError(
                    f"{folder}: cannot run beside this model: it is a variant of LoRA, or peft runs {module} by a "
                    "method of its own, as some quantised layers; put it on the model with "
                    "model.load_adapter(folder, name), and give its name as the amateur"
                )
            weights = layers[module] = lora_weights(layer, on_model)
            _place(weights, layer.weight.device)
    return LoadedAdapter(name, layers)


def _place(weights: LoraWeights, device: torch.device) -> None:
    """Put an adapter's part of a layer, frozen, on the device of that layer: transformers asks the model alone."""
    for linear in (weights.down, weights.up):
        for name, parameter in list(linear.named_parameters()):
            setattr(linear, name, nn.Parameter(parameter.detach().to(device), requires_grad=False))


def _check_loadable(model: Any, folder: str | Path) -> None:
    """Refuse to load an adapter without peft, or for a model with offloaded weights."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{folder} holds a LoRA adapter, which needs peft: pip install 'contrastive-decoding[lora]'"
        ) from error
    if is_offloaded(model):  # whose adapter would be left without weights, silently
        raise ModelError(
            f"{folder}: an adapter cannot be loaded onto a model with weights offloaded to the CPU or a disk: the "
            "weights must be on devices, or the adapter be loaded before they are offloaded"
        )


def _skeleton(module: nn.Module) -> Any:
    """A copy of a module tree that shares its parameters and buffers, and nothing that can be changed but these."""
    copied = copy.copy(module)
    copied.__dict__ = {
        key: copy.copy(value) if isinstance(value, (dict, list, set)) else value for key, value in vars(module).items()
    }
    copied._modules = {key: child and _skeleton(child) for key, child in module._modules.items()}
    return copied


def _load(skeleton: Any, path: Path, name: str) -> None:
    """Put an adapter on a skeleton."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        # peft draws weights before it reads them. Both libraries report the user's own adapters, which are not read, as
        # missing.
        with torch.random.fork_rng(devices), quiet():
            report = skeleton.load_adapter(str(path), adapter_name=name)
    except Exception as error:  # peft raises errors of many kinds on a broken or foreign adapter
        raise ModelError(f"{path}: the adapter cannot be loaded ({' '.join(str(error).split())[:160]})") from error
    # The report looks for the name anywhere in a key: "i" would be in every "weight".
    missing = sorted(key for key in getattr(report, "missing_keys", None) or () if f".{name}." in key)
    if missing:
        raise ModelError(f"{path}: the adapter does not fit the model (missing {len(missing)}, {missing[0]})")


def _last_change(path: Path) -> int:
    """When an adapter's weights were last written, in nanoseconds; 0 where there are none."""
    return max((file.stat().st_mtime_ns for file in path.glob("adapter_model.*")), default=0)
