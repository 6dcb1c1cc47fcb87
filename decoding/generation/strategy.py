"""The base of every strategy: frozen hyper-parameters that open one session for each ``generate()`` call."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from decoding.capabilities.cuda_graphs import cuda_graphs_requested, request_cuda_graphs
from decoding.drafts.experience import experience_of
from decoding.drafts.length import DraftLength
from decoding.drafts.lower_texts import LowerTexts
from decoding.drafts.opening import Assisting, exit_of, open_proposer
from decoding.drafts.options import DraftOptions, draft_options
from decoding.drafts.proposer import Proposer
from decoding.drafts.record import DraftRecord, require_record
from decoding.drafts.texts_read import TextsRead
from decoding.errors import OptionError, shown
from decoding.generation.caller import arguments_of_generate
from decoding.generation.drafted_loop import Drafting, decode_with_drafts
from decoding.generation.draws import row_generators
from decoding.generation.logits_processor import StrategyLogitsProcessor
from decoding.generation.loop import decode
from decoding.generation.session import Session
from decoding.models.devices import input_device, is_tensor_parallel
from decoding.models.inputs import check_inputs
from decoding.models.segments import check_segment_seeds, of_segment
from decoding.models.small_batch_linear import MOST_ROWS
from decoding.models.wrappers import text_tokenizer
from decoding.parameters import store_plain_numbers
from decoding.stream.recompute import warn_recompute_cost

__all__ = ["Strategy"]

# Options of transformers' assisted decoding, and what does the same here.
ASSISTED = {
    "prompt_lookup_num_tokens": "pass drafts='prompt-lookup', draft_tokens={} in its place",
    "assistant_early_exit": "pass drafts='exit:{}' in its place",
    "use_mtp": "heads that predict several tokens are none of them; leave it out",
}


class Strategy(ABC):
    """Base of all strategies. Subclasses are frozen dataclasses; one instance can serve many calls and threads.

    Three ways in: ``decoding.generate(model, ..., strategy=s)``, ``model.generate(..., custom_generate=s)`` and
    ``model.generate(..., logits_processor=[s.logits_processor(model)])``. Each takes ``compile=True``, which captures
    the decode step (docs/compile.md). The first two take ``seeds``, with which each row draws from its own.

    Attributes:
        name: its name in the registry (:mod:`decoding.strategies.registry`), in messages and on the command line.
        scorable: whether it gives a score to any token after any text, so that texts can be scored under it. Such
            strategies are :class:`decoding.strategies.contrast.base.ContrastStrategy`.
        media: "image" or "audio" of a strategy that changes the prompt's images or sound, and so needs some.
    """

    name: ClassVar[str]
    scorable: ClassVar[bool] = False
    media: ClassVar[Literal["image", "audio"] | None] = None

    def __post_init__(self) -> None:
        store_plain_numbers(self)
        given = getattr(self, "tokenizer", None)
        if (tokenizer := text_tokenizer(given, required=False)) is not given:
            object.__setattr__(self, "tokenizer", tokenizer)

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
            restorable: see :class:`decoding.stream.stream.Stream`.
        """

    def opener(self, given: Mapping[str, Any], rescoring: bool = False) -> Callable[..., Session]:
        """What opens a session for a call: :meth:`session`, or :meth:`rescoring_session`.

        Args:
            given: what ``generate`` was given, by name, with its first argument as ``inputs``: images, sound and the
                text of an encoder, which it encodes before it calls a strategy. Most strategies need none of it.
            rescoring: whether the session is for :meth:`Session.rescored`.
        """
        return self.rescoring_session if rescoring else self.session

    def rescoring_session(
        self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig | None
    ) -> Session:
        """Open a session for :meth:`Session.rescored`; it may be given tokens that it would not have chosen."""
        return self.session(model, input_ids, model_kwargs, generation_config, restorable=True)

    def with_tokenizer(self, tokenizer: Any) -> Strategy:
        """The strategy with the tokenizer of its texts, where it has texts and no tokenizer yet.

        Raises:
            OptionError: it is no tokenizer.
        """
        tokenizer = text_tokenizer(tokenizer, required=False)
        if tokenizer is None or getattr(self, "tokenizer", tokenizer) is not None:
            return self
        return dataclasses.replace(self, tokenizer=tokenizer)  # type: ignore[type-var]

    @property
    def replaces_language(self) -> bool:
        """True of a strategy with a reader of another target language: the language is then the last token of the
        decoder's prompt, and not the first new token that ``forced_bos_token_id`` makes it.
        """
        return False

    def check(self, model: Any) -> None:  # noqa: B027 - most strategies have nothing to check
        """Raise OptionError or ModelError where this model cannot be decoded with these hyper-parameters."""

    def split_temperature(self, logits_processor: LogitsProcessorList) -> tuple[LogitsProcessorList, float]:
        """The processors that act on the model's logits, and the temperature of the strategy's scores when sampling."""
        return logits_processor, 1.0

    def check_drafts(self, rows: int) -> None:  # noqa: B027 - most strategies have nothing to check
        """Raise OptionError where the choices of a batch of this many rows depend on each other: rows that accept
        different numbers of drafts would then have other tokens.
        """

    def draft_sources(self, model: Any, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[Sequence[int]]]:
        """Texts of each row beside its own in which prompt lookup finds drafts: those of the strategy's readers."""
        return [[] for _ in prompts]

    def draft_amateur(self, model: Any, rows: int) -> Assisting | None:
        """The strategy's amateur, as one who drafts; None where it has none."""
        return None

    def _drafting(
        self,
        options: DraftOptions,
        model: Any,
        rows: int,
        config: GenerationConfig,
        generators: Sequence[torch.Generator] | None,
        record: DraftRecord | None,
        beside: Sequence[Sequence[int]],
    ) -> Drafting:
        # Rows with seeds of their own draw what they draw without drafts: theirs are not drawn.
        temperature = (config.temperature or 1.0) if config.do_sample and generators is None else None
        captured = cuda_graphs_requested(config)
        amateur = self.draft_amateur(model, rows) if options.by_amateur else None
        layers = exit_of(options, model)

        def open_it(prompts: Sequence[Sequence[int]], new_tokens: int, reading: Any = None) -> Proposer:
            return open_proposer(
                options, model, prompts, new_tokens,
                sources=[[*beside, *own] for own in self.draft_sources(model, prompts)] if options.looks_up else (),
                amateur=amateur, temperature=temperature, tokenizer=getattr(self, "tokenizer", None), compile=captured,
                reading=reading,
            )  # fmt: skip

        def reading(session: Session, prompts: Sequence[Sequence[int]]) -> TextsRead | LowerTexts | None:
            return session.read_by_amateur(prompts) if layers is None else session.read_by_exit(layers)

        shared = amateur is not None or layers is not None
        agree = is_tensor_parallel(model)  # ranks run the same passes: no clock, and nothing of other calls

        def length(proposer: Proposer, session: Session) -> DraftLength:
            kind = type(self), type(proposer), options.kind, rows, config.do_sample
            return DraftLength(
                options.tokens, proposer, not agree, None if agree else experience_of(model, kind),
                session.widths_of_passes, MOST_ROWS if input_device(model).type == "cpu" else None,
            )  # fmt: skip

        return Drafting(open_it, length, record, filled_up=captured, reading=reading if shared else None)

    def logits_processor(self, model: Any, **inputs: Any) -> Any:
        """The strategy as a logits processor for plain ``model.generate``, beam search included.

        Args:
            model: the model that ``generate`` is called on.
            inputs: the inputs of ``generate`` beside ``input_ids`` that the prompt is read with: ``attention_mask`` for
                left-padded batches; an encoder-decoder needs its encoder's ``input_ids`` and ``attention_mask``.
                ``compile=True`` captures the steps of the processor's session.

        Returns:
            A ``StrategyLogitsProcessor``. It reads the sequence with a cache of its own, beside that of ``generate``.
        """
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
        seeds: Sequence[int] | None = None,
        drafts: Any = None,
        draft_tokens: int | Literal["auto"] | None = None,
        draft_record: DraftRecord | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decode, as ``custom_generate`` of ``model.generate``; the contract of transformers' own ``_sample``.

        ``compile=True``, here or on the generation config, captures the decode step, ``seeds`` gives each row draws of
        its own, ``drafts`` and ``draft_tokens``, here or on the generation config, read drafts, and ``draft_record`` is
        told what became of them; see :func:`decoding.generate`.
        """
        require_record(draft_record)
        drafted = draft_options(drafts, draft_tokens, generation_config, model.generation_config)
        passed = arguments_of_generate()
        if streamer is not None:
            streamer.put(input_ids.cpu())  # bound to this callable by decoding.generate, so generate() did not
        else:
            streamer, synced_gpus = passed.get("streamer"), synced_gpus or bool(passed.get("synced_gpus"))
            if passed.get("assistant_model") is not None:
                raise OptionError(f"assistant_model: {self.name} drafts in its own way: pass drafts=MODEL in its place")
        if synced_gpus and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise OptionError("synced_gpus=True: there is no process group whose ranks keep step; leave it out")
        if compile:
            request_cuda_graphs(generation_config, True)  # this call's own copy
        given, model_kwargs = of_segment(model, passed.get("given", {})), of_segment(model, model_kwargs)
        generators = None
        if seeds is not None:
            check_segment_seeds(model, generation_config)
            generators = row_generators(seeds, len(input_ids), generation_config, input_ids.device)
        check_generation_config(self.name, generation_config)
        check_inputs(model, input_ids, model_kwargs)
        self.check(model)
        if draft_record is not None and drafted is None:
            draft_record.begin(len(input_ids))
        if drafted is not None:
            check_drafts(self.name, model, drafted, generation_config, synced_gpus, len(input_ids))
            self.check_drafts(len(input_ids))
        if generation_config.use_cache is False:  # perhaps of the model's own config, where training has left it
            warn_recompute_cost(model, "use_cache=False")
        logits_processor, temperature = self.split_temperature(logits_processor)
        loop: Callable[..., Any] = functools.partial(decode, synced_gpus=synced_gpus)
        if drafted is not None:
            drafting = self._drafting(
                drafted, model, len(input_ids), generation_config, generators, draft_record, encoder_texts(model, given)
            )
            loop = functools.partial(decode_with_drafts, drafting=drafting)
        return loop(
            self.opener(given),
            model=model,
            input_ids=input_ids,
            logits_processor=logits_processor,
            temperature=temperature,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            generators=generators,
            streamer=streamer,
            model_kwargs=model_kwargs,
        )


def encoder_texts(model: Any, given: Mapping[str, Any]) -> list[list[int]]:
    """The texts that the encoder of an encoder-decoder reads, in which prompt lookup finds drafts of one row."""
    ids = given.get("input_ids")
    ids = given.get("inputs") if ids is None else ids
    if not model.config.is_encoder_decoder or not isinstance(ids, Tensor) or ids.is_floating_point():
        return []
    texts: list[list[int]] = ids.tolist()
    return texts


def check_drafts(
    name: str, model: Any, options: DraftOptions, config: GenerationConfig, synced_gpus: bool, rows: int
) -> None:
    """Refuse what drafts cannot stand beside.

    Raises:
        OptionError: names the option and what to do instead.
    """
    if model.config.is_encoder_decoder and not options.looks_up:
        raise OptionError(
            f"drafts={shown(options.drafts)}: for {type(model).__name__}, an encoder-decoder, must be prompt-lookup"
        )
    if model.config.is_encoder_decoder and rows > 1:
        raise OptionError(
            f"drafts: the rows of {type(model).__name__}, an encoder-decoder, have one length, and each would accept "
            f"other drafts; give one row in place of {rows}"
        )
    if synced_gpus:
        raise OptionError("drafts: with synced_gpus all ranks run the same number of forward passes; leave drafts out")
    if cuda_graphs_requested(config) and options.tokens is None:
        raise OptionError(
            "draft_tokens=auto (the default): with compile=True rounds of one number of drafts are captured; give that "
            "number, such as draft_tokens=4"
        )
    if config.use_cache is False:
        raise OptionError(f"use_cache=False: {name} cannot read drafts without a cache; leave one of them out")
    if config.return_dict_in_generate and config.output_attentions:
        raise OptionError("output_attentions=True: passes over drafts return none; leave one of them out")


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
            "prompt is read in one pass; leave one of them out"
        )
    for option, instead in ASSISTED.items():
        if getattr(config, option, None):
            raise OptionError(f"{option}: {name} drafts in its own way: {instead.format(getattr(config, option))}")
