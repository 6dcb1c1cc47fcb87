"""What every strategy is: frozen hyper-parameters that make one session a ``generate()`` call."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList

from decoding.capturable import request_capture
from decoding.errors import InputError, ModelError, OptionError
from decoding.placement import input_device
from decoding.prompts import check_cache, check_mask, check_tokens, context_of
from decoding.reading import Reading
from decoding.reading_anew import tell_cost

__all__ = ["Session", "Strategy"]


class Session(ABC):
    """One ``generate()`` call of a strategy: owns its streams and all else that changes.

    Attributes:
        logits: (batch, vocab) the model's own next-token logits, before any processor.
        reading: of the tokens read last (what ``output_hidden_states`` and ``output_attentions`` report).
    """

    logits: Tensor
    reading: Reading

    @abstractmethod
    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch, vocab) float32 next-token scores; -inf for tokens that may not be chosen.

        Args:
            input_ids: (batch, length) all tokens so far.
            logits_processor: callable on (input_ids, float32 logits), as transformers' processor lists are.
        """

    def greedy(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch,) the tokens with the largest of :meth:`scores`, where these themselves are not wanted; -1 where no
        token may be chosen, since all scores are -inf or one is NaN.

        :meth:`advance` is then given these tokens, but for finished rows.
        """
        return most_probable(self.scores(input_ids, logits_processor))

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As :meth:`scores`, as a processor among those of ``generate``.

        Args:
            input_ids: (batch, length) all tokens so far.
            scores: (batch, vocab) the model's logits (or log-probabilities) after the processors before this one.
        """
        return self.scores(input_ids, lambda _ids, _logits: scores.float())

    @abstractmethod
    def advance(self, tokens: Tensor) -> None:
        """Take (batch,) tokens chosen from the last scores. A finished row may be given any token."""

    def follow(self, tokens: Tensor) -> None:
        """Take (batch,) tokens that somebody else chose, perhaps against the scores."""
        self.advance(tokens)

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, what the last ``scores`` looked at included."""

    @abstractmethod
    def close(self) -> Any:
        """Finish the model's cache, holding every token but the last, and return it."""

    @abstractmethod
    def release(self) -> None:
        """Let go of everything large; the session is of no use afterwards."""


class Strategy(ABC):
    """Base of all strategies. Subclasses are frozen dataclasses; one instance can serve many calls and threads.

    Three ways in: ``decoding.generate(model, ..., strategy=s)``, ``model.generate(..., custom_generate=s)`` and
    ``model.generate(..., logits_processor=[s.logits_processor(model)])``. Each takes ``compile=True``, which captures
    the decode step (docs/compile.md).
    """

    name: ClassVar[str]

    @abstractmethod
    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> Session:
        """Open a session on inputs as ``generate`` prepares them; reads the prompt.

        Args:
            model: the generating model.
            input_ids: (batch, length).
            model_kwargs: masks, positions, cache, ...; the session owns the dictionary from here on.
            generation_config: of the call.
            restorable: see :class:`decoding.stream.Stream`.
        """

    def rescoring_session(
        self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig | None
    ) -> Session:
        """Open a session for :meth:`Session.rescored`; it may be told tokens that it would not have chosen."""
        return self.session(model, input_ids, model_kwargs, generation_config, restorable=True)

    def with_tokenizer(self, tokenizer: Any) -> Strategy:
        """The strategy with the tokenizer of its texts, where it has texts and no tokenizer yet."""
        if tokenizer is None or getattr(self, "tokenizer", tokenizer) is not None:
            return self
        return dataclasses.replace(self, tokenizer=tokenizer)  # type: ignore[type-var]

    def check(self, model: Any) -> None:  # noqa: B027 - most strategies have nothing to check
        """Raise OptionError or ModelError where this model cannot be decoded with these hyper-parameters."""

    def split_temperature(self, logits_processor: LogitsProcessorList) -> tuple[LogitsProcessorList, float]:
        """Processors that act on the model's logits, and what the strategy's scores are divided by when sampling."""
        return logits_processor, 1.0

    def logits_processor(self, model: Any, **inputs: Any) -> Any:
        """The strategy as a logits processor for plain ``model.generate``, beam search included.

        Args:
            model: the model that ``generate`` is called on.
            inputs: what ``generate`` is given beside ``input_ids`` and bears on reading the prompt:
                ``attention_mask`` for left-padded batches; an encoder-decoder needs its encoder's ``input_ids`` and
                ``attention_mask``. ``compile=True`` captures the steps of the processor's own reading.

        Returns:
            A ``StrategyLogitsProcessor``. It reads the sequence with a cache of its own, beside that of ``generate``.
        """
        from decoding.processors import StrategyLogitsProcessor

        return StrategyLogitsProcessor(self, model, **inputs)

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        compile: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Decode, as ``custom_generate`` of ``model.generate``; the contract of transformers' own ``_sample``.

        ``compile=True``, here or on the generation config, captures the decode step; see :func:`decoding.generate`.
        """
        from decoding.generation import decode

        if streamer is not None:
            streamer.put(input_ids.cpu())  # bound to this callable by decoding.generate: generate() has not seen it
        else:
            passed = _arguments_of_generate()
            streamer, synced_gpus = passed.get("streamer"), synced_gpus or bool(passed.get("synced_gpus"))
            if passed.get("assistant_model") is not None:
                raise OptionError(
                    f"assistant_model: {self.name} cannot be combined with assisted decoding; leave it out"
                )
        if synced_gpus and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise OptionError("synced_gpus=True: there is no process group whose ranks keep step; leave it out")
        if compile:
            request_capture(generation_config, True)  # this call's own copy
        check_generation_config(self.name, generation_config)
        check_inputs(model, input_ids, model_kwargs)
        self.check(model)
        if generation_config.use_cache is False:  # perhaps of the model's own config, where training has left it
            tell_cost(model, "use_cache=False")
        return decode(
            self,
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus,
            streamer,
            model_kwargs,
        )


def check_generation_config(name: str, config: GenerationConfig) -> None:
    """Refuse the options that no strategy's token loop can honour.

    Raises:
        OptionError: names the option and what to do instead.
    """
    if (config.num_beams or 1) > 1:
        raise OptionError(
            f"num_beams={config.num_beams}: as custom_generate, {name} chooses one token a row; for beam search pass "
            "logits_processor=[strategy.logits_processor(model)] to model.generate"
        )
    if config.use_cache is False and config.prefill_chunk_size is not None:
        raise OptionError(
            f"prefill_chunk_size={config.prefill_chunk_size}: without a cache ({name} was given use_cache=False) a "
            "prompt is read at once; leave one of them out"
        )
    for option in ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"):
        if getattr(config, option, None):
            raise OptionError(f"{option}: {name} cannot be combined with assisted decoding; leave it out")


def check_inputs(model: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> None:
    """Refuse prompts that cannot be read.

    Raises:
        InputError: an empty prompt or batch, tokens that the model does not have, a mask or cache that does not fit, a
            row that is all padding, a prompt as long as the context.
        ModelError: the model has no weights.
    """
    if input_device(model).type == "meta":
        raise ModelError(f"{type(model).__name__} is on the meta device, without weights: load them first")
    check_tokens(model, input_ids)
    embeds = model_kwargs.get("inputs_embeds")
    length = max(
        input_ids.shape[1],
        embeds.shape[1] if embeds is not None and not model.config.is_encoder_decoder else 0,
    )
    if length == 0:
        raise InputError("the prompt is empty: give at least one token (for text from nothing, the model's bos token)")
    context = context_of(model)
    if context is not None and context <= length:
        raise InputError(
            f"the prompt has {length} tokens and the model's context {context}: no room for a new one; shorten it"
        )
    check_cache(model, model_kwargs.get("past_key_values"))
    if embeds is None or model.config.is_encoder_decoder:
        check_mask(model, input_ids, model_kwargs)


def _arguments_of_generate() -> dict[str, Any]:
    """``streamer``, ``synced_gpus`` and ``assistant_model`` of the ``generate`` call that runs a strategy.

    transformers hands none of them to a callable (checked on 5.17 to 5.23), yet a streamer that stays silent or an
    assistant that is ignored would be a surprise. They are read from the caller's frame; where it is not found,
    nothing was passed.
    """
    generate = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            break
        if frame.f_code is generate:
            there = frame.f_locals
            passed = {name: there.get(name) for name in ("streamer", "synced_gpus", "assistant_model")}
            if isinstance(there, dict):  # a copy, up to Python 3.12: as long as the frame, its cache would live
                there.clear()
            return passed
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise OptionError unless low <= value <= high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name}={value!r}: accepted are numbers from {low:g} to {high:g}")


def require_number(name: str, value: float, low: float, open_: bool = False) -> None:
    """Raise OptionError unless low <= value, or low < value where ``open_``, and value is finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value < float("inf") or (open_ and value == low):
        raise OptionError(
            f"{name}={value!r}: accepted are numbers {'above' if open_ else 'from'} {low:g}{'' if open_ else ' up'}"
        )


def require_count(name: str, value: int, low: int, note: str = "") -> None:
    """Raise OptionError unless value is a whole number from low up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise OptionError(f"{name}={value!r}: accepted are whole numbers from {low}{note}")


def most_probable(scores: Tensor) -> Tensor:
    """(batch,) the tokens with the largest of (batch, vocab) scores; -1 where these are all -inf or one is NaN."""
    tokens = scores.argmax(-1, keepdim=True)
    return torch.where(scores.gather(1, tokens) > -torch.inf, tokens, -1)[:, 0]


def argmax_first(matches: Tensor) -> Tensor:
    """(batch,) index of the first True of (batch, n); 0 where there is none."""
    return matches.to(torch.uint8).argmax(dim=1)
