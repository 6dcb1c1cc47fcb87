"""LoRA adapters: rows of one batch that run with different adapters, and adapters loaded from a folder.

One forward pass runs rows of the base model and rows of an adapter on one copy of the weights (peft's mixed batches).
An adapter from a folder stays beside the model: hooks add its output during a call, and the model is never changed.
peft is needed only where there are adapters, and is imported only then.
"""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from decoding.errors import ModelError, OptionError, nearest
from decoding.models.devices import input_device, is_offloaded
from decoding.models.hooks import NO_KEYWORDS
from decoding.models.memo import PerModelMemo
from decoding.transformers_private import adapter_attributes, set_adapter_attributes

__all__ = [
    "BASE",
    "Adapter",
    "LoadedAdapter",
    "MixedRows",
    "adapter_state",
    "adapters_of",
    "attach",
    "check_adapter",
    "detach",
    "expert_adapter",
    "load_adapter",
]

BASE = "__base__"  # peft's name for rows that no adapter touches

_active_rows: ContextVar[Any] = ContextVar("decoding_active_rows", default=None)
_attaching = threading.Lock()  # guards the table of attached adapters
_attached: weakref.WeakKeyDictionary[Any, _Attached] = weakref.WeakKeyDictionary()
_loaded: PerModelMemo[LoadedAdapter] = PerModelMemo()  # adapters beside a model


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


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA adapter's part of one linear layer.

    Attributes:
        down: A, from the layer's inputs to the rank.
        up: B, from the rank to the layer's outputs.
        dropout: before A.
        scaling: of the product.
    """

    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module
    scaling: float

    def __call__(self, states: Tensor) -> Tensor:
        """The adapter's output (..., out) for the layer's inputs (..., in)."""
        return self.up(self.down(self.dropout(states.to(self.down.weight.dtype)))) * self.scaling


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A LoRA adapter that was loaded for a model and stays beside it.

    Attributes:
        name: of the adapter.
        layers: its weights by the names of the model's modules, in the order of these.
    """

    name: str
    layers: Mapping[str, LoraWeights]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Its weights, under the names that they would have on the model."""
        for module, weights in self.layers.items():
            yield f"{module}.lora_A.{self.name}.weight", weights.down.weight
            yield f"{module}.lora_B.{self.name}.weight", weights.up.weight


Adapter = str | LoadedAdapter
"""An adapter on a model, by its name, or one beside it."""


def expert_adapter(model: Any, amateur: Adapter | None) -> str:
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
        model: a transformers model.
        names: one adapter a row: the name of one on the model, or one beside it; ``BASE`` for none.

    Attributes:
        by_slices: True where every adapter is plain LoRA on linear layers: its output is added here, to slices of rows.
            Else peft adds it.
    """

    def __init__(self, model: Any, names: Sequence[Adapter]) -> None:
        self.names = list(names)
        layers = _lora_layers(model)
        on_model = {name for name in names if isinstance(name, str)}
        self.by_slices = all(_is_plain(layer, on_model) for layer in layers)
        self._handles = [layer.register_forward_pre_hook(self._name, with_kwargs=True) for layer in layers]
        if self.by_slices:
            self._handles += [layer.register_forward_hook(self._add) for layer in layers]
        for adapter in {name for name in names if isinstance(name, LoadedAdapter)}:
            for module, weights in adapter.layers.items():
                layer = model.get_submodule(module)
                self._handles.append(layer.register_forward_hook(self._adding(adapter, weights)))

    def repeated(self, rows: int) -> list[Adapter]:
        """The adapters of a batch in which each row is repeated ``rows / len(names)`` times."""
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
        names = [name if isinstance(name, str) and not self.by_slices else BASE for name in self.repeated(rows)]
        return inputs, {**named, "adapter_names": names}

    def _add(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add the adapters' output to their rows, as peft does for the same names.

        peft selects rows by lists of numbers. On a GPU each layer copies them there and waits, and a CUDA graph cannot
        hold that. Rows of one adapter are adjacent, so slices are enough.
        """
        if _active_rows.get() is not self:
            return
        for name, rows in self._slices(len(output)):
            if isinstance(name, str) and name in layer.lora_A:
                output[rows] += _weights_of(layer, name)(inputs[0][rows]).to(output.dtype)

    def _adding(self, adapter: LoadedAdapter, weights: LoraWeights) -> Callable[..., None]:
        """A forward hook that adds the output of an adapter beside the model to its rows; see :meth:`_add`."""

        def add(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if _active_rows.get() is not self:
                return
            for name, rows in self._slices(len(output)):
                if name is adapter:
                    output[rows] += weights(inputs[0][rows]).to(output.dtype)

        return add

    def _slices(self, rows: int) -> Iterator[tuple[Adapter, slice]]:
        """The adapters of a batch, with the adjacent rows of each."""
        start = 0
        for name, group in itertools.groupby(self.repeated(rows)):
            yield name, slice(start, start := start + len(list(group)))


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
    path = Path(folder).expanduser().resolve()
    name = (name or path.name).replace(".", "_")
    key = (str(path), name, str(model.dtype), str(input_device(model)), _last_change(path))

    def load() -> LoadedAdapter:
        _loaded.discard(model, lambda other: other[:2] == key[:2])  # of another device, or written again since
        return _beside(model, folder, path, name)

    return _loaded.get(model, key, load)


def _beside(model: Any, folder: str | Path, path: Path, name: str) -> LoadedAdapter:
    on_model = name
    while on_model in adapters_of(model):
        on_model += "_"
    _check_loadable(model, folder)
    skeleton = _skeleton(model)
    with _settings_kept(model):  # the skeleton has the model's own parameters
        _load(skeleton, path, on_model)
    check_adapter(skeleton, on_model)
    layers = {}
    for module, layer in skeleton.named_modules():
        if _is_lora(layer) and on_model in layer.lora_A:
            if not _is_plain(layer, {on_model}):
                raise ModelError(
                    f"{folder}: is a variant of LoRA that cannot run beside a model: put it on the model with "
                    "model.load_adapter(folder, name), and give its name as the amateur"
                )
            layers[module] = _weights_of(layer, on_model)
    return LoadedAdapter(name, layers)


def _weights_of(layer: Any, name: str) -> LoraWeights:
    return LoraWeights(layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name], layer.scaling[name])


def _skeleton(module: nn.Module) -> Any:
    """A copy of a module tree that shares its parameters and buffers, and nothing that can be changed but these."""
    copied = copy.copy(module)
    copied.__dict__ = {
        key: copy.copy(value) if isinstance(value, (dict, list, set)) else value for key, value in vars(module).items()
    }
    copied._modules = {key: child and _skeleton(child) for key, child in module._modules.items()}
    return copied


def _last_change(path: Path) -> int:
    """When an adapter's weights were last written, in nanoseconds; 0 where there are none."""
    return max((file.stat().st_mtime_ns for file in path.glob("adapter_model.*")), default=0)


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
        _check_loadable(model, folder)
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


def _load(model: Any, path: Path, name: str) -> None:
    """Put an adapter on a model, inactive."""
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
    # Not model.delete_adapter(): transformers 5.24 refuses it with peft 0.21, the newest.
    for layer in _lora_layers(model):
        if name in _names(layer):
            layer.delete_adapter(name)
    adapters = getattr(model, "peft_config", {})
    adapters.pop(name, None)
    if not adapters:
        vars(model).pop("peft_config", None)
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
    return [module for module in model.modules() if _is_lora(module)]


def _is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


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
