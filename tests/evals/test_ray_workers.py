"""Numbers that ``--engine ray`` computes before it starts a worker; tests/scale runs it."""

from __future__ import annotations

import pytest

from decoding.evals.ray_workers import workers_that_fit


@pytest.mark.parametrize(
    ("gpus", "share", "workers"),
    [(1, 0.1, 10), (3, 0.3, 10), (8, 1, 8), (2, 0.7, 2), (1, 0.0001, 10_000), (8, 0.8, 10), (4, 0, 1), (0, 0, 1)],
)
def test_shares_of_a_gpu_are_counted_in_integers(gpus: float, share: float, workers: int) -> None:
    assert workers_that_fit(gpus, share) == workers
