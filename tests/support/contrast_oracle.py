"""The contrastive family by full recomputation: float64, no cache, no batch, each reader by itself.

Formulas are written out from the papers, apart from ``decoding.kernels.contrast``. A lower layer with the
final norm is read by a copy of the model that ends there; without it, by the model's own ``output_hidden_states`` and
its bare head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Ids = Sequence[int]


class Reader:
    """A model in float64 that reads one text at a time.

    What it made of the last texts is kept: strategies and scores of every kind ask for the same ones. A text that one
    of them begins with is not read again: no token sees those that follow.
    """

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).double().eval()
        if hasattr(model.config, "num_experts_per_tok"):
            self.model.set_experts_implementation("eager")  # torch's grouped product has no float64
        self.cut: dict[int, Any] = {}
        self.kept: dict[int | None, list[tuple[list[int], Any]]] = {}  # of the model that ends after so many layers

    def logits(self, ids: Ids) -> Tensor:
        """(length, vocab)."""
        return self._output(ids).logits[0, : len(ids)]

    @torch.no_grad()
    def early(self, ids: Ids, layer: int, norm: bool) -> Tensor:
        """(length, vocab) logits of a model that ends after so many layers, or the bare head on what it has there."""
        if norm:
            return self._output(ids, layer).logits[0, : len(ids)]
        return self.model.get_output_embeddings()(self._output(ids).hidden_states[layer][0, : len(ids)])

    @torch.no_grad()
    def _output(self, ids: Ids, layers: int | None = None) -> Any:
        """The output of a text that begins with ``ids``."""
        ids, kept = list(map(int, ids)), self.kept.setdefault(layers, [])
        for text, output in reversed(kept):
            if text[: len(ids)] == ids:
                return output
        if layers is not None and layers not in self.cut:
            self.cut[layers] = ended_after(self.model, layers)
        model = self.model if layers is None else self.cut[layers]
        output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=layers is None)
        self.kept[layers] = [*kept, (ids, output)][-128:]
        return output


def ended_after(model: Any, layer: int) -> Any:
    """A copy of a model without the layers from ``layer`` on."""
    short = copy.deepcopy(model)
    depth = short.config.num_hidden_layers
    parent, name, layers = next(
        (parent, name, child)
        for parent in short.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    )
    setattr(parent, name, nn.ModuleList(list(layers)[:layer]))
    return short


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(-1, keepdim=True)


def cut_off(scores: Tensor, evidence: Tensor, alpha: float) -> Tensor:
    """-inf where p < alpha·max p of the evidence, all (vocab,)."""
    p = evidence.softmax(-1)
    return torch.where(p >= alpha * p.max(), scores, -math.inf)


def contrastive_decoding(
    expert: Tensor, amateur: Tensor, alpha: float, beta: float, form: str, temperature: float = 1.0
) -> Tensor:
    if form == "logits":
        return cut_off((1 + beta) * expert - beta * amateur, expert, alpha)
    return cut_off(log_softmax(expert) - beta * log_softmax(amateur / temperature), expert, alpha)


def dola(final: Tensor, premature: Sequence[Tensor], alpha: float, kind: str) -> Tensor:
    log_p, distances = log_softmax(final), []
    for logits in premature:
        log_q = log_softmax(logits)
        log_m = torch.stack([log_p, log_q]).logsumexp(0) - math.log(2)
        pairs = ((log_m, log_p), (log_m, log_q)) if kind == "dola" else ((log_p, log_m), (log_q, log_m))
        distances.append(sum(float((a.exp() * (a - b)).sum()) for a, b in pairs) / 2)
    chosen = premature[max(range(len(premature)), key=lambda i: distances[i])]
    return cut_off(log_softmax(final) - log_softmax(chosen), final, alpha)


def context_aware(with_context: Tensor, without: Tensor, alpha: float) -> Tensor:
    return (1 + alpha) * with_context - alpha * without


def lol(
    expert: Tensor,
    amateur: Tensor,
    early: Sequence[tuple[Tensor, Tensor]],
    guided: Tensor | None,
    settings: dict[str, Any],
) -> Tensor:
    """``early`` has (expert, amateur) logits for each lower layer."""
    r = log_softmax(expert)
    if guided is not None:
        r = log_softmax((1 + settings["refocus_weight"]) * log_softmax(guided) - settings["refocus_weight"] * r)
    fused = final = r - settings["amateur_weight"] * log_softmax(amateur)
    lower = [log_softmax(e) - settings["lower_amateur_weight"] * log_softmax(a) for e, a in early]
    if settings["fusion"] == "static":
        if lower:
            fused = final + settings["fusion_weight"] * sum(lower) / len(lower)
    else:
        distributions = [r, *(log_softmax(e) for e, _ in early)]
        weights = torch.stack([(d.exp() * d).sum() for d in distributions]).softmax(0)
        fused = sum(w * f for w, f in zip(weights, [final, *lower], strict=True))
    return cut_off(fused, r, settings["alpha"])


def sled(final: Tensor, lower: Sequence[Tensor], rate: float, k: int, steps: int) -> Tensor:
    """A vector for each layer and token, and the weights of layers apart from the distributions that they weigh."""
    tokens = final.topk(k).indices
    likeness = torch.zeros(len(lower), k, dtype=final.dtype)
    for n, logits in enumerate(lower):
        for i, token in enumerate(tokens.tolist()):
            gradient, others = logits.softmax(-1), torch.arange(len(logits)) != token
            # p - 1, where p may be too near to 1 to tell.
            gradient[token] = -(logits[others].logsumexp(-1) - logits[token]).sigmoid()
            cosine = torch.dot(gradient, logits - final) / gradient.norm() / (logits - final).norm()
            likeness[n, i] = max(float(cosine), 0.0) ** 2
    weights = likeness.sum(1) / likeness.sum()
    latent = torch.zeros_like(final)
    latent[tokens] = sum(
        weight * of_layer / of_layer.sum()
        for weight, of_layer in zip(weights, likeness, strict=True)
        if float(of_layer.sum()) > 0
    )
    scores = final.clone()
    for t in range(steps):
        scores = scores - rate * (1 - t / steps) * (scores.softmax(-1) - latent)
    return torch.full_like(scores, -math.inf).index_copy(0, tokens, scores[tokens])


def deco(final: Tensor, lower: Sequence[Tensor], alpha: float, top_p: float, top_k: int) -> Tensor:
    p, candidates = final.softmax(-1), []
    for token in p.argsort(descending=True).tolist()[:top_k]:
        if float(p[candidates].sum()) >= top_p:
            break
        candidates.append(token)
    surest, likely = max(
        ((logits, float(logits.softmax(-1)[candidates].max())) for logits in lower), key=lambda layer: layer[1]
    )
    scores = torch.full_like(final, -math.inf)
    scores[candidates] = (final + alpha * likely * surest)[candidates]
    return scores


def remembered(scores_of: Callable[[list[int]], Tensor]) -> Callable[[list[int]], Tensor]:
    """The function, which computes the scores of each text once."""
    known: dict[tuple[int, ...], Tensor] = {}

    def scores(text: list[int]) -> Tensor:
        key = tuple(text)
        if key not in known:
            known[key] = scores_of(text)
        return known[key]

    return scores


def greedy_tokens(
    scores_of: Callable[[list[int]], Tensor], prompt: Ids, steps: int, expected: Ids = ()
) -> tuple[list[int], list[Tensor]]:
    """The tokens that a function from a text to (vocab,) scores chooses, and the scores of each step.

    Where they are those that are expected, each reader reads the whole text once.
    """
    text, steps_scores = list(prompt), []
    scores_of([*prompt, *expected])
    for _ in range(steps):
        scores = scores_of(text)
        steps_scores.append(scores)
        text.append(int(scores.argmax()))
    return text[len(prompt) :], steps_scores


def per_token(
    scores_of: Callable[[list[int]], Tensor], prompt: Ids, continuation: Ids, normalized: bool
) -> list[float]:
    """Teacher-forced scores of a continuation; -1000 where a token is cut off."""
    result = []
    for i in reversed(range(len(continuation))):  # the longest text first: each reader reads that one alone
        scores = scores_of([*prompt, *continuation[:i]])
        scores = log_softmax(scores) if normalized else scores
        result.append(max(float(scores[continuation[i]]), -1000.0))
    return result[::-1]


def weighted(
    logits: Sequence[Tensor], weights: Sequence[float], form: str, alpha: float | None = None, strength: float = 1.0
) -> Tensor:
    """Σ w·s drawn towards the first reader's s, under its plausibility; a reader without weight has no say."""
    scores = [log_softmax(s) if form == "log_probs" else s for s in logits]
    total = scores[0] + strength * (sum(w * s for w, s in zip(weights, scores, strict=True) if w) - scores[0])
    return total if alpha is None else cut_off(total, logits[0], alpha)


def entropy(logits: Tensor) -> float:
    """In nats."""
    p = logits.softmax(-1)
    return -float((p * log_softmax(logits)).sum())


def jensen_shannon(logits: Tensor, others: Tensor) -> float:
    """In bits, as the mean divergence from the average."""
    p, q = logits.softmax(-1), others.softmax(-1)
    m = (p + q) / 2
    return float(((p * (p / m).log2()).sum() + (q * (q / m).log2()).sum()) / 2)


def documents(
    together: Tensor, none: Tensor, single: Sequence[Tensor], none_weight: float, document_weight: float
) -> Tensor:
    scores = (1 + none_weight) * together - none_weight * none
    if len(single) > 1:
        gaps = [float(torch.diff(s.softmax(-1).sort(descending=True).values[:2]).abs()) for s in single]
        scores = scores + document_weight * (single[gaps.index(max(gaps))] - single[gaps.index(min(gaps))])
    return scores


def safe_decoding(own: Tensor, safe: Tensor, strength: float, common: int) -> Tensor:
    """Log of p + α(p_safe - p) over the tokens that the k best of both share, for the first k that has enough."""
    p, p_safe = own.softmax(-1), safe.softmax(-1)
    orders = [x.argsort(descending=True).tolist() for x in (p, p_safe)]
    shared: list[int] = []
    for k in range(1, len(p) + 1):
        shared = sorted({*orders[0][:k]} & {*orders[1][:k]})
        if len(shared) >= common:
            break
    scores = torch.full_like(p, -math.inf)
    for token in shared:
        scores[token] = math.log(max(float(p[token] + strength * (p_safe[token] - p[token])), 1e-30))
    return scores
