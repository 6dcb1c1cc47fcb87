"""Second readers: a model, a folder, a LoRA adapter, another prompt or a degraded self becomes a reader.

Its tokens must be the expert's.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import DecodingWarning, ModelError, OptionError, shown
from decoding.models.adapter_folders import is_adapter_folder, load_adapter
from decoding.models.adapters import Adapter, adapters_of, check_adapter
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.degraded_rows import check_degradation
from decoding.models.memo import PerModelMemo
from decoding.models.quantised_copy import quantised_copy
from decoding.models.second_models import check_same_tokens, load_second
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import unwrapped
from decoding.strategies.contrast.input_changes import GivenInputs
from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.reader_kinds import Inputs, LastToken, OtherPrompt, Self, as_kind
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.system_messages import Placement, SystemMessages
from decoding.strategies.contrast.texts import by_row, check_text, texts_of

__all__ = ["check_reader", "cut_to_shared", "padded_to", "reader_text", "second_reader", "text_reader"]

READERS = (
    "a transformers model, a folder or hub name, the name of a LoRA adapter on the model, or decoding.Prompt(text), "
    "OtherPrompt(text), LastToken() or Self(skip_layers=...)"
)

_compared: PerModelMemo[None] = PerModelMemo()  # by expert, the amateurs whose tokens were compared with its


def second_reader(
    given: Any,
    model: Any,
    rows: int,
    tokenizer: Any = None,
    from_last_token: bool = False,
    placement: Placement | None = None,
    role: str = "amateur",
) -> Reader:
    """The reader that a strategy is given beside the expert.

    Args:
        given: a transformers model; the name of a LoRA adapter on ``model``; a folder, hub name or built-in name of a
            model, a ``.gguf`` file, or the folder of a LoRA adapter, which runs beside ``model``; a :class:`Prompt`,
            ``OtherPrompt``, ``LastToken``, ``Inputs`` or ``Self``, or text that stands for one of these
            (:func:`decoding.strategies.contrast.reader_kinds.as_kind`).
        model: the generating model.
        rows: of the batch.
        tokenizer: the expert's; compared with the reader's, and needed for prompts given as text.
        from_last_token: the reader reads from the prompt's last token on.
        placement: of a :class:`Prompt`'s text; see :func:`text_reader`.
        role: of the reader.

    Raises:
        OptionError: something else, an empty text, a layer that the model does not have, or the expert itself.
        ModelError: it cannot be loaded, its adapter cannot share a batch, or its tokens are not the expert's.
    """
    given = as_kind(given)
    if isinstance(given, Prompt):
        reader = text_reader(role, given.text, tokenizer, rows, f"the {role}'s prompt", placement)
        return dataclasses.replace(reader, from_last_token=from_last_token)
    if isinstance(given, OtherPrompt):
        return Reader(role, prompt=row_tokens(given.text, tokenizer, rows, f"the {role}'s prompt", whole=True))
    if isinstance(given, Inputs):
        return Reader(role, change=GivenInputs(given.named), from_last_token=from_last_token)
    if isinstance(given, LastToken):
        return Reader(role, from_last_token=True)
    if isinstance(given, Self):
        return _degraded(given, model, role, from_last_token)
    if isinstance(given, (str, Path)):
        adapter = _adapter(str(given), model)
        if adapter is not None:
            return Reader(role, adapter=adapter, from_last_token=from_last_token)
        other, other_tokenizer = load_second(str(given), model, role)
    else:
        other = unwrapped(given, role) if isinstance(given, nn.Module) else given
        other_tokenizer = None
    if isinstance(other, type) or not callable(getattr(other, "get_output_embeddings", None)):
        raise OptionError(f"{role}={type(given).__name__}: must be {READERS}")
    if other is model:
        raise OptionError(
            f"{role}: is the generating model itself; it must be another model, an adapter's name, a Prompt or a "
            "degraded Self"
        )
    _check_tokens(model, tokenizer, other, other_tokenizer, role)
    return Reader(role, model=other, from_last_token=from_last_token)


def check_reader(given: Any, name: str = "amateur") -> None:
    """Raise OptionError where what is given as a reader is an empty name or an empty text, before any is loaded."""
    if isinstance(given, str) and not given.strip():
        raise OptionError(f"{name}={given!r}: is empty; must be {READERS}")
    as_kind(given)


def reader_text(given: Any) -> Any:
    """The text of a reader that reads another prompt; None of any other."""
    kind = as_kind(given)
    return kind.text if isinstance(kind, (Prompt, OtherPrompt)) else None


def _degraded(degraded: Self, model: Any, role: str, from_last_token: bool) -> Reader:
    if degraded.quantised is not None:
        return Reader(role, model=quantised_copy(model, degraded.quantised), from_last_token=from_last_token)
    if degraded.degradation is None:
        if from_last_token or role == EXPERT:
            return Reader(role, from_last_token=from_last_token)
        raise OptionError(f"{role}: Self() takes nothing from the model, so it is the expert; give skip_layers, ...")
    check_degradation(model, degraded.degradation)
    return Reader(role, degradation=degraded.degradation, from_last_token=from_last_token)


def text_reader(
    role: str, text: Any, tokenizer: Any, rows: int, what: str, placement: Placement | None = None
) -> Reader:
    """The generating model with a text beside each row's prompt.

    Args:
        role: of the reader.
        text: text or token ids for every row, or a sequence of one of these a row (or one a prompt, where a prompt has
            several rows).
        tokenizer: turns text into tokens.
        rows: of the batch.
        what: names the text in messages.
        placement: "system": the system message of a chat; "prefix": before the whole prompt, after its bos token; None:
            the former where a prompt begins as the tokenizer's chat template does, and the latter where not. Token ids
            always come before the prompt.

    Raises:
        OptionError: text without a tokenizer, token ids as system message, or another number of texts than rows.
    """
    if placement == "system" and not all(isinstance(text, str) for text in texts_of(text, what)[0]):
        raise OptionError(f"{what} is token ids: placement='system' needs text, which the chat template takes")
    prefix = row_tokens(text, tokenizer, rows, what)
    system = None
    if placement != "prefix":
        messages = [text if isinstance(text, str) else None for text in by_row(texts_of(text, what)[0], rows, what)]
        if any(message is not None for message in messages):
            system = SystemMessages(tuple(messages), tokenizer, what, required=placement == "system")
    return Reader(role, prefix=prefix, system=system)


def row_tokens(text: Any, tokenizer: Any, rows: int, what: str, whole: bool = False) -> list[list[int]]:
    """The tokens of a text of each row.

    Args:
        text: as :func:`text_reader` takes it.
        tokenizer: turns text into tokens.
        rows: of the batch.
        what: names the text in messages.
        whole: whether it is a whole prompt, with the special tokens of one.

    Raises:
        OptionError: text without a tokenizer, or another number of texts than rows.
    """
    tokens = [_tokens(given, tokenizer, what, whole) for given in texts_of(text, what)[0]]
    return [list(row) for row in by_row(tokens, rows, what)]


def _tokens(text: str | Sequence[int], tokenizer: Any, what: str, whole: bool) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    check_text(text, tokenizer, what)
    tokens = list(tokenizer(text, add_special_tokens=whole)["input_ids"])
    if not tokens:
        raise OptionError(f"{what} ({shown(text)}) has no token of the tokenizer's and would change nothing")
    return tokens


def _adapter(amateur: str, model: Any) -> Adapter | None:
    if amateur in adapters_of(model):
        check_adapter(model, amateur)
        return amateur
    if amateur in BUILT_IN_ADAPTERS:
        return load_adapter(model, BUILT_IN_ADAPTERS[amateur], amateur)
    return load_adapter(model, amateur) if is_adapter_folder(amateur) else None


def _check_tokens(model: Any, tokenizer: Any, other: Any, other_tokenizer: Any, role: str) -> None:
    """Refuse a reader of other tokens; warn of one whose vocabulary is only padded differently.

    Raises:
        ModelError: names the first token that differs.
    """
    sizes = [vocab_size(reader) for reader in (model, other)]

    def compare() -> None:
        check_same_tokens(model, tokenizer, other, other_tokenizer, role)
        if sizes[0] != sizes[1]:
            eos = model.generation_config.eos_token_id
            lost = [end for end in (eos if isinstance(eos, list) else [eos]) if end is not None and end >= min(sizes)]
            if lost:
                raise ModelError(
                    f"{role}: its vocabulary of {sizes[1]} tokens lacks the expert's end token {lost[0]}, so no text "
                    "would end"
                )
            warnings.warn(
                f"vocabularies of {sizes[0]} (expert) and {sizes[1]} tokens ({role}) are taken to differ by padding "
                f"only: tokens from {min(sizes)} on are never chosen",
                DecodingWarning,
                stacklevel=4,
            )

    _compared.get(model, (weakref.ref(other), *sizes), compare)


def cut_to_shared(expert: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Logits without the tokens that only some of them have, (..., shared vocab), on the expert's device."""
    shared = min(logits.shape[-1] for logits in (expert, *others))
    return (expert[..., :shared], *(logits[..., :shared].to(expert.device) for logits in others))


def padded_to(values: Tensor, vocab: int, value: float = -torch.inf) -> Tensor:
    """Scores or other values (..., vocab), with one value for the tokens that were cut off."""
    missing = vocab - values.shape[-1]
    return torch.nn.functional.pad(values, (0, missing), value=value) if missing else values
