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

__all__ = ["check_same_tokens", "load_second"]

# Sizes within a hundredth of each other pass for one vocabulary, padded differently, where no tokenizer says more
# (Pythia's go from 50,304 to 50,688 rows for the same tokens).
PADDING_SHARE = 0.01

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
    sizes = [vocab_size(reader) for reader in (model, other)]
    if tokenizer is not None and other_tokenizer is not None:
        own, others = ({i: token for token, i in either.get_vocab().items()} for either in (tokenizer, other_tokenizer))
        first = next((i for i in sorted(own.keys() & others.keys()) if own[i] != others[i]), None)
        if first is not None:
            raise ModelError(
                f"{role}: its tokenizer is another one: token {first} is {own[first]!r} for the expert and "
                f"{others[first]!r} for the {role}; it must have the expert's tokenizer"
            )
    elif abs(sizes[0] - sizes[1]) > PADDING_SHARE * max(sizes):
        raise ModelError(
            f"{role}: its vocabulary has {sizes[1]} tokens and the expert's {sizes[0]}, which is more than padding: it "
            "must have the expert's tokenizer"
        )
