"""MAUVE: how close the distribution of generated texts is to that of human ones, under any local model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.errors import InputError, OptionError
from decoding.evals.metrics.likelihood import TOKENS_AT_ONCE, padded_batches
from decoding.evals.metrics.texts import as_texts
from decoding.models.devices import input_device
from decoding.models.quiet import quiet
from decoding.models.wrappers import text_tokenizer
from decoding.parameters import require_count

__all__ = ["Mauve", "features", "mauve", "require_mauve"]

MAX_LENGTH = 200  # tokens of a text in Su et al.


@dataclass(frozen=True)
class Mauve:
    """MAUVE, and the size of its samples.

    Attributes:
        score: 0 to 100 (the same distribution).
        buckets: clusters that the features were quantised to: a tenth of the texts.
        texts: number of generated and of human texts; below some thousands the score is biased and varies with the seed
            (its authors advise 5000).
    """

    score: float
    buckets: int
    texts: tuple[int, int]


def mauve(
    texts: Sequence[str],
    references: Sequence[str],
    model: Any,
    tokenizer: Any,
    *,
    max_length: int = MAX_LENGTH,
    same_length: bool = False,
    seed: int = 25,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Mauve:
    """MAUVE (Pillutla et al., NeurIPS 2021) by mauve-text, on features of ``model``.

    The published figures rest on gpt2-large; scores under different models or numbers of texts do not compare.

    Args:
        texts: generated.
        references: written by people.
        model: a local model that returns hidden states; a text's feature is the last layer's at its last token.
        tokenizer: its tokenizer.
        max_length: cut texts to so many tokens.
        same_length: cut text and reference i to the shorter of the two, as Su et al. do, since MAUVE depends on
            lengths; pairs of which one is empty are left out.
        seed: of the clustering.
        tokens_at_once: tokens of a forward pass.

    Raises:
        InputError: fewer than two texts of a kind, or ``same_length`` with lists of different lengths.
        OptionError: mauve-text is not installed.
    """
    require_mauve()
    tokenizer = text_tokenizer(tokenizer)
    texts, references = as_texts(texts), as_texts(references, "references")
    require_count("max_length", max_length, 1)
    generated, human = _tokenised(texts, tokenizer, max_length), _tokenised(references, tokenizer, max_length)
    if same_length:
        if len(generated) != len(human):
            raise InputError(f"{len(texts)} texts and {len(references)} references: same_length cuts them in pairs")
        shorter = [min(len(a), len(b)) for a, b in zip(generated, human, strict=True)]
        generated = [ids[:length] for ids, length in zip(generated, shorter, strict=True)]
        human = [ids[:length] for ids, length in zip(human, shorter, strict=True)]
    generated, human = [ids for ids in generated if ids], [ids for ids in human if ids]
    if min(len(generated), len(human)) < 2:
        raise InputError(
            f"{len(generated)} texts and {len(human)} references that are not empty: MAUVE needs at least 2 of each"
        )
    with quiet():
        from mauve import compute_mauve  # an optional package, whose import takes seconds

        result = compute_mauve(
            p_features=features(human, model, tokens_at_once=tokens_at_once),
            q_features=features(generated, model, tokens_at_once=tokens_at_once),
            seed=seed,
            verbose=False,
        )
    return Mauve(100 * float(result.mauve), int(result.num_buckets), (len(generated), len(human)))


def require_mauve() -> None:
    """Raise OptionError where mauve-text is not installed."""
    if importlib.util.find_spec("mauve") is None:
        raise OptionError("MAUVE needs mauve-text, which is under the GPL: pip install 'contrastive-decoding[mauve]'")


@torch.no_grad()
def features(
    sequences: Sequence[Sequence[int]], model: Any, *, tokens_at_once: int = TOKENS_AT_ONCE
) -> NDArray[np.float32]:
    """(texts, dim): the last layer's hidden state at each text's last token.

    Args:
        sequences: token ids, at least one each.
        model: a model that returns hidden states.
        tokens_at_once: tokens of a forward pass.
    """
    by_text: dict[int, torch.Tensor] = {}
    for batch, ids, mask in padded_batches(sequences, tokens_at_once, input_device(model)):
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        last = states[torch.arange(len(batch)), mask.sum(1) - 1].float().cpu()
        by_text.update(zip(batch, last, strict=True))
    return torch.stack([by_text[i] for i in range(len(sequences))]).numpy()


def _tokenised(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of texts; an empty text has none, whatever special tokens the tokenizer adds."""
    return [list(tokenizer(text)["input_ids"])[:max_length] if text else [] for text in texts]
