"""The token ids of a request's second prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from decoding.errors import OptionError
from decoding.serving.vllm.requests import Request

__all__ = ["check_second_prompt", "second_prompt"]


@lru_cache
def tokenizer_of(name: str, trust_remote_code: bool) -> Any:
    """The tokenizer of a model's folder or name."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def second_prompt(request: Request, prompt: Sequence[int] | None, model_config: Any) -> list[int]:
    """The token ids of a second prompt; of None, the last token of the request's own.

    A text is encoded as vLLM encodes a prompt, with the tokenizer's special tokens.

    Raises:
        OptionError: it is empty, too long, or has a token that the model does not have.
    """
    given = request.second
    if given is None:
        return list(prompt[-1:]) if prompt else [0]
    if isinstance(given, str):
        tokens = tokenizer_of(model_config.tokenizer, model_config.trust_remote_code)(given).input_ids
    else:
        tokens = list(given)
    vocab_size, longest = model_config.get_vocab_size(), model_config.max_model_len - 1
    if not 1 <= len(tokens) <= longest:
        raise OptionError(
            f"{request.name}: {request.second_field}: has {len(tokens)} tokens; must have 1 to {longest}, the engine's "
            "context less one"
        )
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise OptionError(
            f"{request.name}: {request.second_field}: token id {wrong}; must be from 0 to {vocab_size - 1}"
        )
    return tokens


def check_second_prompt(request: Request, model_config: Any) -> None:
    """Raise OptionError where a second prompt does not fit the engine."""
    second_prompt(request, None, model_config)
