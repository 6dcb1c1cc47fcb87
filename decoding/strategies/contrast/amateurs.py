"""Amateurs: a model, a folder, a LoRA adapter or a prompt becomes a reader, if its tokens are the expert's."""

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
from decoding.models.adapter_folders import load_adapter
from decoding.models.adapters import Adapter, adapters_of, check_adapter
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.memo import PerModelMemo
from decoding.models.second_models import check_same_tokens, load_second
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import unwrapped
from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.readers import Reader
from decoding.strategies.contrast.system_messages import Placement, SystemMessages
from decoding.strategies.contrast.texts import check_text, texts_of

__all__ = ["amateur_reader", "check_amateur", "cut_to_shared", "padded_to", "prompt_text", "text_reader"]

AMATEURS = (
    "a transformers model, a folder or hub name, the name of a LoRA adapter on the model, or decoding.Prompt(text)"
)

_compared: PerModelMemo[None] = PerModelMemo()  # by expert, the amateurs whose tokens were compared with its


def amateur_reader(
    amateur: Any,
    model: Any,
    rows: int,
    tokenizer: Any = None,
    from_last_token: bool = False,
    placement: Placement | None = None,
) -> Reader:
    """The reader that an amateur is.

    Args:
        amateur: a transformers model; the name of a LoRA adapter on ``model``; a folder, hub name or built-in name of a
            model, a ``.gguf`` file, or the folder of a LoRA adapter, which runs beside ``model``; a :class:`Prompt`, or
            text that begins with "prompt:".
        model: the generating model.
        rows: of the batch.
        tokenizer: the expert's; compared with the amateur's, and needed for prompts given as text.
        from_last_token: the amateur reads from the prompt's last token on.
        placement: of a prompt's text; see :func:`text_reader`.

    Raises:
        OptionError: something else, an empty text, or an amateur that is the expert.
        ModelError: it cannot be loaded, its adapter cannot share a batch, or its tokens are not the expert's.
    """
    amateur = _with_prompt(amateur)
    if isinstance(amateur, Prompt):
        reader = text_reader("amateur", amateur.text, tokenizer, rows, "the amateur's prompt", placement)
        return dataclasses.replace(reader, from_last_token=from_last_token)
    if isinstance(amateur, (str, Path)):
        adapter = _adapter(str(amateur), model)
        if adapter is not None:
            return Reader("amateur", adapter=adapter, from_last_token=from_last_token)
        other, other_tokenizer = load_second(str(amateur), model, "amateur")
    else:
        other = unwrapped(amateur, "amateur") if isinstance(amateur, nn.Module) else amateur
        other_tokenizer = None
    if isinstance(other, type) or not callable(getattr(other, "get_output_embeddings", None)):
        raise OptionError(f"amateur={type(amateur).__name__}: must be {AMATEURS}")
    if other is model:
        raise OptionError(
            "amateur: is the generating model itself; it must be another model, an adapter's name or a Prompt"
        )
    _check_tokens(model, tokenizer, other, other_tokenizer)
    return Reader("amateur", model=other, from_last_token=from_last_token)


def check_amateur(amateur: Any) -> None:
    """Raise OptionError where what is given as an amateur is an empty name or an empty text, before any is loaded."""
    if isinstance(amateur, str) and not amateur.strip():
        raise OptionError(f"amateur={amateur!r}: is empty; must be {AMATEURS}")
    _with_prompt(amateur)


def _with_prompt(amateur: Any) -> Any:
    """What is given as an amateur; a :class:`Prompt` for text that begins with "prompt:"."""
    if isinstance(amateur, str) and amateur.startswith("prompt:"):
        return Prompt(amateur.removeprefix("prompt:").strip(" "))  # as of every text, the end of its line stays
    return amateur


def prompt_text(amateur: Any) -> Any:
    """The text of an amateur that is a prompt; None of any other."""
    prompt = _with_prompt(amateur)
    return prompt.text if isinstance(prompt, Prompt) else None


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
    texts, per_row = texts_of(text, what)
    if placement == "system" and not all(isinstance(text, str) for text in texts):
        raise OptionError(f"{what} is token ids: placement='system' needs text, which the chat template takes")
    if not per_row:
        texts = texts * rows
    elif rows % len(texts):
        raise OptionError(f"{what}: {len(texts)} texts for {rows} rows; give one for all or one a row")
    repeats = rows // len(texts) if texts else 1
    prefix = [tokens for text in texts for tokens in [_tokens(text, tokenizer, what)] * repeats]
    system = None
    if placement != "prefix":
        messages = [text if isinstance(text, str) else None for text in texts for _ in range(repeats)]
        if any(message is not None for message in messages):
            system = SystemMessages(tuple(messages), tokenizer, what, required=placement == "system")
    return Reader(role, prefix=prefix, system=system)


def _tokens(text: str | Sequence[int], tokenizer: Any, what: str) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    check_text(text, tokenizer, what)
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise OptionError(f"{what} ({shown(text)}) has no token of the tokenizer's and would change nothing")
    return tokens


def _adapter(amateur: str, model: Any) -> Adapter | None:
    if amateur in adapters_of(model):
        check_adapter(model, amateur)
        return amateur
    if amateur in BUILT_IN_ADAPTERS:
        return load_adapter(model, BUILT_IN_ADAPTERS[amateur], amateur)
    if (Path(amateur).expanduser() / "adapter_config.json").is_file():
        return load_adapter(model, amateur)
    return None


def _check_tokens(model: Any, tokenizer: Any, other: Any, other_tokenizer: Any) -> None:
    """Refuse an amateur of other tokens; warn of one whose vocabulary is only padded differently.

    Raises:
        ModelError: names the first token that differs.
    """
    sizes = [vocab_size(reader) for reader in (model, other)]

    def compare() -> None:
        check_same_tokens(model, tokenizer, other, other_tokenizer, "amateur")
        if sizes[0] != sizes[1]:
            eos = model.generation_config.eos_token_id
            lost = [end for end in (eos if isinstance(eos, list) else [eos]) if end is not None and end >= min(sizes)]
            if lost:
                raise ModelError(
                    f"amateur: its vocabulary of {sizes[1]} tokens lacks the expert's end token {lost[0]}, so no text "
                    "would end"
                )
            warnings.warn(
                f"vocabularies of {sizes[0]} (expert) and {sizes[1]} tokens (amateur) are taken to differ by padding "
                f"only: tokens from {min(sizes)} on are never chosen",
                DecodingWarning,
                stacklevel=4,
            )

    _compared.get(model, (weakref.ref(other), *sizes), compare)


def cut_to_shared(expert: Tensor, amateur: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits without the tokens that only one of them has, (..., shared vocab)."""
    shared = min(expert.shape[-1], amateur.shape[-1])
    return expert[..., :shared], amateur[..., :shared].to(expert.device)


def padded_to(scores: Tensor, vocab: int) -> Tensor:
    """Scores (..., vocab) with -inf for the tokens that were cut off."""
    missing = vocab - scores.shape[-1]
    return torch.nn.functional.pad(scores, (0, missing), value=-torch.inf) if missing else scores
