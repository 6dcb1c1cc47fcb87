"""What an isotropy analysis should find, computed the long way: every pair of tokens, text by text, in float64.

Nothing of the library is used: states come from ``output_hidden_states``, one text at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def states_of(model: Any, ids: list[list[int]]) -> list[list[np.ndarray]]:
    """States (tokens, dim) by layer and text, float64."""
    by_text = []
    for text in ids:
        with torch.no_grad():
            found = model(torch.tensor([text]), output_hidden_states=True).hidden_states
        by_text.append([state[0].double().numpy() for state in found])
    return [list(layer) for layer in zip(*by_text, strict=True)]


def mean_cosines(texts: list[np.ndarray]) -> tuple[float, float]:
    """Mean cosine over all ordered pairs within a text, and over all pairs across texts."""
    units = [text / np.linalg.norm(text, axis=1, keepdims=True) for text in texts]
    within = pairs = 0.0
    for text in units:
        cosines = text @ text.T
        within += cosines[~np.eye(len(text), dtype=bool)].sum()
        pairs += len(text) * (len(text) - 1)
    across = across_pairs = 0.0
    for place, text in enumerate(units):
        for other in units[place + 1 :]:
            across += (text @ other.T).sum()
            across_pairs += len(text) * len(other)
    return within / pairs, across / across_pairs


def contributions(texts: list[np.ndarray]) -> np.ndarray:
    """What each dimension adds to the mean cosine over the pairs across texts."""
    units = [text / np.linalg.norm(text, axis=1, keepdims=True) for text in texts]
    total, pairs = np.zeros(texts[0].shape[1]), 0
    for place, text in enumerate(units):
        for other in units[place + 1 :]:
            total += np.einsum("id,jd->d", text, other)
            pairs += len(text) * len(other)
    return total / pairs


def published_isoscore(variances: np.ndarray) -> float:
    """IsoScore in the steps of its paper."""
    n = len(variances)
    scaled = variances * np.sqrt(n) / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    return ((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1))


def published_isotropy(model: Any, ids: list[list[int]]) -> float:
    """1 - Σ over texts of Σ over i ≠ j of cos / Σ over texts of L(L-1), last layer."""
    cosine_sum, pairs = 0.0, 0
    for text in states_of(model, ids)[-1]:
        units = text / np.linalg.norm(text, axis=1, keepdims=True)
        cosine_sum += (units @ units.T).sum() - len(text)
        pairs += len(text) * (len(text) - 1)
    return 1 - cosine_sum / pairs


def log_partition_score(vectors: np.ndarray) -> float:
    """The ln of min Z / max Z over both signs of the eigenvectors of XᵀX, a direction at a time."""
    directions = np.linalg.eigh(vectors.T @ vectors)[1].T
    logs = []
    for direction in [*directions, *-directions]:
        products = vectors @ direction
        logs.append(products.max() + np.log(np.exp(products - products.max()).sum()))
    return min(logs) - max(logs)
