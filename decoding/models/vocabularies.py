"""Whether two models have the same tokens: no model code is imported."""

from __future__ import annotations

from collections.abc import Mapping

from decoding.errors import ModelError

__all__ = ["check_same_vocabulary"]

# Sizes within a hundredth of each other pass for one vocabulary, padded differently, where no tokenizer says more
# (Pythia's go from 50,304 to 50,688 rows for the same tokens).
PADDING_SHARE = 0.01


def check_same_vocabulary(
    role: str, own: Mapping[str, int] | None, others: Mapping[str, int] | None, sizes: tuple[int, int]
) -> None:
    """Refuse a model of other tokens, as far as vocabularies or else their sizes tell.

    Args:
        role: of the other model, in messages.
        own: the generating model's tokens and their ids, as a tokenizer's ``get_vocab`` gives them; None where unknown.
        others: likewise of the other model.
        sizes: of both models' vocabularies, padding included.

    Raises:
        ModelError: names the first token that differs, or the sizes.
    """
    if own is not None and others is not None:
        own_tokens, other_tokens = ({i: token for token, i in vocab.items()} for vocab in (own, others))
        shared = sorted(own_tokens.keys() & other_tokens.keys())
        first = next((i for i in shared if own_tokens[i] != other_tokens[i]), None)
        if first is not None:
            raise ModelError(
                f"{role}: its tokenizer is another one: token {first} is {own_tokens[first]!r} for the expert and "
                f"{other_tokens[first]!r} for the {role}; it must have the expert's tokenizer"
            )
    elif abs(sizes[0] - sizes[1]) > PADDING_SHARE * max(sizes):
        raise ModelError(
            f"{role}: its vocabulary has {sizes[1]} tokens and the expert's {sizes[0]}, which is more than padding: it "
            "must have the expert's tokenizer"
        )
