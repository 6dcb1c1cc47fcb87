"""Opens what proposes the drafts of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoding.capabilities.capabilities import open_rows
from decoding.drafts.assistant import Assistant
from decoding.drafts.lower_texts import LowerTexts
from decoding.drafts.options import ACCEPTED, AMATEUR, EXIT, DraftOptions
from decoding.drafts.prompt_lookup import PromptLookup
from decoding.drafts.proposer import Proposer
from decoding.drafts.texts_read import TextsRead
from decoding.errors import InputError, ModelError, OptionError
from decoding.models.devices import input_device
from decoding.models.early_exit import cut_to_layers
from decoding.models.inputs import context_of
from decoding.models.layers import depth_of
from decoding.models.row_variants import RowVariants
from decoding.models.second_models import check_same_tokens, load_second
from decoding.models.text_config import vocab_size, within_vocabulary
from decoding.models.wrappers import unwrapped

__all__ = ["Assisting", "exit_of", "open_proposer"]


@dataclass(frozen=True)
class Assisting:
    """A reader that drafts, where it is one of the strategy's own.

    Attributes:
        model: whose weights.
        variants: how each row is read (a LoRA adapter, layers left out); None for the model as it is.
        read: what it reads of each row's prompt.
    """

    model: Any
    variants: RowVariants | None = None
    read: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[int]]] = lambda prompts: prompts


def open_proposer(
    options: DraftOptions,
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    sources: Sequence[Sequence[Sequence[int]]],
    amateur: Assisting | None,
    temperature: float | None,
    tokenizer: Any = None,
    compile: bool = False,
    reading: TextsRead | LowerTexts | None = None,
) -> Proposer:
    """Open what proposes drafts, which reads the prompt where it must.

    Args:
        options: of the call.
        model: the generating model.
        prompts: tokens of each row, without padding.
        new_tokens: that the call may add.
        sources: of each row other texts in which prompt lookup looks.
        amateur: the strategy's; None where it has none.
        temperature: see :class:`decoding.drafts.assistant.Assistant`.
        tokenizer: of the generating model, where it is known.
        compile: whether the passes of a model that drafts are captured.
        reading: what the amateur or the exit has read with a stream of the session's, with which it drafts; None where
            it reads with one of its own.

    Raises:
        OptionError: an exit that the model does not have, no amateur, or a model whose passes cannot be captured.
        InputError: a text that is longer than the context of the model that drafts.
        ModelError: a model of other tokens, or one that cannot draft.
    """
    drafts, vocab, until_unsure = options.drafts, vocab_size(model), options.tokens is None
    if options.looks_up:
        return PromptLookup(sources, input_device(model))
    layers = exit_of(options, model)
    if options.by_amateur and amateur is not None:
        assisting = amateur
    elif options.by_amateur:
        try:  # the built-in model of this name
            assisting = Assisting(_assistant(drafts, model, tokenizer))
        except (ModelError, OptionError):
            raise OptionError(f"drafts={AMATEUR}: this strategy has no amateur; must be {ACCEPTED}") from None
    elif layers is not None:
        assisting = Assisting(cut_to_layers(model, layers))
    else:
        assisting = Assisting(_assistant(drafts, model, tokenizer))
    if not all(prompts):
        raise OptionError(
            "drafts: who drafts reads tokens, and the prompt is embeddings: pass input_ids, or prompt-lookup"
        )
    rows = _readable(assisting, prompts, new_tokens)
    cost = _size(assisting.model) / max(_size(model), 1) if layers is None else layers / depth_of(model)
    if reading is not None:
        cost = cost if layers is not None else cost / (1 + cost)  # a step of the strategy has a pass of the amateur too
        return Assistant(reading, vocab, temperature, until_unsure, cost)
    stream = open_rows(assisting.model, rows, new_tokens, variants=assisting.variants, compile=compile)
    return Assistant(TextsRead(stream, prompts), vocab, temperature, until_unsure, cost)


def exit_of(options: DraftOptions, model: Any) -> int | None:
    """The number of layers after which an exit drafts; None of other drafts.

    Raises:
        OptionError: an exit that the model does not have.
    """
    drafts = options.drafts
    if not (isinstance(drafts, str) and drafts.startswith(EXIT)):
        return None
    layers, depth = int(drafts.removeprefix(EXIT)), depth_of(model)
    if not 1 <= layers < depth:
        raise OptionError(f"drafts={drafts}: the model has {depth} layers; must be {EXIT}1 to {EXIT}{depth - 1}")
    return layers


def _size(model: Any) -> int:
    """The number of a model's weights, which a step reads."""
    return sum(weights.numel() for weights in model.parameters())


def _readable(assisting: Assisting, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """What the reader that drafts reads of each row's prompt.

    Raises:
        InputError: its context is shorter than what it would read.
    """
    # A token that it does not have tells it nothing: drafts after it are worse, and no token changes by them.
    rows = [within_vocabulary(assisting.model, torch.tensor(row)).tolist() for row in assisting.read(prompts)]
    longest, limit = max(map(len, rows)), context_of(assisting.model)
    if limit is not None and longest + new_tokens > limit:
        raise InputError(
            f"drafts: the prompt has {longest} tokens, which with {new_tokens} new ones is more than the context of "
            f"{limit} of the model that drafts: shorten the prompt or max_new_tokens, or take other drafts"
        )
    return rows


def _assistant(drafts: Any, model: Any, tokenizer: Any) -> Any:
    other_tokenizer = None
    if isinstance(drafts, str):
        other, other_tokenizer = load_second(drafts, model, "assistant")
    else:
        other = unwrapped(drafts, "assistant")
    if other is model:
        raise OptionError("drafts: is the generating model itself, which would draft no sooner than it generates")
    if not callable(getattr(other, "get_output_embeddings", None)) or other.config.is_encoder_decoder:
        raise OptionError(f"drafts={type(drafts).__name__}: must be {ACCEPTED}")
    check_same_tokens(model, tokenizer, other, other_tokenizer, "assistant")
    return other
