"""The ``generate`` of an exported model folder: the strategy that its ``generation_config.json`` names."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from transformers import GenerationMixin

from decoding import api
from decoding.drafts.options import draft_options, names_model
from decoding.errors import OptionError
from decoding.strategies.given import given_strategy
from decoding.strategies.named_readers import named_readers
from decoding.strategies.stored import settings_of_call

__all__ = ["generate", "refuse_continuous_batching"]


def generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """The ``generate`` of a model that was exported: takes what ``model.generate`` takes, the streamer included.

    Parameters of the strategy may be given as keywords, for this call: ``model.generate(**inputs, penalty_alpha=0.4)``.
    A ``custom_generate`` of the call has priority over the strategy, and so has ``decoding_strategy=None``, as a
    keyword or in a generation config: both are the model's plain ``generate``.

    Raises:
        OptionError: settings that name no strategy, or another model beside this one than those that were exported;
            drafts, or a reader of a strategy as text, of a model that is given by name.
        ModelError: a model that the settings name is not in the folder.
    """
    arguments = dict(_signature().bind(model, *args, **kwargs).arguments)
    arguments |= arguments.pop("kwargs", {})
    arguments.pop("self")
    settings = settings_of_call(model, arguments.get("generation_config"), arguments)
    if arguments.get("custom_generate") is not None or settings is None:
        # Some models' own generate() has another name for its first parameter.
        first = arguments.pop("inputs", None)
        return type(model).generate(model, *(() if first is None else (first,)), **arguments)
    arguments.pop("custom_generate", None)
    _check_strategy(arguments.get("strategy"))
    _check_drafts(model, arguments)
    return api.generate(model, **arguments)


def _check_strategy(strategy: Any) -> None:
    """Refuse to load a model that a strategy names as text: servers pass on what their clients send."""
    if isinstance(strategy, str):
        spec = given_strategy(strategy)
        named = named_readers(type(spec.strategy), spec.parameters)
        if named:
            place, reader = next(iter(named.items()))
            raise OptionError(
                f"strategy: {place}={reader!r} names another model, and an exported model loads none; give the "
                "strategy as an object"
            )


def _check_drafts(model: Any, arguments: dict[str, Any]) -> None:
    """Refuse to load a model to draft: a server's clients send generation configs and must not choose what is read."""
    configs = arguments.get("generation_config"), model.generation_config
    given = draft_options(arguments.get("drafts"), arguments.get("draft_tokens"), *configs)
    if given is not None and names_model(given.drafts):
        raise OptionError(f"drafts={given.drafts!r}: an exported model loads no other; pass the model itself")


def refuse_continuous_batching() -> None:
    """Let models that were exported refuse ``generate_batch`` and servers' ``--continuous-batching``.

    These call no ``generate``: they would return greedy text without a warning. transformers has no place where a model
    could refuse, so the method of all models is wrapped; others pass through. Exported folders' code calls this.
    """
    begin = GenerationMixin.init_continuous_batching
    if getattr(begin, "refuses_exported", False):
        return

    @functools.wraps(begin)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(vars(self).get("generate"), "func", None) is generate:
            raise OptionError(
                f"continuous batching would leave out the strategy of {self.name_or_path}: call generate(), start the "
                "server without --continuous-batching, or load the model without trust_remote_code"
            )
        return begin(self, *args, **kwargs)

    checked.refuses_exported = True  # type: ignore[attr-defined]
    GenerationMixin.init_continuous_batching = checked  # type: ignore[method-assign]


@functools.cache
def _signature() -> inspect.Signature:
    return inspect.signature(GenerationMixin.generate)
