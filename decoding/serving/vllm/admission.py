"""Whether an engine takes a request, which vLLM asks a class of processors where requests enter.

The class knows nothing of the engine that asks. So each engine has one of its own, which its configuration names.
Engines without strategies have none, and vLLM asks them the class of this library's entry point alone. It loads that
class for each list of processors, right before those that a configuration names: so each list has an entry class of its
own, and the one that no admission is loaded behind refuses strategies.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from decoding.errors import OptionError
from decoding.serving.vllm.engines import ENGINES, RunningEngine
from decoding.serving.vllm.requests import (
    GROUP,
    PARAMETERS,
    STRATEGY,
    ContrastiveSearchRequest,
    Request,
    requested,
)
from decoding.serving.vllm.second_prompts import check_second_prompt

__all__ = ["Entrance", "admission_of", "fields_of", "scores_prompt"]

PREFIX = "AdmissionTo"


def admission_of(instance_id: str) -> str:
    """The name by which vLLM's configuration has the class of an engine."""
    return f"{__name__}:{PREFIX}{instance_id}"


class Loading(threading.local):
    """The list of processors that this thread loads.

    Attributes:
        entrance: its entry class; None where an admission was loaded behind it.
    """

    entrance: type[Entrance] | None = None


LOADING = Loading()


class Entrance:
    """Base of the entry class, which checks the requests of engines that have no admission."""

    is_admitted: ClassVar[bool] = False

    @classmethod
    def loaded(cls) -> type[Any]:
        """A class of its own for the list of processors that is being loaded."""
        LOADING.entrance = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__})
        return LOADING.entrance

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise OptionError for a request that the engine does not serve; vLLM makes HTTP 400 of it.

        Beside engines without strategies, those with drafts on the V1 runner have no admission, since vLLM has no
        further processors there. An engine of either sort may ask where both are in one process.
        """
        if cls.is_admitted:
            return
        fixed = [engine for engine in ENGINES.values() if engine.has_one_strategy]
        if fixed:
            check(sampling_params, fixed[-1])
        elif (fields := fields_of(sampling_params)) is not None:
            raise OptionError(
                f"strategy={fields[STRATEGY]!r}: this engine serves no strategies; start it as "
                "`decoding serve --engine vllm` does, with an architecture Contrast..."
            )


class Admission(ProcessorV1, ProcessorV2):
    """Checks the requests of one engine, and leaves logits as they are."""

    instance_id: ClassVar[str]

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise OptionError for a request that the engine does not serve, which clients see as HTTP 400."""
        if (engine := ENGINES.get(cls.instance_id)) is not None:
            check(sampling_params, engine)

    def __init__(self, vllm_config: Any, device_or_states: Any, pin_memory: bool | None = None) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        """True: it changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Note nothing (V1 runner)."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """False: no request needs it (V2 runner)."""
        return False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits."""
        return logits


def __getattr__(name: str) -> Any:
    """The class of an engine, by :func:`admission_of`."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (entrance := LOADING.entrance) is not None:
        entrance.is_admitted, LOADING.entrance = True, None
    return type(name, (Admission,), {"__module__": __name__, "instance_id": name.removeprefix(PREFIX)})


def fields_of(params: SamplingParams) -> Mapping[str, Any] | None:
    """The fields of a request's parameters that ask for a strategy; None where there are none."""
    fields = params.extra_args or {}
    return fields if STRATEGY in fields else None


def scores_prompt(params: SamplingParams) -> bool:
    """Whether a request asks for log-probabilities of its prompt's tokens."""
    return params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None


def check(params: SamplingParams, engine: RunningEngine) -> None:
    """Refuse what a request asks for and an engine does not give.

    Raises:
        OptionError: names it.
    """
    fields = fields_of(params)
    if fields is None:
        nameless = next((key for key in params.extra_args or {} if key in PARAMETERS), None)
        if nameless is not None:
            raise OptionError(
                f'{nameless}: is a parameter of a strategy, which vllm_xargs do not name; give "strategy" too, one of '
                f"{', '.join(PARAMETERS[nameless])}"
            )
        request = engine.settings.default
    elif GROUP in fields:  # the scheduler's, which it adds after this
        raise OptionError(f"{fields[STRATEGY]}: no parameter {GROUP!r}")
    else:
        request = requested(fields, engine.settings.readers)
    check_request(request, params, engine)


def check_request(request: Request | None, params: SamplingParams, engine: RunningEngine) -> None:
    """Refuse a strategy that an engine does not give, and what one with several readings of a request does not have.

    Raises:
        OptionError: names it.
    """
    if engine.has_one_strategy and request != engine.settings.default:
        raise OptionError(
            "strategy: with drafts and the V1 model runner requests have this engine's own strategy alone; leave it "
            "out, or start the engine without drafts or with VLLM_USE_V2_MODEL_RUNNER=1"
        )
    if request is not None and request.followers(engine.settings.readers) and scores_prompt(params):
        raise OptionError(
            f"{request.name}: prompt_logprobs: a prompt that has several readings here is not scored; leave it out, or "
            "use decoding.score"
        )
    own_logits = request is None and engine.settings.default is None
    if scores_prompt(params) and not own_logits and not engine.scores_prompts:
        raise OptionError(
            "prompt_logprobs: with cudagraph_mode=FULL on the V1 model runner a step does not tell whose tokens are "
            "whose; start the engine with FULL_AND_PIECEWISE, or with VLLM_USE_V2_MODEL_RUNNER=1"
        )
    if isinstance(request, ContrastiveSearchRequest):
        check_search(params)
    if request is not None and request.reads_second_prompt:
        check_second_prompt(request, engine.model_config)
    if request is None or not request.followers(engine.settings.readers) or engine.rewinds_seeds:
        return
    if params.seed is not None and params.temperature > 0:
        raise OptionError(
            f"{request.name}: seed={params.seed}: vLLM's V1 model runner has no seeds on a CPU where a prompt is read "
            "in parts; leave seed out, or start the engine with VLLM_USE_V2_MODEL_RUNNER=1"
        )


def check_search(params: SamplingParams) -> None:
    """Refuse what contrastive search does not have here.

    Raises:
        OptionError: names it.
    """
    if params.temperature != 0:
        raise OptionError(f"contrastive-search: temperature={params.temperature}: it does not draw; must be 0")
    plain = {
        "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_tokens": 0, "bad_words": None,
        "logit_bias": None, "allowed_token_ids": None, "structured_outputs": None,
    }  # fmt: skip
    for name, value in plain.items():
        given = getattr(params, name)
        if given != value and given:
            raise OptionError(f"contrastive-search: {name}={given!r}: candidates are chosen without it; leave it out")
