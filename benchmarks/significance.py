"""How often the paired test and the 95% interval of evaluations see a difference where there is none.

    python benchmarks/significance.py [--trials 2000] [--seed 0]

For 1 to 100 documents, differences are drawn from distributions without a true difference. A calibrated test is below
0.05 in at most 5% of the trials. "smallest p" is the least that so many documents can reach. The skewed distribution
has the mean 0 but is not symmetric: two methods that are alike never differ so, and the test says no more than that
they are not alike. Takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from decoding.evals.engine.statistics import EXACT, bootstrap_means, sign_flip

DOCUMENTS = (1, 2, 3, 4, 5, 6, 8, 10, 30, 100)
RESAMPLES = 2000
NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
    "normal": lambda generator, size: generator.normal(0, 1, size),
    "heavy tails (t, 2 df)": lambda generator, size: generator.standard_t(2, size),
    "0 or 1, half alike": lambda generator, size: generator.choice([-1.0, 0.0, 0.0, 1.0], size),
    "skewed (exponential)": lambda generator, size: generator.exponential(1, size) - 1,
}


def main() -> None:
    """Print one table a distribution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, draw in NULLS.items():
        print(f"{name}, {options.trials} trials")
        print(f"{'documents':>10}{'smallest p':>12}{'p < .05':>10}{'p < .01':>10}{'interval without 0':>20}")
        for documents in DOCUMENTS:
            gains = draw(np.random.default_rng([options.seed, documents]), (documents, options.trials))
            p = np.array(sign_flip(gains, seed=options.seed, resamples=RESAMPLES))
            intervals = bootstrap_means(gains, seed=options.seed, resamples=RESAMPLES)
            missed = np.mean([not interval.low <= 0 <= interval.high for interval in intervals])
            smallest = 2.0 ** (1 - documents) if documents <= EXACT else 1 / (RESAMPLES + 1)
            print(f"{documents:10}{smallest:12.4f}{(p < 0.05).mean():10.1%}{(p < 0.01).mean():10.1%}{missed:20.1%}")
        print()


if __name__ == "__main__":
    main()
