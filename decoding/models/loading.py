"""Models by name: a folder, a GGUF file, a name on the Hugging Face hub, a built-in or a fetched one.

Every failure is one line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING as MODEL_FOR_SEQ2SEQ_LM_MAPPING,
)

from decoding.errors import DecodingError, ModelError, OptionError, one_line
from decoding.files import share_weights
from decoding.models.builtin import BUILT_IN
from decoding.models.device_options import check_shares, pick_device, placement
from decoding.models.gguf import GgufFile, complete_config, complete_model, complete_tokenizer
from decoding.models.quiet import quiet
from decoding.models.sources import check_json_object, check_no_hub_adapter, hub_config, source_and_file
from decoding.transformers_private import gguf_read_once

__all__ = ["DTYPES", "load", "load_processor", "load_tokenizer", "save", "source_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    spec: str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | None = None,
) -> tuple[Any, Any]:
    """Load a model, ready to generate, and its tokenizer.

    Args:
        spec: a built-in name; the name of a model that ``decoding fetch`` brought; a folder that ``save_pretrained``
            wrote; a ``.gguf`` file; or a name on the hub. The first kind that fits wins; ``./name`` is always a folder.
        device: "cpu", "cuda", "cuda:1", ...; None is cuda where there is one, else cpu.
        dtype: "float32", "bfloat16", "float16" or "auto" (as the weights are stored; float32 for the quantised
            weights of a ``.gguf`` file, which are dequantised); None is auto on a GPU and float32 on the CPU.
        device_map: splits the model over devices, as ``from_pretrained`` of transformers does: "auto", "balanced",
            "balanced_low_0", "sequential", or a mapping of modules to devices. Needs accelerate.
        tp_plan: "auto" divides the weights among the processes of torchrun (tensor parallelism). All of them must
            then make the same calls.

    Raises:
        ModelError: the model or its tokenizer cannot be loaded; one line says why.
        OptionError: an unknown dtype, a device that does not exist, or ways to place a model that exclude each other.

    Example:
        >>> model, tokenizer = decoding.load("expert")
    """
    for option, value in (("spec", spec), ("device", device), ("dtype", dtype)):
        if not isinstance(value, (str, Path)) and (option == "spec" or value is not None):
            raise OptionError(f"{option}={value!r}: must be text")
    spec = str(spec)
    placed = placement(device, device_map, tp_plan)
    chosen_device = pick_device(device)
    if dtype not in (None, "auto", *DTYPES):
        raise OptionError(f"dtype={dtype!r}: must be auto, {', '.join(DTYPES)}")
    name = dtype or ("float32" if chosen_device.type == "cpu" else "auto")
    with quiet():
        if spec in BUILT_IN:
            model, tokenizer = _built_in(spec, DTYPES.get(name, torch.bfloat16), placed)
        else:
            model, tokenizer = _from_pretrained(spec, name, placed)
        if placed:
            check_shares(spec, model)
            return model.eval(), tokenizer
        try:
            return model.to(chosen_device).eval(), tokenizer
        except RuntimeError as error:  # out of memory
            raise ModelError(f"{spec}: cannot be moved to {chosen_device} ({one_line(error)})") from error


def load_tokenizer(spec: str) -> Any:
    """Load a tokenizer alone.

    Args:
        spec: see :func:`load`.

    Raises:
        ModelError: it cannot be loaded; one line says why.
    """
    with quiet():
        if spec in BUILT_IN:
            return _built_in(spec, torch.float32, {})[1]
        return _tokenizer(spec, *source_and_file(spec))


def load_processor(spec: str) -> Any:
    """Load the processor of a model of images or of sound: it makes the model's inputs of them and of a text.

    Args:
        spec: see :func:`load`.

    Returns:
        A processor of transformers; its ``tokenizer`` is that of the texts.

    Raises:
        ModelError: the model has none, since it reads text alone, or it cannot be loaded; one line says why.
    """
    with quiet():
        source, file = (spec, None) if spec in BUILT_IN else source_and_file(spec)
        text_alone = f"{spec}: has no processor of images or sound; it is a model of text"
        if spec in BUILT_IN or file is not None:
            raise ModelError(text_alone)
        for name in ("processor_config.json", "preprocessor_config.json"):
            check_json_object(spec, Path(source) / name)
        failure = f"{spec}: its processor cannot be loaded"
        if importlib.util.find_spec("torchvision") is None:
            failure += ", which may need torchvision"
        processor = _attempt(failure, AutoProcessor.from_pretrained, source)
    # Where there is no processor, AutoProcessor returns the tokenizer, or a part of a processor.
    if not isinstance(processor, ProcessorMixin):
        raise ModelError(text_alone)
    return processor


def source_of(spec: str) -> str:
    """The folder or the hub name by which another program loads a model.

    Args:
        spec: see :func:`load`. A built-in model is loaded, since its package alone knows where its files are.

    Raises:
        ModelError: there is no such model, or it has no folder, as one in a ``.gguf`` file.
    """
    with quiet():
        if spec in BUILT_IN:
            source, file = str(_built_in(spec, torch.float32, {})[0].name_or_path), None
        else:
            source, file = source_and_file(spec)
    if file is not None or (spec in BUILT_IN and not Path(source).is_dir()):
        raise ModelError(f"{spec}: has no model folder, which other programs read; `decoding export` writes one")
    return source


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model that was loaded from a ``.gguf`` file as an ordinary folder.

    Args:
        model: as :func:`load` returned it; its dtype is that of the folder.
        tokenizer: of the model.
        folder: where the files go; made where it is missing.

    Raises:
        OSError: the files cannot be written.
    """
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    share_weights(folder, like="config.json")


def _built_in(name: str, dtype: torch.dtype, placed: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        return BUILT_IN[name](dtype, **placed)
    except DecodingError:
        raise
    except Exception as error:
        raise ModelError(f"the built-in model {name!r} cannot be loaded ({one_line(error)})") from error


def _from_pretrained(spec: str, dtype: str, placed: Mapping[str, Any]) -> tuple[Any, Any]:
    source, file = source_and_file(spec)
    with nullcontext() if file is None else gguf_read_once():
        return _from_source(spec, source, file, dtype, placed)


def _from_source(
    spec: str, source: str, file: GgufFile | None, dtype: str, placed: Mapping[str, Any]
) -> tuple[Any, Any]:
    config, options = _config(spec, source, file), dict(placed)
    if file is not None:
        options |= _of_file(file)
        # Read before, since that takes seconds; and no weight may stay packed, as transformers would have it.
        options |= {"config": config, "quantization_config": GgufConfig(dequantize=True)}
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise ModelError(f"{spec}: its config.json has num_hidden_layers {layers}, which must be at least 1")
    auto = _auto_class(spec, config)
    tokenizer = _tokenizer(spec, source, file)
    model, report = _attempt(
        f"{spec}: its weights cannot be loaded",
        auto.from_pretrained,
        source,
        dtype=DTYPES.get(dtype, "auto"),
        output_loading_info=True,
        **options,
    )
    # transformers would fill these with random numbers and only warn.
    for problem in ("missing_keys", "mismatched_keys"):
        if report.get(problem):
            first = sorted(map(str, report[problem]))[0]
            raise ModelError(
                f"{spec}: its weights do not fit its {'metadata' if file else 'config.json'} "
                f"({problem.replace('_', ' ')}: {len(report[problem])}, {first})"
            )
    if file is not None:
        complete_model(model, tokenizer, file)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = getattr(model.generation_config, name)
        if not all(isinstance(token, int) for token in (given if isinstance(given, list) else [given or 0])):
            raise ModelError(f"{spec}: its generation_config.json has {name} {given!r}, which must be a whole number")
    return model, tokenizer


def _auto_class(spec: str, config: Any) -> Any:
    """The class of transformers that loads the model of a config, with the part of it that sees or hears.

    Raises:
        ModelError: no class that generates text does.
    """
    images = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText)
    sound = (MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, AutoModelForSpeechSeq2Seq)
    if getattr(config, "is_encoder_decoder", False):
        ways = [(MODEL_FOR_SEQ2SEQ_LM_MAPPING, AutoModelForSeq2SeqLM), sound, images]
    else:
        ways = [(MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM), images, sound]
    # Some types (Llama 4, Qwen 3.5) have a class of text alone too: the folder says which one wrote it.
    named = getattr(config, "architectures", None) or ()
    fitting = [(mapping[type(config)], auto) for mapping, auto in ways if type(config) in mapping]
    writer = next((auto for class_, auto in fitting if getattr(class_, "__name__", None) in named), None)
    auto = writer or next((auto for _, auto in fitting), None)
    if auto is None:
        raise ModelError(
            f"{spec}: a {config.model_type} model has no head that generates text; expected a causal or "
            "sequence-to-sequence language model, or a model that writes text about images or speech"
        )
    return auto


def _config(spec: str, source: str, file: GgufFile | None) -> Any:
    if file is not None:
        failure = f"{spec}: its metadata are not those of a model"
        config = _attempt(failure, AutoConfig.from_pretrained, source, **_of_file(file))
        _attempt(failure, complete_config, config, file=file)
        return config
    if Path(source).is_dir():
        return _attempt(f"{spec}: its config.json cannot be read", AutoConfig.from_pretrained, source)
    config = hub_config(source)
    check_no_hub_adapter(source)
    return config


def _tokenizer(spec: str, source: str, file: GgufFile | None) -> Any:
    failure, options = f"{spec}: its tokenizer cannot be loaded", {} if file is None else _of_file(file)
    tokenizer = _attempt(failure, AutoTokenizer.from_pretrained, source, **options)
    if file is not None:
        _attempt(failure, complete_tokenizer, tokenizer, file=file)
    _attempt(f"{spec}: its tokenizer does not work", tokenizer, "An 8? é, 字 🙂")
    return tokenizer


def _of_file(file: GgufFile) -> dict[str, Any]:
    """The option of ``from_pretrained`` that names a file in the folder."""
    return {"gguf_file": file.path.name}


def _attempt(failure: str, load_it: Callable[..., Any], source: Any, **kwargs: Any) -> Any:
    try:
        return load_it(source, **kwargs)
    except Exception as error:  # readers of broken files raise errors of many kinds
        raise ModelError(f"{failure} ({one_line(error)})") from error
