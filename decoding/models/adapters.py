"""LoRA adapters on a model: rows of one batch that run with different adapters, and adapters loaded from a folder.

One forward pass runs rows of the base model and rows of an adapter on one copy of the weights (peft's mixed batches).
peft is needed only where a model has adapters, and is imported only then.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from decoding.errors import ModelError, OptionError, nearest
from decoding.models.devices import is_offloaded
from decoding.models.hooks import NO_KEYWORDS
from decoding.transformers_private import adapter_attributes, set_adapter_attributes

__all__ = [
    "BASE",
    "MixedRows",
    "adapter_state",
    "adapters_of",
    "attach",
    "check_adapter",
    "detach",
    "expert_adapter",
]

BASE = "__base__"  # peft's name for rows that no adapter touches

_active_rows: ContextVar[Any] = ContextVar("decoding_active_rows", default=None)
_attaching = threading.Lock()  # guards the table of attached adapters
_attached: weakref.WeakKeyDictionary[Any, _Attached] = weakref.WeakKeyDictionary()


@dataclass
class _Attached:
    """The adapters that were attached to a model.

    Attributes:
        attributes: those that transformers sets on a model with adapters, as they were before the first.
        folders: the folder of each adapter, by its name.
    """

    attributes: dict[str, Any]
    folders: dict[str, str] = field(default_factory=dict)


def adapters_of(model: Any) -> dict[str, Any]:
    """The configurations of the adapters on a model, by name."""
    configs = getattr(model, "peft_config", None)
    return dict(configs) if isinstance(configs, dict) else {}


def check_adapter(model: Any, name: str) -> None:
    """Refuse an adapter whose rows cannot share a batch with the base model's.

    Raises:
        OptionError: the model has no adapter of this name.
        ModelError: it is merged, disabled, no plain LoRA, or changes more than the decoder layers.
    """
    adapters = adapters_of(model)
    if name not in adapters:
        raise OptionError(f"adapter {name!r}: the model has no adapter of this name{nearest(name, adapters)}")
    config = adapters[name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ModelError(f"adapter {name!r} is a {kind}: only LoRA rows can share a batch with the base model's")
    if config.use_dora:
        raise ModelError(
            f"adapter {name!r} uses DoRA, which rescales the base weights: its rows cannot share a batch with the base "
            "model's; train it with use_dora=False, or give the merged model as the amateur"
        )
    layers = _lora_layers(model)
    if any(layer.merged for layer in layers):
        raise ModelError(
            "the model's adapters are merged into its weights, so base and adapter cannot be told apart: call "
            "unmerge_adapter() first"
        )
    if any(layer.disable_adapters for layer in layers):
        raise ModelError(f"adapter {name!r} is disabled: call enable_adapters() on the model first")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    outside = [layer for layer in layers if layer is head or layer is embeddings]
    if getattr(config, "modules_to_save", None) or any(name in _names(layer) for layer in outside):
        raise ModelError(
            f"adapter {name!r} changes the embeddings or the head, which expert and amateur share here: it must be on "
            "the decoder layers alone"
        )


def expert_adapter(model: Any, amateur: str | None) -> str:
    """The adapter of the expert's rows: the active one, unless that is the amateur; ``BASE`` for none.

    Raises:
        ModelError: several adapters beside the amateur are active.
    """
    active = {name for layer in _lora_layers(model) for name in layer.active_adapters} - {amateur}
    if len(active) > 1:
        raise ModelError(
            f"the adapters {', '.join(sorted(active))} are active together: a row of a shared batch runs with one; "
            "activate one with set_adapter()"
        )
    return next(iter(active), BASE)


class MixedRows:
    """Rows of a batch that run with different adapters of one model.

    Concurrent calls on the same model do not affect each other: the hooks act only within :meth:`activated`.

    Args:
        model: a transformers model with LoRA layers.
        names: one adapter name a row; ``BASE`` for none.

    Attributes:
        by_slices: True where every adapter is plain LoRA on linear layers: its output is added here, to slices of rows.
            Else peft adds it.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.names = list(names)
        layers = _lora_layers(model)
        self.by_slices = all(_is_plain(layer, set(names)) for layer in layers)
        self._handles = [layer.register_forward_pre_hook(self._name, with_kwargs=True) for layer in layers]
        if self.by_slices:
            self._handles += [layer.register_forward_hook(self._add) for layer in layers]

    def repeated(self, rows: int) -> list[str]:
        """The adapter names of a batch in which each row is repeated ``rows / len(names)`` times."""
        times = rows // len(self.names)
        return [name for name in self.names for _ in range(times)]

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Run the forward passes of this context with the adapters of these rows."""
        token = _active_rows.set(self)
        try:
            yield
        finally:
            _active_rows.reset(token)

    def release(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _name(self, _layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] = NO_KEYWORDS) -> Any:
        if _active_rows.get() is not self:
            return None
        rows = len(inputs[0])
        return inputs, {**named, "adapter_names": [BASE] * rows if self.by_slices else self.repeated(rows)}

    def _add(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add the adapters' output to their rows, as peft does for the same names.

        peft selects rows by lists of numbers. On a GPU each layer copies them there and waits, and a CUDA graph cannot
        hold that. Rows of one adapter are adjacent, so slices are enough.
        """
        if _active_rows.get() is not self:
            return
        start = 0
        for name, group in itertools.groupby(self.repeated(len(output))):
            rows = slice(start, start := start + len(list(group)))
            if name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                states = layer.lora_dropout[name](inputs[0][rows].to(down.weight.dtype))
                output[rows] += (up(down(states)) * layer.scaling[name]).to(output.dtype)


def attach(model: Any, folder: str | Path, name: str | None = None) -> str:
    """Load a LoRA adapter onto a model and leave it inactive: the model generates and trains as before.

    peft wraps the model's linear layers, so names in ``state_dict()`` change, and
    ``save_pretrained`` looks for an active adapter: call :func:`detach` before saving the model.

    Args:
        model: a transformers model.
        folder: the folder that ``save_pretrained`` of an adapter wrote.
        name: the name of the adapter; by default that of the folder. A loaded adapter is not loaded again.

    Returns:
        The adapter's name.

    Raises:
        ModelError: peft is not installed, the adapter does not fit the model, or the model is offloaded.
    """
    path = Path(folder).expanduser()
    name = (name or path.resolve().name).replace(".", "_")
    with _attaching:
        attached = _attached.setdefault(model, _Attached(adapter_attributes(model)))
        if attached.folders.get(name) == str(path.resolve()):
            return name
        if name in adapters_of(model):
            raise ModelError(f"{folder}: the model already has another adapter called {name!r}; give this one a name")
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
        with _settings_kept(model):
            try:
                _load(model, path, name)
            except BaseException:
                _remove(model, name, attached)
                raise
        attached.folders[name] = str(path.resolve())
        return name


def detach(model: Any, name: str) -> None:
    """Remove an adapter that :func:`attach` loaded; the model is what it was before. Nothing may be generating on it.

    Args:
        model: a transformers model.
        name: the adapter's.

    Raises:
        OptionError: :func:`attach` loaded no adapter of this name.
    """
    with _attaching:
        attached = _attached.get(model) or _Attached({})
        if name not in attached.folders:
            raise OptionError(f"adapter {name!r}: none of this name was attached{nearest(name, attached.folders)}")
        del attached.folders[name]
        with _settings_kept(model):
            _remove(model, name, attached)


def _load(model: Any, path: Path, name: str) -> None:
    active = {adapter for layer in _lora_layers(model) for adapter in layer.active_adapters}
    try:
        report = model.load_adapter(str(path), adapter_name=name)
    except Exception as error:  # peft raises errors of many kinds on a broken or foreign adapter
        raise ModelError(f"{path}: the adapter cannot be loaded ({' '.join(str(error).split())[:160]})") from error
    # The report looks for the name anywhere in a key: "i" would be in every "weight".
    missing = sorted(key for key in getattr(report, "missing_keys", None) or () if f".{name}." in key)
    if missing:
        raise ModelError(f"{path}: the adapter does not fit the model (missing {len(missing)}, {missing[0]})")
    for layer in _lora_layers(model):
        layer.set_adapter(sorted(active))


def _remove(model: Any, name: str, attached: _Attached) -> None:
    """Remove an adapter from a model, and the layers of peft that are left without one."""
    if name in adapters_of(model):
        model.delete_adapter(name)
    if not attached.folders:
        set_adapter_attributes(model, attached.attributes)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if child in _lora_layers(child) and not _names(child):
                setattr(module, child_name, child.get_base_layer())


@contextmanager
def _settings_kept(model: Any) -> Iterator[None]:
    """Give every parameter and module that stays its ``requires_grad`` and training mode back after the context.

    peft freezes the whole model and puts it into evaluation mode.
    """
    gradients = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(gradients.get(parameter, False))
        for module in model.modules():
            module.training = modes.get(module, False)


def _lora_layers(model: Any) -> list[Any]:
    if "peft" not in sys.modules:
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _is_plain(layer: Any, names: set[str]) -> bool:
    """True where peft computes these adapters' rows of a layer by its general method, without a variant of LoRA."""
    from peft.tuners.lora import LoraLayer

    general = type(layer)._mixed_batch_forward is LoraLayer._mixed_batch_forward
    return general and not names & set(getattr(layer, "lora_variant", ()))


def adapter_state(model: Any) -> tuple[Any, ...]:
    """The settings that change when adapters are activated, scaled, merged or disabled; weights are not among them."""
    return tuple(
        (tuple(layer.active_adapters), tuple(layer.merged_adapters), layer.disable_adapters, *layer.scaling.items())
        for layer in _lora_layers(model)
    )


def _names(layer: Any) -> set[str]:
    return {*layer.lora_A.keys(), *layer.lora_embedding_A.keys()}
