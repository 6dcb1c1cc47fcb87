"""What a call says of drafts: who proposes them, and how many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from decoding.capabilities.capabilities import open_rows
from decoding.drafts.assistant import Assistant
from decoding.drafts.prompt_lookup import PromptLookup
from decoding.drafts.proposer import Proposer
from decoding.errors import ModelError, OptionError, shown
from decoding.models.devices import input_device
from decoding.models.early_exit import cut_to_layers
from decoding.models.layers import depth_of
from decoding.models.mixed_rows import MixedRows
from decoding.models.second_models import check_same_tokens, load_second
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import unwrapped
from decoding.parameters import plain_number, require_count

__all__ = ["AMATEUR", "Assisting", "DraftOptions", "draft_options", "open_proposer"]

LOOKUP, AMATEUR, EXIT, AUTO = "prompt-lookup", "amateur", "exit:", "auto"
ACCEPTED = (
    f"{LOOKUP}, {AMATEUR} (a strategy's own), {EXIT}LAYER, or a model of the same tokens: a transformers model, a "
    "folder or a name"
)


@dataclass(frozen=True)
class DraftOptions:
    """Options of a call.

    Attributes:
        drafts: "prompt-lookup", "amateur", "exit:LAYER", or a model: an object, a folder or a name.
        tokens: drafts of a round; None adapts their number.
    """

    drafts: Any
    tokens: int | None

    @property
    def looks_up(self) -> bool:
        """True for prompt lookup."""
        return isinstance(self.drafts, str) and self.drafts == LOOKUP

    @property
    def by_amateur(self) -> bool:
        """True for the strategy's amateur."""
        return isinstance(self.drafts, str) and self.drafts == AMATEUR


@dataclass(frozen=True)
class Assisting:
    """A reader that drafts, where it is one of the strategy's own.

    Attributes:
        model: whose weights.
        mixed: the adapter that each row is read with; None for the model as it is.
        read: what it reads of each row's prompt.
    """

    model: Any
    mixed: MixedRows | None
    read: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[int]]]


def draft_options(drafts: Any, tokens: Any) -> DraftOptions | None:
    """The options, checked; None where no drafts are wanted.

    Raises:
        OptionError: something else than what is accepted.
    """
    tokens = plain_number(tokens)
    if drafts is None:
        if tokens is not None:
            raise OptionError(f"draft_tokens={shown(tokens)}: no drafts are asked for; pass drafts as well: {ACCEPTED}")
        return None
    if isinstance(drafts, Path):
        drafts = str(drafts)
    if not isinstance(drafts, (str, nn.Module)) or drafts == "":
        raise OptionError(f"drafts={shown(drafts)}: must be {ACCEPTED}")
    if isinstance(drafts, str) and drafts.startswith(EXIT) and not drafts.removeprefix(EXIT).isdecimal():
        raise OptionError(f"drafts={drafts!r}: must end with how many layers are read, such as {EXIT}8")
    if tokens is None or tokens == AUTO:
        return DraftOptions(drafts, None)
    if isinstance(tokens, str):
        raise OptionError(f"draft_tokens={tokens!r}: must be a whole number from 1 on, or {AUTO}")
    require_count("draft_tokens", tokens, 1, f", or {AUTO}")
    return DraftOptions(drafts, tokens)


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

    Raises:
        OptionError: an exit that the model does not have, or no amateur.
        ModelError: a model of other tokens, or one that cannot draft.
    """
    drafts = options.drafts
    if options.looks_up:
        return PromptLookup(sources, input_device(model))
    if options.by_amateur and amateur is not None:
        assisting = amateur
    elif options.by_amateur:
        try:  # the built-in model of this name
            assisting = Assisting(_assistant(drafts, model, tokenizer), None, lambda rows: rows)
        except (ModelError, OptionError):
            raise OptionError(f"drafts={AMATEUR}: this strategy has no amateur; must be {ACCEPTED}") from None
    elif isinstance(drafts, str) and drafts.startswith(EXIT):
        layers, depth = int(drafts.removeprefix(EXIT)), depth_of(model)
        if not 1 <= layers < depth:
            raise OptionError(f"drafts={drafts}: the model has {depth} layers; must be {EXIT}1 to {EXIT}{depth - 1}")
        assisting = Assisting(cut_to_layers(model, layers), None, lambda rows: rows)
    else:
        assisting = Assisting(_assistant(drafts, model, tokenizer), None, lambda rows: rows)
    if not all(prompts):
        raise OptionError(
            "drafts: who drafts reads tokens, and the prompt is embeddings: pass input_ids, or prompt-lookup"
        )
    rows = assisting.read(prompts)
    stream = open_rows(assisting.model, rows, new_tokens, mixed=assisting.mixed)
    return Assistant(stream, prompts, vocab_size(model), temperature, until_unsure=options.tokens is None)


def _assistant(drafts: Any, model: Any, tokenizer: Any) -> Any:
    other_tokenizer = None
    if isinstance(drafts, str):
        other, other_tokenizer = load_second(drafts, model, "assistant")
    else:
        other = unwrapped(drafts, "drafts")
    if other is model:
        raise OptionError("drafts: is the generating model itself, which would draft no sooner than it generates")
    if not callable(getattr(other, "get_output_embeddings", None)) or other.config.is_encoder_decoder:
        raise OptionError(f"drafts={type(drafts).__name__}: must be {ACCEPTED}")
    check_same_tokens(model, tokenizer, other, other_tokenizer, "assistant")
    return other
