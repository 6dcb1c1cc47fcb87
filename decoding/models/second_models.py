"""Models beside the generating one, given by name: amateurs and assistants, whose tokens must be its own."""

from __future__ import annotations

from typing import Any

from decoding.errors import ModelError
from decoding.models.adapters import adapters_of
from decoding.models.builtin import BUILT_IN
from decoding.models.devices import input_device
from decoding.models.loading import DTYPES, load
from decoding.models.memo import PerModelMemo
from decoding.models.releases import RELEASES
from decoding.models.text_config import vocab_size
from decoding.models.vocabularies import check_same_vocabulary

__all__ = ["check_same_tokens", "load_second"]

_loaded: PerModelMemo[tuple[Any, Any]] = PerModelMemo()  # by the generating model


def load_second(name: str, model: Any, role: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, once for each generating model, on its device and in its dtype.

    Args:
        name: a folder, hub name, built-in name or ``.gguf`` file.
        model: the generating model.
        role: of the model that is loaded, in messages.

    Raises:
        ModelError: it cannot be loaded.
    """

    def load_it() -> tuple[Any, Any]:
        _loaded.discard(model, lambda key: key[0] == name)  # for a generating model of another device or dtype
        dtype = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), "auto")
        try:
            return load(name, str(input_device(model)), dtype)
        except ModelError as error:
            adapters = adapters_of(model)
            known = f"; the model's adapters: {', '.join(adapters)}" if adapters else ""
            named = ", ".join([*BUILT_IN, *RELEASES])
            known += "" if "known by name" in str(error) else f"; known by name: {named}"
            raise ModelError(f"{role} {error}{known}") from error

    return _loaded.get(model, (name, str(input_device(model)), model.dtype), load_it)


def check_same_tokens(model: Any, tokenizer: Any, other: Any, other_tokenizer: Any, role: str) -> None:
    """Refuse a model of other tokens, as far as tokenizers or else the sizes of the vocabularies tell.

    Args:
        model: the generating model.
        tokenizer: its tokenizer; None where it is not known.
        other: the other model.
        other_tokenizer: likewise.
        role: of the other model, in messages.

    Raises:
        ModelError: names the first token that differs.
    """
    own, others = (None if either is None else either.get_vocab() for either in (tokenizer, other_tokenizer))
    check_same_vocabulary(role, own, others, (vocab_size(model), vocab_size(other)))
