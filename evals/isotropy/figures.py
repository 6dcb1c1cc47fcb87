"""Figures of a layer, from the sums and samples of the pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decoding.evals.isotropy.measures import (
    isoscore,
    neighbour_ratios,
    participation_ratio,
    partition_score,
    penalties,
    two_nn,
)
from decoding.evals.isotropy.results import Cosines, HeatMap, Interval, Layer, Penalty, Rogue
from decoding.evals.isotropy.settings import Settings
from decoding.evals.isotropy.states import layer_name
from decoding.evals.isotropy.sums import CosineSums, Moments
from decoding.evals.isotropy.texts import EncodedText

__all__ = ["heat_map", "layer_figures", "penalty"]

TEXTS_AT_ONCE = 4  # whose float64 states stay in a CPU's cache: five times as fast as 32
RESAMPLES = 200
SPECTRUM_POINTS = 64
# Points closer than this many roundings of the states' dtype are one: the same token in two batches.
NOISE = 8


def layer_figures(
    number: int, depth: int, sums: CosineSums, moments: Moments, texts: list[Tensor], settings: Settings
) -> Layer:
    """The figures of one layer.

    Args:
        number: of the layer.
        depth: of the model.
        sums: cosines of all tokens.
        moments: of all tokens.
        texts: states of the sample, each (length, dim).
        settings: of the analysis.
    """
    covariance = moments.covariance
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    shares = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    second = covariance + torch.outer(moments.mean, moments.mean)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    centred = _cosines(texts, moments.mean, torch.ones_like(scale))
    standardised = _cosines(texts, moments.mean, scale)
    within = sums.within()
    every = torch.cat(texts)
    log_partition = partition_score(every, torch.linalg.eigh(second).eigenvectors)
    return Layer(
        layer=number,
        name=layer_name(number, depth),
        isotropy=None if within is None else Interval(1 - within.value, 1 - within.high, 1 - within.low),
        within=Cosines(
            None if within is None else within.value, _value(centred.within()), _value(standardised.within())
        ),
        across=Cosines(sums.across(), centred.across(), standardised.across()),
        isoscore=isoscore(covariance),
        isoscore_star=0.0,  # once all data sets have been read
        partition_score=math.exp(log_partition),
        log_partition_score=log_partition,
        participation_ratio=participation_ratio(covariance),
        first_component=float(shares[0]),
        spectrum=_spectrum(shares),
        intrinsic_dimension=_dimension(every, moments.mean.device, settings),
        rogue=_rogue(sums, settings.rogue),
        mean_norm=float(torch.linalg.vector_norm(every.double(), dim=-1).mean()),
    )


def penalty(texts: list[Tensor]) -> Penalty | None:
    """Percentiles of the degeneration penalties of texts' own tokens; None where no text has two."""
    values = torch.cat([penalties(text) for text in texts])
    if not len(values):
        return None
    return Penalty(*values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist())


def heat_map(text: EncodedText, states: Tensor, tokenizer: Any, layer: int) -> HeatMap | None:
    """Cosines between the first tokens of a text that count, whose states (n, dim) are given; None for fewer than 2."""
    if len(states) < 2:
        return None
    units = torch.nn.functional.normalize(states.double(), dim=-1)
    cosines = (units @ units.T).clamp(-1, 1)
    pieces = [piece for piece, kept in zip(_pieces(text, tokenizer), text.kept, strict=True) if kept]
    rows = tuple(tuple(round(value, 3) for value in row) for row in cosines.tolist())
    return HeatMap(layer, text.text, tuple(pieces[: len(states)]), rows)


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _cosines(texts: list[Tensor], mean: Tensor, scale: Tensor) -> CosineSums:
    """Sums of cosines of states less ``mean`` and times ``scale``."""
    sums = CosineSums(len(mean), mean.device)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        group = [text.to(mean) for text in texts[start : start + TEXTS_AT_ONCE]]
        kept = pad_sequence([torch.ones(len(text), dtype=torch.bool, device=mean.device) for text in group], True)
        sums.add((pad_sequence(group, True) - mean) * scale, kept)
    return sums


def _spectrum(shares: Tensor) -> tuple[tuple[int, float], ...]:
    count = len(shares)
    # Rounding may take the last rank past the end.
    ranks = torch.logspace(0, math.log10(count), SPECTRUM_POINTS, dtype=torch.float64).round().long()
    ranks = ranks.clamp(1, count).unique()
    return tuple((int(rank), float(shares[rank - 1])) for rank in ranks)


def _dimension(states: Tensor, device: torch.device, settings: Settings) -> Interval | None:
    """TwoNN of a draw of states, with the percentiles of resampled ratios."""
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = torch.randperm(len(states), generator=generator)[: settings.neighbours]
    ratios = neighbour_ratios(states[chosen].to(device), NOISE * torch.finfo(states.dtype).eps).cpu()
    if len(ratios) < 3 or not ratios[-1] > 0:
        return None
    draws = torch.randint(len(ratios), (RESAMPLES, len(ratios)), generator=generator)
    resampled = two_nn(ratios[draws.sort(1).values])  # the ratios ascend, and so do those of ascending places
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(two_nn(ratios)), low, high)


def _rogue(sums: CosineSums, count: int) -> tuple[Rogue, ...]:
    shares = sums.shares()
    if shares is None:
        return ()
    total = float(shares.sum())
    top = shares.topk(min(count, len(shares))).indices.tolist()
    return tuple(Rogue(index, float(shares[index]), float(shares[index]) / total if total else 0.0) for index in top)


def _pieces(text: EncodedText, tokenizer: Any) -> list[str]:
    """The piece of text of each token; a character of several byte tokens belongs to the first."""
    tokens = tokenizer.convert_ids_to_tokens(text.ids)
    if not getattr(tokenizer, "is_fast", False):
        return [str(token) for token in tokens]
    offsets = tokenizer(text.text, verbose=False, return_offsets_mapping=True)["offset_mapping"][: len(tokens)]
    pieces: list[str] = []
    before = (-1, -1)
    for token, span in zip(tokens, offsets, strict=True):
        piece = text.text[slice(*span)].strip()
        pieces.append(str(token) if span[0] == span[1] else "·" if span == before else piece or "␣")
        before = span
    return pieces
