"""A model folder whose own ``generate`` is a strategy: for ``from_pretrained``, pipelines, servers and the hub."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GenerationConfig

from decoding import api
from decoding.drafts.options import names_model
from decoding.errors import DecodingError, ModelError, OptionError, one_line, shown
from decoding.files import expanded, remove_abandoned, workspace
from decoding.generation.strategy import Strategy
from decoding.models.adapter_folders import is_adapter_folder
from decoding.models.adapters import adapters_of
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.gguf import is_gguf
from decoding.models.loading import load, load_processor, load_tokenizer, save
from decoding.models.media import processed, sampling_rate
from decoding.models.probe import probe_inputs
from decoding.models.quiet import quiet
from decoding.models.text_config import vocab_size
from decoding.strategies.contrast.amateurs import second_reader
from decoding.strategies.generation_options import NO_OPTIONS, check_apply, check_tokens, checked_options
from decoding.strategies.given import GivenStrategy, given_strategy
from decoding.strategies.named_readers import change_named_readers, named_readers
from decoding.strategies.parameters_text import as_json
from decoding.strategies.registry import STRATEGIES, StrategySpec, exportable_strategies
from decoding.strategies.stored import SETTINGS, home_of
from decoding.transformers_private import with_no_model_defaults
from decoding.versions import __version__

__all__ = ["LINKS", "export"]

LINKS = ("hard", "sym")

# Files that from_pretrained may read of a folder, and those that tell people about the model; no training checkpoints.
INCLUDED = (
    "*.json",
    "*.safetensors",
    "*.bin",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.jinja",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)
EXCLUDED = (
    "optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args.bin", "consolidated*",
    "generation_config.json",
)  # fmt: skip
Source = Path | tuple[Any, Any]  # a folder whose files are copied, or a model and its tokenizer that have no folder

TEMPLATES = "additional_chat_templates"

# Options of a generation config that are another way to choose tokens, that strategies refuse, or that are left from
# training (use_cache).
OTHER_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams",
    "num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty", "num_return_sequences",
    "penalty_alpha", "dola_layers", "low_memory", "prompt_lookup_num_tokens", "assistant_early_exit", "use_cache",
)  # fmt: skip

GENERATE = '''\
"""This model's generate(): {strategy}, by the package contrastive-decoding.

Written by `decoding export`. transformers runs it where the model is loaded with trust_remote_code=True. The strategy
and its parameters are "{settings}" in generation_config.json.
"""

NEEDED = "{version}"
INSTALL = '{install}'

try:
    from decoding import __version__

    if __version__.split(".")[:2] != NEEDED.split("."):
        raise ImportError(f"{{__version__}} is installed")
    from decoding.exported import generate, refuse_continuous_batching
except ImportError as error:
    raise ImportError(f"this model generates with contrastive-decoding {{NEEDED}} ({{error}}): {{INSTALL}}") from error

refuse_continuous_batching()  # which would leave the strategy out

__all__ = ["generate"]
'''


def export(
    model: str | Path,
    strategy: GivenStrategy,
    output: str | Path,
    *,
    link: str | None = None,
    force: bool = False,
    device: str | None = None,
    device_map: str | None = None,
    generation_config: Mapping[str, Any] = NO_OPTIONS,
) -> Path:
    """Write a model folder whose ``generate`` is a strategy.

    The folder holds the model's files, ``custom_generate/generate.py``, the strategy and its parameters in
    ``generation_config.json``, and in ``amateur/`` the amateur that the strategy may have; other models that a strategy
    names are in folders named after its parameters, such as ``tuned/`` or ``terms-2/``. It can be moved, and uploaded
    to the hub. ``from_pretrained(folder, trust_remote_code=True)`` loads a model that generates with the
    strategy, where this package is installed in the same minor version. See docs/serving.md.

    Args:
        model: a folder, a hub name, a built-in or fetched model, or a ``.gguf`` file, whose weights are written
            dequantised in float32.
        strategy: a registered strategy, as an object, as its name with parameters, or as what
            :func:`decoding.strategies.registry.parse_strategy` made of that. An amateur is given by folder or name.
            One of another package needs that package where the folder is used.
        output: the folder to write. It appears when it is complete, or not at all.
        link: "hard" or "sym" links the files to those of the model; None copies them.
        force: replace ``output`` and all that is in it.
        device: where the strategy is tried on the model before anything is written; see
            :func:`decoding.models.loading.load`.
        device_map: likewise, over several devices.
        generation_config: options of transformers' ``GenerationConfig`` to write beside the strategy, such as
            ``{"repetition_penalty": 1.2}``.

    Returns:
        The folder.

    Raises:
        OptionError: a strategy that is not registered, options that are unknown or out of range, or an ``output`` that
            cannot be written.
        ModelError: the model or the amateur cannot be loaded, or the strategy cannot decode them.

    Example:
        >>> decoding.export("path/to/model", ContrastiveSearch(top_k=5), "path/to/exported")
    """
    spec = _chosen(strategy)
    options = checked_options(generation_config)
    check_apply(options, [spec])
    if link not in (None, *LINKS):
        raise OptionError(f"link={shown(link)}: must be {' or '.join(LINKS)}, or None for copies")
    with _written(expanded(output), force) as (folder, replaced):
        loaded, tokenizer = load(str(model), device, "auto", device_map=device_map)
        check_tokens(options, vocab_size(loaded))
        loaded.generation_config = config = _config(loaded, options)
        if names_model(drafts := getattr(config, "drafts", None)):
            raise OptionError(
                f"drafts={drafts!r}: the folder will hold no such model; must be prompt-lookup, amateur or exit:LAYER"
            )
        tried = spec.with_tokenizer(tokenizer).strategy
        sources = _sources(spec, loaded, tokenizer)  # before the trial puts an adapter on the model
        _try(tried, loaded, str(model))
        if is_gguf(loaded.name_or_path):
            home: Source = (loaded, tokenizer)
        else:
            home = home_of(loaded, local_files_only=True)
        for source, target in ((home, folder), *((source, folder / place) for place, source in sources.items())):
            if isinstance(source, tuple):
                _save(*source, target, link)
            else:
                if source.is_relative_to(replaced):
                    raise OptionError(f"output={str(output)!r} holds {source}, which is exported: give another folder")
                _copy_files(source, target, link)
        parameters = change_named_readers(
            type(spec.strategy), spec.parameters, lambda place, reader: f"./{place}" if place in sources else reader
        )
        settings = {name: as_json(name, value) for name, value in parameters.items()}
        setattr(config, SETTINGS, {"name": spec.name, **settings})
        try:
            config.save_pretrained(folder)
        except ValueError as error:
            raise ModelError(f"{model}: its generation config cannot be written ({one_line(error)})") from error
        _write_code(tried.name, folder)
    return Path(output)


def _chosen(strategy: GivenStrategy) -> StrategySpec:
    spec = given_strategy(strategy)
    name = STRATEGIES.name_of(type(spec.strategy))
    if name not in exportable_strategies():
        name = name or type(spec.strategy).__name__
        raise OptionError(
            f"strategy {name}: cannot be exported, since generation_config.json holds a name and no code; "
            f"expected {', '.join(exportable_strategies())}, or one that decoding.register was given"
        )
    return spec


def _config(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """The model's generation config without other ways to choose tokens, and with these options."""
    config = copy.deepcopy(model.generation_config)
    for name in OTHER_OPTIONS:
        if hasattr(config, name):
            setattr(config, name, None)
    for name, value in config.update(**options).items():
        setattr(config, name, value)  # those that transformers does not declare
    config.do_sample = False  # written and not left out: pipelines would sample
    return with_no_model_defaults(config)


def _sources(spec: StrategySpec, model: Any, tokenizer: Any) -> dict[str, Source]:
    """The models that the strategy names, by the folder that they are to have; no adapters that are in the model."""
    return {
        place: _source(place, reader, model, tokenizer)
        for place, reader in named_readers(type(spec.strategy), spec.parameters).items()
        if str(reader) not in adapters_of(model)
    }


def _source(place: str, reader: Any, model: Any, tokenizer: Any) -> Source:
    if not isinstance(reader, (str, Path)):
        raise OptionError(
            f"{place}={type(reader).__name__}: is in memory and has no files to export; give the folder that "
            "save_pretrained() wrote, or a hub name"
        )
    adapter = BUILT_IN_ADAPTERS.get(str(reader), expanded(reader))
    if is_adapter_folder(adapter):
        return adapter.resolve()
    loaded = second_reader(reader, model, 1, tokenizer, role=place).model
    if is_gguf(str(reader)):
        return loaded, load_tokenizer(str(reader))
    return home_of(loaded, local_files_only=True)


def _try(strategy: Strategy, model: Any, name: str) -> None:
    """Generate two tokens, so that a model that the strategy cannot decode is refused before anything is written."""
    try:
        with quiet():
            api.generate(model, _trial_inputs(strategy, model, name), strategy=strategy, max_new_tokens=2)
    except DecodingError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model.name_or_path}: cannot be decoded with {strategy.name} ({type(error).__name__}: {one_line(error)})"
        ) from error


def _trial_inputs(strategy: Strategy, model: Any, name: str) -> dict[str, Any]:
    """Random tokens, or what the model's processor makes of a grey image or of silence."""
    hears = model.config.is_encoder_decoder and model.main_input_name in ("input_features", "input_values")
    if strategy.media is None and not hears:
        return {"input_ids": probe_inputs(model)["input_ids"]}
    processor = load_processor(name)
    chat = bool(getattr(processor, "chat_template", None)) and not hears
    if strategy.media == "image":
        prompt = "a" if chat else f"{getattr(processor, 'image_token', '')} a"
        return processed(model, processor, prompt, [np.full((64, 64, 3), 128, np.uint8)], chat=chat)
    silence = np.zeros(sampling_rate(processor) // 2, np.float32)
    prompt = "a" if chat else f"{getattr(processor, 'audio_token', '')} a"
    return processed(model, processor, "" if hears else prompt, sound=silence, chat=chat)


@contextmanager
def _written(output: Path, force: bool) -> Iterator[tuple[Path, Path]]:
    """A new folder beside ``output`` that takes its place when all went well; and ``output``, links resolved.

    Raises:
        OptionError: ``output`` may not be replaced, or cannot be written.
    """
    output = output.resolve()
    if output.exists() and not output.is_dir():
        raise OptionError(f"output={str(output)!r} is a file; it must be a folder")
    if _is_filled(output):
        _check_replaceable(output, force)
    temporary = output.with_name(f"{output.name}.export")  # .NAME.something beside it may be the user's
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(temporary)
        with workspace(temporary) as work:
            new = work / "new"
            new.mkdir()
            yield new, output
            if _is_filled(output):  # it may have been filled meanwhile
                _check_replaceable(output, force)
                _replace(output, new, work)
            else:
                if output.exists():
                    output.rmdir()
                new.rename(output)
    except OSError as error:
        raise OptionError(f"output={str(output)!r}: cannot be written ({one_line(error)})") from error


def _replace(output: Path, new: Path, work: Path) -> None:
    """Put a new folder in the place of a filled one, which goes with the workspace.

    Where the process is killed between the two, the old folder lies beside its place by a name that shows, and nothing
    removes it.
    """
    old = output.with_name(f"{output.name}.old-{os.getpid()}")
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:  # an interruption too
        if not output.exists():
            old.rename(output)
        raise
    with suppress(OSError):  # what cannot be removed stays
        old.rename(work / "old")


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _check_replaceable(output: Path, force: bool) -> None:
    """Raise OptionError where a folder that holds something may not be replaced."""
    if not force:
        raise OptionError(
            f"output={str(output)!r} is not empty; give a new folder, or force=True (--force) to replace it"
        )
    if any(used.resolve().is_relative_to(output) for used in (Path.cwd(), Path.home())):
        raise OptionError(f"output={str(output)!r} holds the working or the home folder and is not replaced")


def _save(model: Any, tokenizer: Any, target: Path, link: str | None) -> None:
    """Write a model that was read from a .gguf file."""
    if link is not None:
        raise OptionError(f"link={shown(link)}: {model.name_or_path} has no files that a model folder could link to")
    save(model, tokenizer, target)


def _copy_files(source: Path, target: Path, link: str | None) -> None:
    """Copy or link a model's files into a folder."""
    files = [file for file in sorted(source.iterdir()) if _is_included(file.name) and file.is_file()]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if not fnmatch(file.name, "pytorch_model*")]  # the same weights once more
    files += sorted((source / TEMPLATES).glob("*.jinja"))
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise ModelError(f"{source}: holds no weights (*.safetensors or *.bin) that could be exported")
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        real = file.resolve()  # the hub's cache links its files
        if link == "sym":
            place.symlink_to(real)
        elif link == "hard":
            try:
                place.hardlink_to(real)
            except OSError as error:
                raise OptionError(
                    f"link='hard': {real} cannot be linked ({one_line(error)}); link='sym' can"
                ) from error
        else:
            shutil.copyfile(real, place)


def _is_included(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in INCLUDED) and not any(fnmatch(name, p) for p in EXCLUDED)


def _write_code(strategy: str, folder: Path) -> None:
    """Write the code that transformers runs as the model's ``generate``, and the packages that it needs."""
    version = ".".join(__version__.split(".")[:2])
    lora = any(folder.glob("*/adapter_config.json"))
    install = f'pip install "contrastive-decoding{"[lora]" if lora else ""}=={version}.*"'
    code = folder / "custom_generate"
    code.mkdir()
    (code / "generate.py").write_text(
        GENERATE.format(strategy=strategy, settings=SETTINGS, version=version, install=install), encoding="utf-8"
    )
    # transformers reads this before it runs the code, and its message is these lines: so they say how to install.
    needed = [f"contrastive-decoding>={version}  # {install}", *(["peft>=0.15"] if lora else [])]
    if (package := STRATEGIES.requirement_of(strategy)) is not None:
        needed.append(package)
    (code / "requirements.txt").write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
