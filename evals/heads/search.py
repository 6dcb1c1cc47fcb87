"""The search for retrieval heads (Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality",
2404.15574).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decoding.capabilities.capabilities import open_prepared_stream
from decoding.errors import InputError, ModelError, OptionError
from decoding.evals.heads.contexts import Context, Haystack, contexts
from decoding.evals.heads.needles import Needle, invented_needles
from decoding.evals.heads.results import Control, RetrievalHeads
from decoding.evals.heads.settings import LONGEST, Settings
from decoding.evals.isotropy.texts import stories
from decoding.models.attention_weights import most_attended
from decoding.models.degradation import Degradation
from decoding.models.degraded_rows import DegradedRows
from decoding.models.devices import input_device
from decoding.models.inputs import context_of
from decoding.models.row_variants import RowVariants
from decoding.models.wrappers import require_decoder_only, text_tokenizer, unwrapped
from decoding.strategies.contrast.heads_text import heads_as_text, heads_from_text
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream

__all__ = ["retrieval_heads"]

DEFAULT = Settings()
HAYSTACK = 8  # times the longest context: tokens of the texts from which contexts are drawn


@torch.no_grad()
def retrieval_heads(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str] | None = None,
    needles: Sequence[Needle] | None = None,
    settings: Settings = DEFAULT,
    *,
    name: str | None = None,
    control: bool = True,
    report: Callable[[int, int], None] | None = None,
) -> RetrievalHeads:
    """Find the attention heads of a model that copy from the context.

    Each context is a haystack of texts with a needle in it, and a question that the needle answers. The model reads the
    needle's tokens as its answer. A token is copied where it is the model's own most probable one; a head has copied it
    where, as the model predicts it, the head's largest attention weight is on the same token in the needle. The score
    of a head is the share of the answer's tokens that it has copied, on average over the contexts.

    The definition is the paper's (2404.15574). Its code lets the model write, until it ends; here the answer is given
    token by token, so that one wrong token does not end it, and all contexts of a length are read together.

    The contexts are read with the attention that the model has, the answers with "eager" attention, which computes
    weights. Afterwards the model is as before. For the control, other contexts are read by the model, by the model
    without the heads found, and by the model without as many others.

    Args:
        model: a decoder-only transformers model, in eval mode.
        tokenizer: its tokenizer.
        texts: the haystack, read until it is long enough; None for stories of the embedded models' world.
        needles: None for facts that no model knows.
        settings: of the search.
        name: of the model, for the results; by default ``name_or_path``.
        control: False to leave the control out.
        report: called after each forward pass with the contexts read and the number of all.

    Raises:
        ModelError: an encoder-decoder, or a model whose attention has no weights to read (Mamba).
        InputError: no needle, or a haystack without text.
        OptionError: lengths that do not fit the model's context, or in which a question does not fit.

    Example:
        >>> found = retrieval_heads(model, tokenizer)
        >>> decoding.generate(model, **inputs, strategy=decoding.MaskedHeads(found.heads), max_new_tokens=64)
    """
    model, tokenizer = unwrapped(model), text_tokenizer(tokenizer)
    require_decoder_only(model)
    chosen = invented_needles(settings.seed) if needles is None else list(needles)
    if not chosen:
        raise InputError("needles: none is given; expected at least one")
    lengths = _lengths(model, settings)
    haystack = Haystack(stories() if texts is None else texts, tokenizer, HAYSTACK * max(lengths))
    used = len(lengths) * settings.depths * settings.needles
    every = list(contexts(tokenizer, haystack, chosen, lengths, settings, "search"))
    _check_fit(model, every)
    total, done = used * (4 if control else 1), 0

    def step(rows: int) -> None:
        nonlocal done
        done += rows
        if report is not None:
            report(done, total)

    sums: list[Tensor | None] = []
    copied = tokens = 0
    for batch in _batches(every, settings.batch_tokens):
        scores, hits = _scores(model, batch)
        sums = scores if not sums else [_added(*pair) for pair in zip(sums, scores, strict=True)]
        copied, tokens = copied + hits, tokens + sum(len(context.answer) for context in batch)
        step(len(batch))
    rows = tuple(() if of_heads is None else tuple((of_heads / used).tolist()) for of_heads in sums)
    found = RetrievalHeads(
        name or str(model.name_or_path), rows, copied / tokens, used, tokens, tuple(lengths), settings
    )
    if not control or not found.text:
        return found
    others = [*chosen[used:], *chosen[:used]]  # needles that the search has not read, where there are as many
    return replace(found, control=_control(model, tokenizer, haystack, others, found, step))


def _lengths(model: Any, settings: Settings) -> Sequence[int]:
    context = context_of(model)
    if settings.lengths is not None:
        return sorted(set(settings.lengths))
    longest = min(LONGEST, context or LONGEST)
    # The answers take up what the longest leaves: a sixteenth.
    return [longest // 4, longest // 2, longest - (longest // 16 if longest == context else 0)]


def _check_fit(model: Any, every: Sequence[Sequence[Context]]) -> None:
    """Raise OptionError where a context and its answer are longer than what the model can read."""
    context = context_of(model)
    longest = max((row for rows in every for row in rows), key=lambda row: len(row.prompt) + len(row.answer))
    needed = len(longest.prompt) + len(longest.answer)
    if context is not None and needed > context:
        raise OptionError(
            f"lengths={len(longest.prompt)}: with an answer of {len(longest.answer)} tokens this is more than the "
            f"model's context of {context}; must be at most {context - len(longest.answer)}"
        )


def _batches(every: Iterable[Sequence[Context]], batch_tokens: int) -> Iterator[Sequence[Context]]:
    """Contexts of one length together, at most so many tokens, or one context."""
    for rows in every:
        size = max(1, batch_tokens // len(rows[0].prompt))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _scores(model: Any, batch: Sequence[Context]) -> tuple[list[Tensor | None], int]:
    """The sums over a batch of each head's scores, float64 (heads,) by layer (None without attention), and the number
    of tokens that were copied.
    """
    stream, tokens = _read(model, batch, None)
    with most_attended(model) as attended:
        logits = _logits(stream, tokens)
    hits = _hits(logits, batch)
    stream.release()
    if not any(attended):
        raise ModelError(
            f"{type(model).__name__}: has no attention weights to read, so it has no retrieval heads that can be found"
        )
    return [None if not places else _layer_scores(places, hits, batch) for places in attended], int(hits.sum())


def _layer_scores(places: Sequence[Tensor], hits: Tensor, batch: Sequence[Context]) -> Tensor:
    """The sums of the scores of a layer's heads, (heads,) float64.

    Args:
        places: of each pass over the answers, or the whole text, see :func:`most_attended`.
        hits: (rows, n) True where a token of an answer was copied.
        batch: the contexts.
    """
    length, n = len(batch[0].prompt), hits.shape[1]
    # The queries of an answer's tokens are the last n: of one pass, or one a pass.
    last = length - 1
    if len(places) == 1:
        absolute = length + n - 2 - places[0][..., -n:].cpu()
    else:
        absolute = torch.cat([last + step - place[..., -1:].cpu() for step, place in enumerate(places)], dim=-1)
    sums = torch.zeros(absolute.shape[1], dtype=torch.float64)
    for row, context in enumerate(batch):
        answer, prompt = torch.tensor(context.answer), torch.tensor(context.prompt)
        at = absolute[row, :, : len(answer)]  # (heads, tokens)
        inside = (at >= context.start) & (at < context.start + len(answer))
        same = prompt[at.clamp(0, length - 1)] == answer
        sums += (inside & same & hits[row, : len(answer)]).double().mean(-1)
    return sums


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _hits(logits: Tensor, batch: Sequence[Context]) -> Tensor:
    """(rows, n) True where a token of an answer is the most probable one, on the CPU; False after an answer's end."""
    best = logits.argmax(-1).cpu()
    hits = torch.zeros_like(best, dtype=torch.bool)
    for row, context in enumerate(batch):
        hits[row, : len(context.answer)] = best[row, : len(context.answer)] == torch.tensor(context.answer)
    return hits


def _read(model: Any, batch: Sequence[Context], variants: RowVariants | None) -> tuple[Stream, Tensor]:
    """A stream that has read all prompts but for their last token, and (rows, n) that token and the answers but for
    their last token. Short answers are filled up at their end, which no token before it attends to.
    """
    device = input_device(model)
    ids = torch.tensor([context.prompt for context in batch], device=device)
    n = max(len(context.answer) for context in batch)
    answers = [[*context.answer, *[context.answer[-1]] * (n - len(context.answer))] for context in batch]
    input_ids, kwargs, config = prepare_inputs(
        model, input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1])
    )
    stream = open_prepared_stream(model, input_ids, kwargs, config, variants=variants, whole_prompt=False)
    return stream, torch.cat([ids[:, -1:], torch.tensor(answers, device=device)[:, :-1]], dim=1)


def _logits(stream: Stream, tokens: Tensor) -> Tensor:
    """The next-token logits (rows, n, vocab) after each of (rows, n) tokens, which the stream reads: in one pass where
    its head can be applied to all of them.
    """
    if stream.structure.separable:
        return stream.every_logit(stream.extend(tokens))
    return torch.stack([stream.logits(stream.extend(token)) for token in tokens.split(1, dim=1)], dim=1)


def _control(
    model: Any, tokenizer: Any, haystack: Haystack, needles: Sequence[Needle], found: RetrievalHeads,
    step: Callable[[int], None],
) -> Control | None:  # fmt: skip
    """What is copied in other contexts with and without the heads; None where no other head is left to take away."""
    settings = found.settings
    others = [
        (layer, head)
        for layer, row in enumerate(found.scores)
        for head in range(len(row))
        if (layer, head) not in found.best
    ]
    if len(others) < len(found.best):
        return None
    drawn = heads_as_text(sorted(random.Random(f"{settings.seed}/drawn").sample(others, len(found.best))))
    every = list(contexts(tokenizer, haystack, needles, found.lengths, settings, "control"))
    _check_fit(model, every)
    tokens = sum(len(context.answer) for rows in every for context in rows)
    shares = []
    for heads in ("", found.text, drawn):
        hits = 0
        for batch in _batches(every, settings.batch_tokens):
            masked = _masking(model, heads, len(batch)) if heads else None
            stream, answers = _read(model, batch, masked)
            hits += int(_hits(_logits(stream, answers), batch).sum())
            stream.release()
            step(len(batch))
        shares.append(hits / tokens)
    copied, without_best, without_drawn = shares
    return Control(copied, without_best, without_drawn, drawn, tokens)


def _masking(model: Any, heads: str, rows: int) -> RowVariants:
    """Rows that are read without some heads."""
    masked = tuple((layer, tuple(numbers)) for layer, numbers in heads_from_text(heads).items())
    return DegradedRows(model, [Degradation(mask_heads=masked)] * rows)
