"""Readers of a text (the expert, the expert with a guidance prompt, the amateur) and the prompt that each reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decoding.errors import InputError
from decoding.models.adapters import Adapter
from decoding.models.degradation import Degradation
from decoding.models.inputs import given_inputs
from decoding.models.text_config import text_config, vocab_size
from decoding.strategies.contrast.reader_inputs import TEXT_INPUTS, CallInputs, InputChange
from decoding.strategies.contrast.reader_kinds import EXPERT
from decoding.strategies.contrast.system_messages import SystemMessages

__all__ = ["EXPERT", "Reader", "ReaderLogits", "by_weights", "prompt_read", "prompts_of"]


@dataclass(frozen=True)
class Reader:
    """One reader of the text.

    Attributes:
        role: its name in the strategy; ``EXPERT`` is the generating model on the prompt as it is.
        model: whose weights; None for the generating model's.
        adapter: the LoRA adapter it reads with, by its name on the model or loaded beside it; None for none but the
            active one.
        degradation: what is taken from the model; None for nothing.
        prefix: per row, tokens put before the prompt (after its bos token); None for none.
        prompt: per row, the tokens of a whole other prompt, read in place of its own; None for none.
        system: the same texts as system messages, for prompts that a chat template has made; None for none.
        change: how its inputs beside the text (images, sound, an encoder's text) differ from the expert's; None for
            the same.
        from_last_token: reads the prompt's last token only.
        exits: after how many layers it also exits early, ascending.
    """

    role: str
    model: Any = None
    adapter: Adapter | None = None
    degradation: Degradation | None = None
    prefix: Sequence[Sequence[int]] | None = None
    prompt: Sequence[Sequence[int]] | None = None
    system: SystemMessages | None = None
    change: InputChange | None = None
    from_last_token: bool = False
    exits: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReaderLogits:
    """The next-token logits of one reader, in its model's dtype: functions that compute with them use float32.

    Attributes:
        final: (..., vocab) after its last layer.
        exits: (exits, ..., vocab) after the lower layers asked for, ascending; None where none were.
    """

    final: Tensor
    exits: Tensor | None = None


def by_weights(readers: Sequence[Reader], fuse: bool = True) -> Iterator[list[Reader]]:
    """Readers that share a forward pass: those with the same weights, or each alone without ``fuse``."""
    groups: dict[int, list[Reader]] = {}
    for index, reader in enumerate(readers):
        groups.setdefault(id(reader.model) if fuse else index, []).append(reader)
    yield from groups.values()


def prompts_of(
    input_ids: Tensor, model_kwargs: Mapping[str, Any], given: CallInputs, mask_name: str = "attention_mask"
) -> list[list[int]]:
    """The tokens of each row, padding left out.

    Args:
        input_ids: (batch, length).
        model_kwargs: of the call, as ``generate`` has prepared them.
        given: the inputs beside the text that the call was given, which other readers get too.
        mask_name: of the prompt's mask among ``model_kwargs``.

    Raises:
        InputError: embeddings in place of tokens, inputs beside the text that are not known as they were given, or a
            mask of another shape.
    """
    if model_kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds: a contrast with another reader needs the prompt's input_ids")
    encoder = {"encoder_outputs", "attention_mask", mask_name}
    for name in sorted(given_inputs(model_kwargs) - TEXT_INPUTS - set(given) - encoder):
        encoded = model_kwargs[name]
        # A mapping is what generate() has encoded of what was given.
        if name.startswith("output_") or (isinstance(encoded, Mapping) and given):
            continue
        kinds = f" ({', '.join(map(str, encoded))})" if isinstance(encoded, Mapping) else ""
        raise InputError(
            f"{name}{kinds}: the expert alone would get it, and the other readers of a contrast read text only: "
            "leave it out, or take a strategy without other readers (contrastive search, DoLa)"
        )
    mask = model_kwargs.get(mask_name)
    if mask is None or mask.dim() != 2:
        return input_ids.tolist()
    if mask.shape != input_ids.shape:
        raise InputError(f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(input_ids.shape)}")
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]


def prompt_read(reader: Reader, prompt: list[int], row: int, model: Any) -> list[int]:
    """The tokens that a reader reads of one row's prompt: a bos token, its prefix, the prompt; of a chat, the chat with
    its text as system message; or its own prompt in place of the row's.

    Raises:
        InputError: a token that is not in the reader's vocabulary, or no chat where the text must be a system message.
    """
    if reader.from_last_token:
        prompt = prompt[-1:]
    if reader.change is not None:
        prompt = reader.change.prompt(prompt, model)
    placed = None if reader.prompt is None else list(reader.prompt[row])
    if reader.system is not None and not reader.from_last_token:
        placed = reader.system.placed(prompt, row, reader.role)
    if placed is None:
        placed = _after_bos(list(reader.prefix[row]) if reader.prefix is not None else [], prompt, model)
    vocab = vocab_size(model)
    foreign = next((token for token in placed if not 0 <= token < vocab), None)
    if foreign is not None:
        raise InputError(
            f"the {reader.role}'s prompt has token {foreign}, which is none of its vocabulary of {vocab} tokens"
        )
    return placed


def _after_bos(prefix: list[int], prompt: list[int], model: Any) -> list[int]:
    bos = getattr(text_config(model), "bos_token_id", None)
    if prefix and prompt and isinstance(bos, int) and prompt[0] == bos:
        return [bos, *(prefix[1:] if prefix[0] == bos else prefix), *prompt[1:]]
    return [*prefix, *prompt]
