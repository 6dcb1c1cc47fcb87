"""Measures of isotropy against their definitions, and on clouds whose answer is known."""

import math

import numpy as np
import pytest
import torch
from isotropy_oracle import log_partition_score, published_isoscore

from decoding.evals.isotropy.measures import (
    isoscore,
    neighbour_ratios,
    participation_ratio,
    partition_score,
    penalties,
    shrunk,
    two_nn,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(points: torch.Tensor) -> torch.Tensor:
    return torch.cov(points.T, correction=0)


@pytest.mark.parametrize("seed", range(4))
def test_isoscore_is_the_published_one(seed):
    points = gaussian(300, 17, seed=seed) * gaussian(17, seed=seed + 10).exp()
    variances = torch.linalg.eigvalsh(covariance(points))
    assert isoscore(covariance(points)) == pytest.approx(published_isoscore(variances.numpy()), abs=1e-12)


@pytest.mark.parametrize(("count", "dim"), [(20_000, 5), (50_000, 64)], ids=["N20000-D5", "N50000-D64"])
def test_isoscore_of_an_isotropic_gaussian_is_1(count, dim):
    # Sampled variances scatter by √(2/N), and the score falls by about (dim + 1)/N of it.
    assert isoscore(covariance(gaussian(count, dim))) == pytest.approx(1, abs=3 * dim / count)


def test_isoscore_of_a_line_is_0():
    line = gaussian(1000, 1) @ gaussian(1, 32, seed=1)
    assert isoscore(covariance(line + 1e-4 * gaussian(1000, 32, seed=2))) == pytest.approx(0, abs=1e-5)
    assert isoscore(torch.zeros(4, 4)) == 0


def test_isoscore_counts_the_share_of_directions_in_use():
    used = torch.diag(torch.tensor([1.0] * 5 + [0.0] * 6))
    assert participation_ratio(used) == pytest.approx(5)
    assert isoscore(used) == pytest.approx(4 / 10)


def test_isoscore_does_not_depend_on_rotation_or_scale():
    points = gaussian(500, 12) * torch.arange(1, 13)
    rotation = torch.linalg.qr(gaussian(12, 12, seed=3)).Q
    assert isoscore(covariance(7 * points @ rotation)) == pytest.approx(isoscore(covariance(points)), rel=1e-9)


def test_shrinking_goes_from_the_covariance_to_the_reference():
    own, reference = covariance(gaussian(50, 6)), covariance(gaussian(50, 6, seed=1))
    torch.testing.assert_close(shrunk(own, reference, 0.25), 0.75 * own + 0.25 * reference)
    assert isoscore(shrunk(own, None, 1.0)) == pytest.approx(1)
    assert isoscore(shrunk(own, None, 0.0)) == isoscore(own)
    assert shrunk(own, None, 0.3).trace() == pytest.approx(own.trace())


@pytest.mark.parametrize("scale", [0.3, 3.0, 300.0], ids=["short", "long", "overflowing"])
def test_partition_score_is_its_definition(scale):
    vectors = scale * (gaussian(2500, 9) + gaussian(9, seed=1))  # more rows than are taken at once
    directions = torch.linalg.eigh(vectors.T @ vectors).eigenvectors
    assert partition_score(vectors, directions) == pytest.approx(log_partition_score(vectors.numpy()), rel=1e-9)


def test_partition_score_tells_isotropic_vectors_from_others():
    isotropic = torch.nn.functional.normalize(gaussian(20_000, 10), dim=-1)
    shifted = isotropic + 2 * torch.eye(10, dtype=torch.float64)[0]
    scores = [
        partition_score(states, torch.linalg.eigh(states.T @ states).eigenvectors) for states in (isotropic, shifted)
    ]
    assert math.exp(scores[0]) > 0.95
    assert math.exp(scores[1]) < 0.1


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_sphere(dim):
    sphere = torch.nn.functional.normalize(gaussian(2000, dim + 1), dim=-1)
    points = sphere @ torch.linalg.qr(gaussian(24, 24, seed=1)).Q[: dim + 1] + 3  # somewhere in 24 dimensions
    # 1800 exponential ratios give the rate to 1/√1800 = 2.4%; three of these, and the curvature's bias at 5
    assert float(two_nn(neighbour_ratios(points))) == pytest.approx(dim, rel=0.1)


def test_neighbour_ratios_are_those_of_sorted_distances():
    points = gaussian(40, 3).numpy()
    expected = []
    for point in points:
        distances = np.sort(np.linalg.norm(points - point, axis=1))[1:3]
        expected.append(math.log(distances[1] / distances[0]))
    torch.testing.assert_close(neighbour_ratios(torch.from_numpy(points)), torch.tensor(sorted(expected)).double())


def test_repeated_points_do_not_count_as_neighbours():
    points = gaussian(60, 4)
    repeated = torch.cat([points, points[:30] * (1 + 1e-9), points[:7]])
    torch.testing.assert_close(neighbour_ratios(repeated, noise=1e-6), neighbour_ratios(points), rtol=1e-6, atol=1e-6)
    assert len(neighbour_ratios(points[:1].repeat(5, 1), noise=1e-6)) == 0


def test_trimming_two_nn_has_no_bias():
    ratios = torch.empty(500, 400, dtype=torch.float64).exponential_(7.0, generator=torch.Generator().manual_seed(0))
    estimates = two_nn(ratios.sort(1).values)
    assert float(estimates.mean()) == pytest.approx(7.0, rel=0.01)  # 500 estimates that scatter by 5% each


def test_penalties_are_the_largest_cosines_with_what_stands_before():
    states = gaussian(6, 5)
    expected = []
    for i in range(1, 6):
        cosines = [
            float(states[i] @ states[j] / states[i].norm() / states[j].norm()) for j in range(i)
        ]  # fmt: skip
        expected.append(max(cosines))
    assert penalties(states).tolist() == pytest.approx(expected)
    assert len(penalties(states[:1])) == 0
