"""The scores of many requests, in one launch a strategy kind: each row has settings of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decoding.kernels.candidates import candidate_mask, top_candidates, within
from decoding.kernels.contrast import (
    contrast_log_probs,
    contrast_logits,
    divergence,
    drawn_to_first,
    masked,
    multi_layer_contrast,
    weighted_contrast,
)
from decoding.kernels.layer_correction import corrected, probable_tokens
from decoding.kernels.layer_divergence import layer_divergence
from decoding.kernels.layer_evolution import evolved, latent_distribution
from decoding.kernels.truncation import MASKS
from decoding.serving.vllm.requests import (
    AdaptiveContextRequest,
    ContextAwareRequest,
    ContrastiveDecodingRequest,
    DeCoRequest,
    DoLaRequest,
    GuidanceRequest,
    LOLRequest,
    LowerLayersRequest,
    PlainRequest,
    Request,
    SLEDRequest,
    WeightedContrastRequest,
)
from decoding.serving.vllm.rows import RowReaders, Rows
from decoding.strategies.contrast.strengths import strength_of

__all__ = ["masked_scores", "scores_of"]


def scores_of(rows: Rows, readers: RowReaders) -> Tensor:
    """The strategies' scores (rows, vocab) float32 of all tokens, plausible or not."""
    return SCORES[type(rows.requests[0])](rows, readers)


def masked_scores(rows: Rows, scores: Tensor, readers: RowReaders) -> Tensor:
    """Scores (rows, vocab), -inf where a token is not plausible.

    Where all that are plausible are at -inf already, see :func:`decoding.kernels.contrast.masked` and
    :func:`decoding.kernels.candidates.within`.
    """
    request = rows.requests[0]
    if isinstance(request, LowerLayersRequest):
        final = readers.expert.float()
        return within(scores, candidate_mask(final, *CANDIDATES[type(request)](request, final)))
    if not request.masks:
        return scores
    anchor = _anchor(request, readers)
    if isinstance(request, WeightedContrastRequest) and request.mask is not None:
        return within(scores, _padded(MASKS[request.mask](anchor), readers, False))
    return masked(scores, _padded(anchor, readers), rows.number("alpha"))


def _anchor(request: Request, readers: RowReaders) -> Tensor:
    """The logits (rows, shared tokens) that plausibility is taken from."""
    anchor = readers.expert
    if isinstance(request, WeightedContrastRequest):
        anchor = _logits_of(request.anchor, readers)
    return anchor[..., : readers.shared] if request.needs_amateur else anchor


def _plain(rows: Rows, readers: RowReaders) -> Tensor:
    return readers.expert.float()


def _dola(rows: Rows, readers: RowReaders) -> Tensor:
    request = rows.requests[0]
    assert isinstance(request, DoLaRequest)
    layers, candidates = rows.layers("layers")
    exits, layer = readers.exits(layers, request.final_norm), None
    if len(layers) > 1:
        _, layer = layer_divergence(readers.expert, exits, request.divergence, candidates=candidates)
    return contrast_log_probs(readers.expert, exits[0] if layer is None else exits, layer=layer)


def _contrastive_decoding(rows: Rows, readers: RowReaders) -> Tensor:
    request = rows.requests[0]
    assert isinstance(request, ContrastiveDecodingRequest)
    expert, beta = readers.expert[..., : readers.shared], rows.number("beta")
    if request.form == "logits":
        scores = contrast_logits(expert, readers.amateur, beta)
    else:
        scores = contrast_log_probs(expert, readers.amateur, beta, rows.number("amateur_temperature"))
    return _padded(scores, readers)


def _lol(rows: Rows, readers: RowReaders) -> Tensor:
    request = rows.requests[0]
    assert isinstance(request, LOLRequest)
    layers, reads = rows.layers("lower_layers")
    lower = readers.exits(layers, request.final_norm)[..., : readers.shared] if layers else None
    lower_amateur = readers.amateur_exits(layers, request.final_norm) if layers else None
    scores = multi_layer_contrast(
        readers.expert[..., : readers.shared], readers.amateur, None, lower, lower_amateur,
        amateur_weight=rows.number("amateur_weight"), lower_amateur_weight=rows.number("lower_amateur_weight"),
        fusion_weight=rows.number("fusion_weight"), fusion=request.fusion,
        layers=reads,
    )  # fmt: skip
    return _padded(scores, readers)


def _padded(scores: Tensor, readers: RowReaders, value: float = -torch.inf) -> Tensor:
    """Scores or other values, with one value for the tokens that the model alone has."""
    missing = readers.expert.shape[-1] - scores.shape[-1]
    return torch.nn.functional.pad(scores, (0, missing), value=value) if missing else scores


def _context_aware(rows: Rows, readers: RowReaders) -> Tensor:
    assert readers.second is not None
    return contrast_logits(readers.expert, readers.second, rows.number("alpha"))


def _guidance(rows: Rows, readers: RowReaders) -> Tensor:
    assert readers.second is not None
    scale = rows.number("scale")
    return weighted_contrast((readers.expert, readers.second), (scale, 1 - scale), form="log_probs")


def _adaptive_context(rows: Rows, readers: RowReaders) -> Tensor:
    assert readers.second is not None
    strength = divergence(readers.expert, readers.second)
    floor = rows.number("floor")
    strength = torch.maximum(strength, floor) if isinstance(floor, Tensor) else strength.clamp(min=floor)
    return weighted_contrast((readers.expert, readers.second), drawn_to_first((2.0, -1.0), strength))


def _weighted(rows: Rows, readers: RowReaders) -> Tensor:
    request = rows.requests[0]
    assert isinstance(request, WeightedContrastRequest)
    of_readers = {reader: _logits_of(reader, readers) for reader in sorted(request.weights, key=request.anchor.__ne__)}
    shared = min(logits.shape[-1] for logits in of_readers.values())
    of_readers = {reader: logits[..., :shared] for reader, logits in of_readers.items()}
    fixed = [request.weights[reader] for reader in of_readers]
    # The gates of requests ask for no numbers of new tokens.
    counts = torch.zeros(len(readers.expert), dtype=torch.int64)
    strength = strength_of(request.weight_by, request.when, of_readers, request.anchor, request.other, counts)
    weights = [*fixed] if strength is None else drawn_to_first(fixed, strength)
    return _padded(weighted_contrast(list(of_readers.values()), weights, request.form), readers)


def _logits_of(reader: str, readers: RowReaders) -> Tensor:
    """The logits of a reader of :attr:`WeightedContrastRequest.weights`."""
    if reader == "amateur":
        return readers.amateur
    if reader == "expert":
        return readers.expert
    assert readers.second is not None
    return readers.second


def _sled(rows: Rows, readers: RowReaders) -> Tensor:
    request, final = rows.requests[0], readers.expert.float()
    assert isinstance(request, SLEDRequest)
    exits = readers.exits(request.layers_read, request.final_norm)
    tokens, _ = _sled_candidates(request, final)
    return evolved(final, latent_distribution(final, exits, tokens), tokens, request.evolution_rate, request.steps)


def _sled_candidates(request: Request, final: Tensor) -> tuple[Tensor, None]:
    assert isinstance(request, SLEDRequest)
    return top_candidates(final, request.evolution_scale)[1], None


def _deco(rows: Rows, readers: RowReaders) -> Tensor:
    request, final = rows.requests[0], readers.expert.float()
    assert isinstance(request, DeCoRequest)
    exits = readers.exits(request.layers_read, norm=True)
    return corrected(final, exits, *_deco_candidates(request, final), request.alpha)


def _deco_candidates(request: Request, final: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(request, DeCoRequest)
    return probable_tokens(final, request.threshold_top_p, request.threshold_top_k)


SCORES: dict[type[Request], Callable[[Rows, RowReaders], Tensor]] = {
    PlainRequest: _plain,
    DoLaRequest: _dola,
    ContrastiveDecodingRequest: _contrastive_decoding,
    LOLRequest: _lol,
    ContextAwareRequest: _context_aware,
    GuidanceRequest: _guidance,
    SLEDRequest: _sled,
    DeCoRequest: _deco,
    AdaptiveContextRequest: _adaptive_context,
    WeightedContrastRequest: _weighted,
}
# The tokens (rows, k) that may be chosen, and which of them may be, (rows, k) or None for all; of the model's logits.
CANDIDATES: dict[type[Request], Callable[[Request, Tensor], tuple[Tensor, Tensor | None]]] = {
    SLEDRequest: _sled_candidates,
    DeCoRequest: _deco_candidates,
}
