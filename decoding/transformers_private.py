"""All that this library uses of transformers which is private there, or which changed within the supported versions.

Everything here was read in 5.17 and 5.24, the ends of the supported range, and is run in the versions between them by
``make compat``. It is the first module of this library that needs transformers, and says so where the installed version
is not supported. It stands below every floor that uses it; the cache's is the lowest of them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PrefixConstrainedLogitsProcessor, cache_utils
from transformers.generation import utils

from decoding.versions import check_transformers

__all__ = [
    "CACHE_ARGUMENT",
    "CACHE_ARGUMENTS",
    "CALLERS_CACHE_ARGUMENTS",
    "ENCODED",
    "OUTPUT_RECORDING_MODULE",
    "PIXELS",
    "DummyLayer",
    "QuantisedLayer",
    "allowed_tokens_function",
    "attention_implementation",
    "cache_in",
    "commit_hash",
    "detach_gguf_quantizer",
    "eager_attention",
    "expand_inputs",
    "gguf_architectures",
    "gguf_read_once",
    "has_unfinished_sequences",
    "is_callers_cache",
    "mask_length",
    "optimized_for_decode",
    "pad_token",
    "prefill",
    "read_gguf",
    "supports_logits_to_keep",
    "tensor_parallel_mesh",
    "update_model_kwargs",
    "with_no_model_defaults",
    "without_stop_strings",
]

check_transformers(transformers.__version__)

# --- names -----------------------------------------------------------------------------------------------------------

# The names of the arguments of forward() and of the fields of its output that may hold a cache; the usual one is first.
# Up to 5.23 "past_key_values", "cache_params" (Mamba), "state" (RWKV), "mems" (XLNet) and "past_buckets_states"
# (Reformer); from 5.24 on "cache" in place of the first two.
CACHE_ARGUMENTS: tuple[str, ...] = tuple(utils.ALL_CACHE_NAMES)
CACHE_ARGUMENT = CACHE_ARGUMENTS[0]

# Those that a caller may use: generate() takes the old name in every version.
CALLERS_CACHE_ARGUMENTS = tuple(dict.fromkeys((*CACHE_ARGUMENTS, "past_key_values")))

# The keyword argument by which generate() hands on the images and videos that it has encoded before the prompt is read,
# and the inputs that it encodes. Versions without it, and models without it, encode within forward().
ENCODED = "mm_encoder_outputs"
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_patches")

# The module whose forward hooks record hidden states and attentions for transformers itself.
OUTPUT_RECORDING_MODULE = "transformers.utils.output_capturing"

_GGUF = threading.RLock()  # held while a GGUF file is read


class _NoDummyLayer:
    """A kind of layer that no cache has."""


# The cache layer of a decoder layer that keeps nothing: it has no attention, or attends to another layer's keys and
# values. Since 5.23; before, a cache has an empty recurrent layer in its place, or ends before it.
DummyLayer: Any = getattr(cache_utils, "DummyLayer", _NoDummyLayer)

# The base of the layers that hold keys and values in few bits: since 5.23, with a form that is no QuantizedLayer.
QuantisedLayer: Any = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)


# --- attributes ------------------------------------------------------------------------------------------------------


def attention_implementation(model: Any) -> str | None:
    """The name of the attention that a model's decoder runs: "sdpa", "eager", ...; None where its config has none."""
    return getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Within this context a model runs "eager" attention, which computes weights; after it what it ran before.

    The setting is the model's: passes of other threads run eager attention meanwhile.
    (``_attn_implementation_internal`` of its configs: what ``set_attn_implementation`` checks may warn or raise.)
    """
    before = [(config, config._attn_implementation_internal) for config in _attention_configs(model)]
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _attention_configs(model: Any) -> list[Any]:
    """The configs of a model and of its parts, which name an attention."""
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


def commit_hash(model: Any) -> str | None:
    """The commit of the hub's repository that a model was loaded from; None where it came from elsewhere."""
    return getattr(model.config, "_commit_hash", None)


def is_callers_cache(cache: Any) -> bool:
    """True for a cache that the caller of ``generate`` passed in, and may continue from afterwards."""
    return bool(getattr(cache, "_is_user_defined", False))


def mask_length(config: GenerationConfig) -> int | None:
    """The width of the mask that a running ``generate`` was given and left out, since it was all ones."""
    return getattr(config, "_mask_length", None)


def pad_token(config: GenerationConfig) -> Tensor | None:
    """The pad token of a running ``generate`` as a tensor; there is one wherever there is an end token."""
    return config._pad_token_tensor


class _WithoutStopStrings(GenerationConfig):
    """A generation config whose stop strings stay unset: ``generate`` fills None from the model's own config."""

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Update all but the stop strings."""
        kwargs.pop("stop_strings", None)
        return super().update(defaults_only, allow_custom_entries, **kwargs)


def without_stop_strings(config: GenerationConfig) -> GenerationConfig:
    """Unset the stop strings of a generation config, those of the model's own included, and return it.

    ``generate`` refuses them where it has no tokenizer for them. ``decoding.generate`` unsets them by its arguments;
    this is for calls that say all in one config, beside which transformers wants no arguments.
    """
    config.__class__ = _WithoutStopStrings
    config.stop_strings = None
    return config


def with_no_model_defaults(config: GenerationConfig) -> GenerationConfig:
    """Unset the mark of a generation config that was made from a model's config, and return it.

    With the mark, ``save_pretrained`` and ``from_pretrained`` leave out what transformers does not know.
    """
    config._from_model_config = None
    return config


def tensor_parallel_mesh(model: Any) -> Any:
    """The one-dimensional ``DeviceMesh`` of the processes that share a model's weights under tensor parallelism."""
    mesh = model._device_mesh
    return mesh["tp"] if mesh.ndim > 1 else mesh


def detach_gguf_quantizer(model: Any) -> None:
    """Make a model with dequantised weights of a GGUF file one that was never quantised.

    transformers leaves its quantiser on it, whatever the weights are, and then neither saves nor trains it.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model).pop("quantization_method", None)
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None:
            vars(config).pop("quantization_config", None)
            vars(config).pop("_is_quantized", None)


# --- functions -------------------------------------------------------------------------------------------------------


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments of a model or fields of its output; None where there is none."""
    return next((values[name] for name in CALLERS_CACHE_ARGUMENTS if name in values and values[name] is not None), None)


def prefill(model: Any, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]) -> Any:
    """Run a model over a prompt as every decoding method of transformers does, and return its output.

    Takes care of chunks (``prefill_chunk_size``), of a cache that already holds a part of the prompt, and of inputs
    beside text. (``GenerationMixin._prefill``)
    """
    return model._prefill(input_ids, config, model_kwargs)


def update_model_kwargs(model: Any, outputs: Mapping[str, Any], model_kwargs: dict[str, Any], n: int) -> dict[str, Any]:
    """Keyword arguments once n more tokens were read: longer masks and positions, and the output's cache.

    (``GenerationMixin._update_model_kwargs_for_generation``, which changes and returns ``model_kwargs``.)
    """
    return model._update_model_kwargs_for_generation(
        outputs, model_kwargs, is_encoder_decoder=bool(model.config.is_encoder_decoder), num_new_tokens=n
    )


def expand_inputs(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], times: int
) -> tuple[Tensor, dict[str, Any]]:
    """Token ids and keyword arguments with each row repeated; the cache is left as it is.

    (``GenerationMixin._expand_inputs_for_generation``, which is given encoder outputs in place.)
    """
    return model._expand_inputs_for_generation(
        expand_size=times, is_encoder_decoder=bool(model.config.is_encoder_decoder), input_ids=input_ids, **model_kwargs
    )


def allowed_tokens_function(processor: PrefixConstrainedLogitsProcessor) -> Callable[[int, Tensor], list[int]]:
    """The ``prefix_allowed_tokens_fn`` of a call: from a row's index and its tokens to those that may follow."""
    function: Callable[[int, Tensor], list[int]] = processor._prefix_allowed_tokens_fn
    return function


def optimized_for_decode(model: Any) -> AbstractContextManager[None]:
    """Within this context experts of a mixture run in the form that is quick for few tokens, off the CPU.

    (``GenerationMixin._optimize_model_for_decode``)
    """
    return model._optimize_model_for_decode()


def has_unfinished_sequences(model: Any, finished: bool, synced_gpus: bool, device: torch.device) -> bool:
    """True where another forward pass is due: some row is not finished, under ``synced_gpus`` on any rank.

    (``GenerationMixin._has_unfinished_sequences``)
    """
    return model._has_unfinished_sequences(finished, synced_gpus, device=device)


def supports_logits_to_keep(model: Any) -> bool:
    """True where a model's forward takes ``logits_to_keep``. (``GenerationMixin._supports_logits_to_keep``)"""
    return model._supports_logits_to_keep()


def gguf_architectures() -> set[str]:
    """The architectures of GGUF files that transformers reads, by llama.cpp's names.

    (``modeling_gguf_pytorch_utils`` has most; those of ``integrations.gguf`` are read in another way.)
    """
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # Its table also has groups of metadata, and transformers' own names of what its loader renames.
    renamed = {"gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
    named = {renamed.get(name, name) for name in (*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS)}
    return named - {"general", "tokenizer", "tokenizer_config"}


def read_gguf(path: Path) -> tuple[dict[str, Any], tuple[str, ...], int | None]:
    """The metadata of a GGUF file, the names of its weights, and the byte at which they end.

    The end is None where the file has weights of a type that this reader does not know. Arrays of strings are their
    lengths. What a broken file raises passes. (``integrations.gguf.reader``)
    """
    from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata

    metadata, names = read_gguf_metadata(str(path))
    try:
        header = GgufHeader.from_file(str(path))
    except ValueError:
        return metadata, names, None
    return metadata, names, header.data_start + max((info.offset + info.nbytes for info in header.tensors), default=0)


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Within this context transformers parses a GGUF file once, and without a progress bar.

    Otherwise it parses the file for the config, for the tokenizer and for the weights, seconds each where the
    vocabulary has a usual size, and makes the table of all names of weights again for each module of the model. What
    is replaced belongs to the process, so one file is read at a time. (``modeling_gguf_pytorch_utils``, ``gguf``)
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loading

    with _GGUF, ExitStack() as stack:
        for module, name, function in (
            (loading, "tqdm", functools.partial(loading.tqdm, disable=True)),  # no setting of transformers turns it off
            (gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
            (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, function)
        yield
