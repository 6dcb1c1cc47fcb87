"""The bases of requests, and the request for the model's own logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from decoding.errors import OptionError
from decoding.parameters import require_range
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.fields import PLAIN

__all__ = ["MaskedRequest", "PlainRequest", "Request"]


@dataclass(frozen=True)
class Request(ABC):
    """A strategy's parameters, of one request. Fields have the names, defaults and ranges of the strategy's class."""

    name: ClassVar[str]
    needs_amateur: ClassVar[bool] = False
    reads_second_prompt: ClassVar[bool] = False
    second_field: ClassVar[str] = ""  # the parameter that has a second prompt
    masks: ClassVar[bool] = False  # implausible tokens, by a field alpha
    text_fields: ClassVar[frozenset[str]] = frozenset()  # whose values are text, whatever they look like

    @property
    @abstractmethod
    def kind(self) -> Hashable:
        """What rows must have in common to be computed in one launch."""

    @property
    def second(self) -> str | Sequence[int] | None:
        """The second prompt that is read: text, token ids, or None for the last token of the request's own."""
        return None

    @property
    def layers_read(self) -> tuple[int, ...]:
        """The lower layers that the request reads, after :meth:`on`."""
        return ()

    def followers(self, engine: EngineReaders) -> int:
        """The number of further readings that the request has in each step, each of them a request beside it."""
        return int(self.needs_amateur and engine.adapter)

    def on(self, engine: EngineReaders) -> Request:
        """The request with its layers as numbers of this engine's model.

        Raises:
            OptionError: the engine has no such reader.
        """
        if self.needs_amateur and engine.amateur is None:
            raise OptionError(
                f'{self.name}: this engine has no amateur; start it with one ("amateur": a model\'s folder or name)'
            )
        return self


@dataclass(frozen=True)
class MaskedRequest(Request):
    """A request with plausibility's α in [0, 1]."""

    alpha: float = 0.1
    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_range("alpha", self.alpha, 0.0, 1.0)


@dataclass(frozen=True)
class PlainRequest(Request):
    """The model's own logits, on an engine that has a strategy for requests that name none."""

    name: ClassVar[str] = PLAIN

    @property
    def kind(self) -> Hashable:
        """All rows are taken together."""
        return type(self)
