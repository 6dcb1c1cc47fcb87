"""What a request may ask for: a strategy with its parameters, checked before it enters the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from decoding.errors import DecodingError, OptionError, nearest, shown
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.amateurs import ContrastiveDecodingRequest, LOLRequest
from decoding.serving.vllm.requests.base import PlainRequest, Request
from decoding.serving.vllm.requests.fields import GROUP, PLAIN, STRATEGY, VLLMS_OWN, as_list, as_number
from decoding.serving.vllm.requests.lower_layers import DeCoRequest, DoLaRequest, LowerLayersRequest, SLEDRequest
from decoding.serving.vllm.requests.search import ContrastiveSearchRequest
from decoding.serving.vllm.requests.second_prompts import (
    AdaptiveContextRequest,
    ContextAwareRequest,
    GuidanceRequest,
    SecondPromptRequest,
)
from decoding.serving.vllm.requests.weighted import WeightedContrastRequest

__all__ = [
    "GROUP",
    "PARAMETERS",
    "PLAIN",
    "REQUESTS",
    "STRATEGY",
    "AdaptiveContextRequest",
    "ContextAwareRequest",
    "ContrastiveDecodingRequest",
    "ContrastiveSearchRequest",
    "DeCoRequest",
    "DoLaRequest",
    "GuidanceRequest",
    "LOLRequest",
    "LowerLayersRequest",
    "PlainRequest",
    "Request",
    "SLEDRequest",
    "SecondPromptRequest",
    "WeightedContrastRequest",
    "as_list",
    "requested",
]

REQUESTS: dict[str, type[Request]] = {
    request.name: request
    for request in (
        DoLaRequest,
        ContrastiveDecodingRequest,
        LOLRequest,
        ContextAwareRequest,
        GuidanceRequest,
        ContrastiveSearchRequest,
        SLEDRequest,
        DeCoRequest,
        AdaptiveContextRequest,
        WeightedContrastRequest,
    )
}


# The strategies that have a parameter, by its name.
PARAMETERS: dict[str, list[str]] = {}
for _name, _request in REQUESTS.items():
    for _field in dataclasses.fields(_request):
        PARAMETERS.setdefault(_field.name, []).append(_name)


def requested(fields: Mapping[str, Any], engine: EngineReaders) -> Request | None:
    """The strategy that flat fields ask for, such as ``{"strategy": "dola", "alpha": 0.2}``; None where it is "none".

    Args:
        fields: a request's ``vllm_xargs``, or an engine's own strategy. Numbers may be numbers or text, lists lists or
            text with commas.
        engine: the engine's readers.

    Raises:
        OptionError: an unknown name, a parameter out of range, or a reader that the engine does not have.
    """
    given = {key: value for key, value in fields.items() if key != GROUP and key not in VLLMS_OWN}
    name = given.pop(STRATEGY)
    if name == PLAIN:
        if given:
            raise OptionError(f"strategy 'none' has no parameters, got {', '.join(map(str, given))}")
        return None
    if not isinstance(name, str) or name not in REQUESTS:
        raise OptionError(f"strategy={shown(name)}{nearest(str(name), [*REQUESTS, PLAIN])}")
    request_class = REQUESTS[name]
    known = [field.name for field in dataclasses.fields(request_class)]
    for key in given:
        if key not in known:
            raise OptionError(f"{name}: no parameter {key!r}{nearest(str(key), known)}")
    try:
        texts = request_class.text_fields
        values = {key: value if key in texts else as_number(value) for key, value in given.items()}
        return request_class(**values).on(engine)
    except DecodingError as error:
        raise OptionError(f"{name}: {error}" if not str(error).startswith(name) else str(error)) from error
