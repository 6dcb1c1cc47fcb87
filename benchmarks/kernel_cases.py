"""The operations that ``kernel_forms.py`` measures, each at sizes of real models.

``before`` repeats what transformers 4.55.4, the last release with these strategies in its core, did for the same step:
the same operations in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.kernels.contrast import contrast_log_probs, contrast_logits, multi_layer_contrast
from decoding.kernels.degeneration_penalty import append, degeneration_penalty, inverse_norms
from decoding.kernels.few_query_attention import few_query_attention, seen_span
from decoding.kernels.layer_divergence import layer_divergence
from decoding.kernels.selection import select

__all__ = ["OPERATIONS", "Forms", "Operation"]

Size = dict[str, int]


@dataclass(frozen=True)
class Forms:
    """The forms of one operation at one size.

    Attributes:
        triton: the kernel; its result is compared with that of ``torch``.
        torch: the torch form.
        moved: bytes that have to be read and written at least.
        before: the form of transformers 4.55.4, None where it had none.
    """

    triton: Callable[[], Tensor]
    torch: Callable[[], Tensor]
    moved: int
    before: Callable[[], Tensor] | None = None

    @classmethod
    def by_backend(cls, run: Callable[[str], Tensor], moved: int, before: Callable[[], Tensor] | None = None) -> Forms:
        """Return the forms of an operation that takes its backend by name."""
        return cls(lambda: run("triton"), lambda: run("torch"), moved, before)


@dataclass(frozen=True)
class Operation:
    """An operation: ``build(device, dtype, **size)`` draws its inputs; ``small`` is a size for a CPU."""

    name: str
    build: Callable[..., Forms]
    sizes: Sequence[Size]
    small: Size


OPERATIONS: list[Operation] = []


def operation(name: str, sizes: Sequence[Size], small: Size) -> Callable[[Callable[..., Forms]], Callable[..., Forms]]:
    """Register the decorated function as the operation's ``build``."""

    def register(build: Callable[..., Forms]) -> Callable[..., Forms]:
        OPERATIONS.append(Operation(name, build, sizes, small))
        return build

    return register


# A history of 8, 67, 268 and 537 MB, a wide k, and the longest context.
HISTORIES = (
    {"B": 1, "K": 5, "S": 1024, "D": 4096},
    {"B": 1, "K": 5, "S": 8192, "D": 4096},
    {"B": 1, "K": 5, "S": 32768, "D": 4096},
    {"B": 8, "K": 5, "S": 8192, "D": 4096},
    {"B": 1, "K": 64, "S": 32768, "D": 4096},
    {"B": 1, "K": 5, "S": 131072, "D": 4096},
)
SMALL_HISTORY = {"B": 2, "K": 5, "S": 100, "D": 96}


@operation("degeneration penalty", HISTORIES, SMALL_HISTORY)
def penalty(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> Forms:
    """Candidates against the history; 4.55.4 repeats the history K times and normalises it each time."""
    candidates, history, norms = _history(device, dtype, B, K, S, D)

    def run(backend: str) -> Tensor:
        return degeneration_penalty(candidates, history, norms, length=S, backend=backend)

    def before() -> Tensor:
        context = history[:, :S].repeat_interleave(K, dim=0)
        context = context / context.norm(dim=2, keepdim=True)
        directions = candidates.flatten(0, 1)[:, None]
        directions = directions / directions.norm(dim=2, keepdim=True)
        return torch.matmul(context, directions.transpose(1, 2))[:, :, 0].amax(-1)

    moved = B * S * (D * dtype.itemsize + 4) + candidates.numel() * dtype.itemsize
    return Forms.by_backend(run, moved, before)


@operation("selection", HISTORIES[:4], SMALL_HISTORY)
def selection(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> Forms:
    """Choice among the candidates, the penalty included; the result is the chosen tokens' scores."""
    candidates, history, norms = _history(device, dtype, B, K, S, D)
    logits = torch.randn(B, 32000, device=device)
    probabilities, ids = logits.softmax(-1).topk(K)

    def run(backend: str) -> Tensor:
        return select(logits, probabilities, ids, 0.6, candidates, history, norms, None, S, backend).score

    moved = B * S * (D * dtype.itemsize + 4) + candidates.numel() * dtype.itemsize
    return Forms.by_backend(run, moved)


@operation(
    "history append", [{"B": 1, "S": 8192, "D": 4096}, {"B": 8, "S": 8192, "D": 4096}], {"B": 2, "S": 9, "D": 33}
)
def appended(device: str, dtype: torch.dtype, B: int, S: int, D: int) -> Forms:
    """One state a row after S others; 4.55.4 copies all of them."""
    hidden, history, norms = _history(device, dtype, B, 1, S, D)

    def run(backend: str) -> Tensor:
        append(history, norms, hidden, S, backend)
        return norms[:, S]

    return Forms.by_backend(
        run,
        2 * hidden.numel() * dtype.itemsize + 4 * B,
        lambda: torch.cat([history[:, :S], hidden], dim=1),
    )


def _history(device: str, dtype: torch.dtype, B: int, K: int, S: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw candidates, a history with one spare slot, and its inverse norms."""
    candidates = torch.randn(B, K, D, device=device, dtype=dtype)
    history = torch.randn(B, S + 1, D, device=device, dtype=dtype)
    return candidates, history, inverse_norms(history)


# One row at the usual vocabularies, batches, and teacher forcing. The first score of a row needs statistics of the
# whole row, so each row is read twice, and both reads count as moved; the second read of a single row comes from L2.
VOCABULARIES = (
    {"B": 1, "V": 32000},
    {"B": 1, "V": 128256},
    {"B": 1, "V": 262144},
    {"B": 8, "V": 128256},
    {"B": 128, "V": 128256},
    {"B": 128, "V": 262144},
)
SMALL_VOCABULARY = {"B": 2, "V": 1003}
LAYERS = 8


@operation("contrast of logits", VOCABULARIES, SMALL_VOCABULARY)
def logits_contrast(device: str, dtype: torch.dtype, B: int, V: int) -> Forms:
    """Expert against amateur with the plausibility mask; the amateur is read once."""
    expert, amateur = (_logits(device, dtype, B, V) for _ in range(2))

    def run(backend: str) -> Tensor:
        return contrast_logits(expert, amateur, 0.5, 0.1, backend)

    return Forms.by_backend(run, B * V * (3 * dtype.itemsize + 4))


@operation("contrast with a layer", VOCABULARIES, SMALL_VOCABULARY)
def layer_contrast(device: str, dtype: torch.dtype, B: int, V: int) -> Forms:
    """DoLa's scores once the layer is chosen; 4.55.4 sorts the vocabulary for its mask."""
    final, premature = _logits(device, dtype, B, V), _logits(device, dtype, LAYERS, B, V)
    layer = torch.randint(LAYERS, (B,), device=device)

    def run(backend: str) -> Tensor:
        return contrast_log_probs(final, premature, alpha=0.1, layer=layer, backend=backend)

    def before() -> Tensor:
        scores, base = final.float().log_softmax(-1), premature[3].float().log_softmax(-1)
        least = scores.sort(descending=True).values[..., 0]
        least = torch.min(least, scores.amax(-1) + math.log(0.1))[..., None]
        base = base.masked_fill(scores < least, -1e3)
        return scores.masked_fill(scores < least, -torch.inf) - base

    return Forms.by_backend(run, B * V * (4 * dtype.itemsize + 4), before)


@operation("multi-layer contrast", VOCABULARIES, SMALL_VOCABULARY)
def multi_layer(device: str, dtype: torch.dtype, B: int, V: int) -> Forms:
    """LOL's scores with guidance and two lower layers, fused by entropy."""
    expert, amateur, guided = (_logits(device, dtype, B, V) for _ in range(3))
    lower, lower_amateur = (_logits(device, dtype, 2, B, V) for _ in range(2))

    def run(backend: str) -> Tensor:
        return multi_layer_contrast(
            expert, amateur, guided, lower, lower_amateur, fusion="entropy", alpha=0.1, backend=backend
        )

    return Forms.by_backend(run, B * V * (2 * 7 * dtype.itemsize + 4))


@operation("layer divergence", VOCABULARIES[:-1], SMALL_VOCABULARY)
def divergence(device: str, dtype: torch.dtype, B: int, V: int) -> Forms:
    """Divergences of 8 layers; 4.55.4 waits for the choice on the host."""
    final, premature = _logits(device, dtype, B, V), _logits(device, dtype, LAYERS, B, V)

    def run(backend: str) -> Tensor:
        return layer_divergence(final, premature, backend=backend)[0]

    def before() -> Tensor:
        p, q = final.float().softmax(-1), premature.float().softmax(-1)
        average = 0.5 * (p[None] + q)
        log_p, log_q = final.float().log_softmax(-1), premature.float().log_softmax(-1)
        divergences = sum(
            torch.nn.functional.kl_div(logs, average, reduction="none").mean(-1) for logs in (log_p[None], log_q)
        )
        return premature[int((0.5 * divergences).mean(-1).argmax())]

    return Forms.by_backend(run, 2 * (1 + LAYERS) * B * V * dtype.itemsize, before)


# One layer of a Llama 8B (groups of 4 heads) at 4, 34, 134 and 537 MB of keys and values, and batches; without grouped
# heads; of a Llama 1B.
CACHES = (
    *({"B": 1, "H": 32, "G": 8, "Q": 4, "S": slots, "D": 128} for slots in (1024, 8192, 32768, 131072)),
    *({"B": 8, "H": 32, "G": 8, "Q": 4, "S": slots, "D": 128} for slots in (1024, 8192, 32768)),
    {"B": 1, "H": 32, "G": 32, "Q": 4, "S": 8192, "D": 128},
    {"B": 1, "H": 32, "G": 8, "Q": 4, "S": 32768, "D": 64},
)


@operation("few-query attention", CACHES, {"B": 2, "H": 4, "G": 2, "Q": 4, "S": 100, "D": 32})
def attention(device: str, dtype: torch.dtype, B: int, H: int, G: int, Q: int, S: int, D: int) -> Forms:
    """Q branches over a cache of G key heads; 4.55.4 repeats the cache Q times, and each copy has one query."""
    query = torch.randn(B, Q, H, D, device=device, dtype=dtype).transpose(1, 2)
    key, value = (torch.randn(B, G, S + 256, D, device=device, dtype=dtype)[:, :, :S] for _ in range(2))
    mask = torch.zeros(B, 1, Q, S, device=device, dtype=dtype)
    mask[..., S - Q :] = torch.finfo(dtype).min
    mask.diagonal(S - Q, 2, 3).zero_()  # each branch sees the prefix and itself
    span = seen_span(mask)

    def run(backend: str) -> Tensor:
        return few_query_attention(query, key, value, mask, span=span, backend=backend)

    def before() -> Tensor:
        keys, values = (x.repeat_interleave(Q, dim=0) for x in (key, value))
        single_queries = query.transpose(1, 2).reshape(B * Q, H, 1, D)
        return torch.nn.functional.scaled_dot_product_attention(single_queries, keys, values, enable_gqa=True)

    moved = 2 * (B * G * S * D + query.numel()) * dtype.itemsize
    return Forms.by_backend(run, moved, before)


def _logits(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return (3 * torch.randn(shape, device=device)).to(dtype)
