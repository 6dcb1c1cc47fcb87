"""A model folder whose own ``generate`` is a strategy: for ``from_pretrained``, pipelines, servers and the hub."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from decoding import api
from decoding.errors import DecodingError, ModelError, OptionError, one_line
from decoding.generation.strategy import Strategy
from decoding.models.adapters import adapters_of
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.loading import load
from decoding.models.probe import probe_inputs
from decoding.models.quiet import quiet
from decoding.strategies.contrast.amateurs import Prompt, amateur_reader
from decoding.strategies.registry import STRATEGIES, StrategySpec, exportable_strategies, parse_strategy
from decoding.strategies.stored import AMATEUR, SETTINGS, home_of
from decoding.transformers_private import with_no_model_defaults
from decoding.versions import __version__

__all__ = ["LINKS", "export"]

LINKS = ("hard", "sym")

# What from_pretrained may read of a folder, and what tells people about the model; no checkpoints of a training.
CARRIED = (
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
LEFT = (
    "optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args.bin", "consolidated*",
    "generation_config.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"

# Options of a generation config that are another way to choose tokens, that strategies refuse, or that training leaves
# behind (use_cache).
OTHER_WAYS = (
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
    strategy: Strategy | str,
    output: str | Path,
    *,
    link: str | None = None,
    force: bool = False,
    device: str | None = None,
    device_map: str | None = None,
) -> Path:
    """Write a model folder whose ``generate`` is a strategy.

    The folder holds the model's files, ``custom_generate/generate.py``, the strategy and its parameters in
    ``generation_config.json``, and in ``amateur/`` the amateur that the strategy may have. It can be moved, and
    uploaded to the hub. ``from_pretrained(folder, trust_remote_code=True)`` gives a model that generates with the
    strategy, where this package is installed in the same minor version. docs/serving.md says more.

    Args:
        model: a folder, a hub name or a built-in model.
        strategy: one of this library, or its name with parameters as :func:`decoding.strategies.registry.named` takes it. An
            amateur is given by folder or name.
        output: the folder to write. It appears when it is complete, or not at all.
        link: "hard" or "sym" links the files to those of the model; None copies them.
        force: replace ``output`` with all that it holds.
        device: where the strategy is tried on the model before anything is written; see :func:`decoding.models.loading.load`.
        device_map: likewise, over several devices.

    Returns:
        The folder.

    Raises:
        OptionError: a strategy that is no strategy of this library, or an ``output`` that cannot be written.
        ModelError: the model or the amateur cannot be loaded, or the strategy cannot decode them.

    Example:
        >>> decoding.export("path/to/model", ContrastiveSearch(top_k=5), "path/to/exported")
    """
    choice = _chosen(strategy)
    if link not in (None, *LINKS):
        raise OptionError(f"link={link!r}: accepted are {', '.join(LINKS)}, or None for copies")
    with _written(Path(output).expanduser(), force) as (folder, replaced):
        loaded, tokenizer = load(str(model), device, "auto", device_map=device_map)
        loaded.generation_config = config = _config(loaded)
        how = choice.with_tokenizer(tokenizer).strategy
        amateur = _amateur_folder(choice, loaded, tokenizer)  # before the trial puts an adapter on the model
        _try(how, loaded)
        for source, place in ((home_of(loaded, local_files_only=True), folder), (amateur, folder / AMATEUR)):
            if source is not None and source.is_relative_to(replaced):
                raise OptionError(f"output={str(output)!r} holds {source}, which is exported: give another folder")
            if source is not None:
                _carry(source, place, link)
        settings = {"name": choice.name, **{name: _as_json(name, each) for name, each in choice.parameters.items()}}
        if amateur is not None:
            settings["amateur"] = f"./{AMATEUR}"
        setattr(config, SETTINGS, settings)
        try:
            config.save_pretrained(folder)
        except ValueError as error:
            raise ModelError(f"{model}: its generation config cannot be written ({one_line(error)})") from error
        _write_code(how.name, folder)
    return Path(output)


def _chosen(strategy: Strategy | str) -> StrategySpec:
    if isinstance(strategy, str):
        choice = parse_strategy(strategy)
    else:
        choice = StrategySpec(STRATEGIES.name_of(type(strategy)) or type(strategy).__name__, strategy)
    if choice.name not in exportable_strategies():
        raise OptionError(
            f"strategy {choice.name}: is none of this library, and a generation_config.json says it without code; "
            f"accepted: {', '.join(exportable_strategies())}"
        )
    return choice


def _config(model: Any) -> GenerationConfig:
    """The model's generation config without other ways to choose tokens."""
    config = copy.deepcopy(model.generation_config)
    for name in OTHER_WAYS:
        if hasattr(config, name):
            setattr(config, name, None)
    config.do_sample = False  # said and not left out: pipelines would sample
    return with_no_model_defaults(config)


def _amateur_folder(choice: StrategySpec, model: Any, tokenizer: Any) -> Path | None:
    """Where the files of the strategy's amateur are; None where it has none (a prompt, an adapter in the model)."""
    amateur = choice.parameters.get("amateur")
    if isinstance(amateur, (str, Path)):
        if str(amateur) in adapters_of(model) or str(amateur).startswith("prompt:"):
            return None
        adapter = BUILT_IN_ADAPTERS.get(str(amateur), Path(amateur).expanduser())
        if (adapter / "adapter_config.json").is_file():
            return adapter.resolve()
        return home_of(amateur_reader(amateur, model, 1, tokenizer).model, local_files_only=True)
    if amateur is not None and not isinstance(amateur, Prompt):
        raise OptionError(
            f"amateur={type(amateur).__name__}: is in memory and has no files to export; give the folder that "
            "save_pretrained() wrote, or a hub name"
        )
    return None


def _try(strategy: Strategy, model: Any) -> None:
    """Generate two tokens: what this model cannot do is found out before anybody relies on it."""
    try:
        with quiet():
            api.generate(model, probe_inputs(model)["input_ids"], strategy=strategy, max_new_tokens=2)
    except DecodingError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model.name_or_path}: cannot be decoded with {strategy.name} ({type(error).__name__}: {one_line(error)})"
        ) from error


def _as_json(name: str, value: Any) -> Any:
    """A parameter as ``generation_config.json`` holds it."""
    if isinstance(value, Prompt):
        return {"text": _as_json(name, value.text)}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(name, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(name, each) for each in value]
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise OptionError(f"{name}={value!r} cannot be written to a file; accepted are text, numbers and lists of them")
    return value


@contextmanager
def _written(output: Path, force: bool) -> Iterator[tuple[Path, Path]]:
    """A new folder beside ``output`` that takes its place when all went well; and ``output``, links resolved.

    Raises:
        OptionError: ``output`` may not be replaced, or cannot be written.
    """
    output = output.resolve()
    if output.exists() and not output.is_dir():
        raise OptionError(f"output={str(output)!r} is a file; accepted is a folder")
    if output.is_dir() and any(output.iterdir()):
        if not force:
            raise OptionError(
                f"output={str(output)!r} is not empty; give a new folder, or force=True (--force) to replace it"
            )
        if any(each.resolve().is_relative_to(output) for each in (Path.cwd(), Path.home())):
            raise OptionError(f"output={str(output)!r} holds the working or the home folder and is not replaced")
    new, old = (output.with_name(f".{output.name}.{os.getpid()}.{part}") for part in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new, output
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OptionError(f"output={str(output)!r}: cannot be written ({one_line(error)})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _carry(source: Path, target: Path, link: str | None) -> None:
    """Bring a model's files to a folder, as copies or links."""
    files = [each for each in sorted(source.iterdir()) if _is_carried(each.name) and each.is_file()]
    if any(each.suffix == ".safetensors" for each in files):
        files = [each for each in files if not fnmatch(each.name, "pytorch_model*")]  # the same weights once more
    files += sorted((source / TEMPLATES).glob("*.jinja"))
    if not any(each.suffix in (".safetensors", ".bin") for each in files):
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


def _is_carried(name: str) -> bool:
    return any(fnmatch(name, each) for each in CARRIED) and not any(fnmatch(name, each) for each in LEFT)


def _write_code(strategy: str, folder: Path) -> None:
    """What transformers runs as the model's ``generate``, and what it asks to be installed for that."""
    version = ".".join(__version__.split(".")[:2])
    lora = (folder / AMATEUR / "adapter_config.json").is_file()
    install = f'pip install "contrastive-decoding{"[lora]" if lora else ""}=={version}.*"'
    code = folder / "custom_generate"
    code.mkdir()
    (code / "generate.py").write_text(
        GENERATE.format(strategy=strategy, settings=SETTINGS, version=version, install=install), encoding="utf-8"
    )
    # transformers looks here before it runs the code, and its message is these lines: so they say how to install.
    needed = [f"contrastive-decoding>={version}  # {install}", *(["peft>=0.15"] if lora else [])]
    (code / "requirements.txt").write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
