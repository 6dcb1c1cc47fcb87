"""Who reads a text: the expert, the expert behind a guidance prompt, the amateur; and what each reads of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decoding.errors import InputError, ModelError

__all__ = ["EXPERT", "Reader", "ReaderLogits", "prompts_of", "with_prefix"]

EXPERT = "expert"


@dataclass(frozen=True)
class Reader:
    """One of those who read the text.

    Attributes:
        role: what the strategy calls it; ``EXPERT`` is the generating model on the prompt as it is.
        model: whose weights; None for the generating model's.
        adapter: name of the LoRA adapter it reads with; None for none beside the active one.
        prefix: per row, tokens put before the prompt (behind its bos token); None for none.
        from_last_token: reads the prompt's last token only.
        exits: after how many layers it also leaves, ascending.
    """

    role: str
    model: Any = None
    adapter: str | None = None
    prefix: Sequence[Sequence[int]] | None = None
    from_last_token: bool = False
    exits: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReaderLogits:
    """The next-token logits of one reader, in its model's dtype: what computes with them widens them as it reads.

    Attributes:
        final: (..., vocab) after its last layer.
        exits: (exits, ..., vocab) after the lower layers asked for, ascending; None where none were.
    """

    final: Tensor
    exits: Tensor | None = None


def prompts_of(input_ids: Tensor, model_kwargs: Mapping[str, Any], model: Any) -> list[list[int]]:
    """The tokens of each row, padding left out."""
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder, whose prompt only its own encoder has read: accepted for a "
            "contrast with another reader are decoder-only models (DoLa, which has none, takes both)"
        )
    if model_kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds: a contrast with another reader needs the prompt's input_ids")
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return input_ids.tolist()
    if mask.shape != input_ids.shape:
        raise InputError(f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(input_ids.shape)}")
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]


def with_prefix(reader: Reader, prompt: list[int], row: int, model: Any) -> list[int]:
    """What a reader reads of one row's prompt: its prefix stands before it, behind a bos token.

    Raises:
        InputError: a token that is not in the reader's vocabulary.
    """
    if reader.from_last_token:
        prompt = prompt[-1:]
    vocab = model.config.get_text_config(decoder=True).vocab_size
    prefix = list(reader.prefix[row]) if reader.prefix is not None else []
    foreign = next((token for token in (*prefix, *prompt) if not 0 <= token < vocab), None)
    if foreign is not None:
        raise InputError(
            f"the {reader.role}'s prompt has token {foreign}, which is none of its vocabulary of {vocab} tokens"
        )
    bos = model.config.get_text_config(decoder=True).bos_token_id
    if prefix and prompt and isinstance(bos, int) and prompt[0] == bos:
        return [bos, *(prefix[1:] if prefix[0] == bos else prefix), *prompt[1:]]
    return [*prefix, *prompt]
