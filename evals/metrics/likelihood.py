"""Likelihood of texts under a causal model: coherence of continuations with their prefixes, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError
from decoding.evals.metrics.texts import as_texts
from decoding.models.devices import input_device
from decoding.models.inputs import check_weights, context_of
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import check_model, require_decoder_only, text_tokenizer
from decoding.parameters import require_count
from decoding.scoring.score import tokens_of

__all__ = ["Coherence", "Perplexity", "coherence", "padded_batches", "perplexity"]

TOKENS_AT_ONCE = 4096  # of a forward pass, padding included
NUMBERS_AT_ONCE = 2**27  # of its logits: half a gigabyte in float32


@dataclass(frozen=True)
class Coherence:
    """Coherence of continuations with their prefixes.

    Attributes:
        mean: over the texts; at most 0, higher is more coherent; NaN where every text is empty.
        texts: for each text the mean log-probability (natural) of its tokens after its prefix; None where it is empty.
    """

    mean: float
    texts: list[float | None]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of texts.

    Attributes:
        corpus: exp of the mean negative log-probability of all tokens together.
        mean: of the perplexities of single texts, which one odd text can blow up (as in Hugging Face's metric).
        texts: the perplexity of each text; None where it has no token to score.
        tokens: number of tokens scored.
    """

    corpus: float
    mean: float
    texts: list[float | None]
    tokens: int


def coherence(
    prefixes: Sequence[str],
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Coherence:
    """Coherence: the mean token log-probability of each continuation given its prefix (Su et al. 2022, with OPT).

    Sums are taken in float64 of float32 log-probabilities.

    Args:
        prefixes: one for each text.
        texts: continuations, as they follow their prefixes.
        model: a decoder-only transformers model; not the one that generated the texts.
        tokenizer: its tokenizer.
        max_length: cut prefix and continuation together to so many tokens; None refuses a longer text than the context.
        tokens_at_once: tokens of a forward pass.

    Raises:
        InputError: prefixes and texts that do not match, an empty prefix, or a text longer than the model's context.
    """
    prefixes, texts = as_texts(prefixes, "prefixes"), as_texts(texts)
    check_model(model)
    tokenizer = text_tokenizer(tokenizer)
    if len(prefixes) != len(texts):
        raise InputError(f"{len(prefixes)} prefixes and {len(texts)} texts: each text needs its own")
    sequences, starts, indices = [], [], []
    for index, (prefix, text) in enumerate(zip(prefixes, texts, strict=True)):
        if text and tokenizer(text, add_special_tokens=False)["input_ids"]:
            before, (after,) = tokens_of(prefix, [text], tokenizer)
            sequences.append(_cut([*before, *after], max_length, model, index))
            starts.append(len(before))
            indices.append(index)
    means: list[float | None] = [None] * len(texts)
    for index, sum_, count in zip(indices, *_sums(model, sequences, starts, tokens_at_once), strict=True):
        means[index] = sum_ / count if count else None
    return Coherence(_mean(means), means)


def perplexity(
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    *,
    add_start_token: bool = True,
    max_length: int | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Perplexity:
    """Perplexity of texts under a causal model.

    Sums are taken in float64 of float32 log-probabilities.

    Args:
        texts: each is read alone.
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        add_start_token: put the tokenizer's BOS in front where it has one, so that a text's first token is scored too.
        max_length: cut texts to so many tokens; None refuses a longer text than the context.
        tokens_at_once: tokens of a forward pass.

    Raises:
        InputError: no text, or one longer than the model's context.
    """
    texts = as_texts(texts)
    check_model(model)
    tokenizer = text_tokenizer(tokenizer)
    if not texts:
        raise InputError("no text: give at least one")
    sequences = []
    for index, text in enumerate(texts):
        ids = list(tokenizer(text)["input_ids"])
        bos = tokenizer.bos_token_id
        if add_start_token and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        sequences.append(_cut(ids, max_length, model, index))
    sums, counts = _sums(model, sequences, [1] * len(sequences), tokens_at_once)
    perplexities = [math.exp(-sum_ / count) if count else None for sum_, count in zip(sums, counts, strict=True)]
    tokens = sum(counts)
    corpus = math.exp(-math.fsum(sums) / tokens) if tokens else math.nan
    return Perplexity(corpus, _mean(perplexities), perplexities, tokens)


def padded_batches(
    sequences: Sequence[Sequence[int]], tokens_at_once: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Token sequences in right-padded batches of similar lengths, longest first so that memory peaks in the beginning.

    Yields:
        The indices of the sequences; their ids (batch, length); their attention mask (batch, length).
    """
    require_count("tokens_at_once", tokens_at_once, 1)
    order = sorted((i for i, ids in enumerate(sequences) if ids), key=lambda i: -len(sequences[i]))
    while order:
        width = len(sequences[order[0]])
        rows = max(1, tokens_at_once // width)
        batch, order = order[:rows], order[rows:]
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            length = len(sequences[index])
            ids[row, :length] = torch.tensor(sequences[index])
            mask[row, :length] = 1
        yield batch, ids.to(device), mask.to(device)


@torch.no_grad()
def _sums(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], tokens_at_once: int
) -> tuple[list[float], list[int]]:
    """The sum of the log-probabilities of each sequence's tokens from its start on, and their number."""
    check_model(model)
    require_decoder_only(model)
    check_weights(model)
    require_count("tokens_at_once", tokens_at_once, 1)
    vocab = vocab_size(model)
    at_once = min(tokens_at_once, max(1, NUMBERS_AT_ONCE // vocab))
    sums, counts = [0.0] * len(sequences), [0] * len(sequences)
    for batch, ids, mask in padded_batches(sequences, at_once, input_device(model)):
        if ids.shape[1] < 2:
            continue
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        following = ids[:, 1:]
        chosen = logits.gather(-1, following[..., None])[..., 0].float() - logits.float().logsumexp(-1)
        first = torch.tensor([starts[i] for i in batch], device=ids.device)[:, None]
        position = torch.arange(1, ids.shape[1], device=ids.device)
        counted = mask[:, 1:].bool() & (position >= first)
        row_sums = chosen.double().masked_fill(~counted, 0).sum(1).tolist()
        for index, sum_, count in zip(batch, row_sums, counted.sum(1).tolist(), strict=True):
            sums[index], counts[index] = sum_, count
    return sums, counts


def _cut(ids: list[int], max_length: int | None, model: Any, index: int) -> list[int]:
    if max_length is not None:
        require_count("max_length", max_length, 1)
    ids = ids[:max_length]
    context = context_of(model)
    if context is not None and len(ids) > context:
        raise InputError(
            f"text {index} has {len(ids)} tokens and the model's context {context}: give max_length={context} or less "
            "to cut it"
        )
    return ids


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
