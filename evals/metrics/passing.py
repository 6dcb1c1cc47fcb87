"""pass@k of programs whose tests were run."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from decoding.errors import InputError, OptionError
from decoding.parameters import plain_number, require_count

__all__ = ["mean_pass_at_k", "pass_at_k"]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples passes: 1 - C(n-c, k)/C(n, k) (Chen et al. 2021).

    Args:
        samples: n, the number of programs for the problem.
        passed: c, the number of those that passed, 0 to n.
        k: 1 to n.

    Returns:
        0 to 1.

    Raises:
        OptionError: k below 1 or above n.
        InputError: c below 0 or above n.

    Example:
        >>> pass_at_k(samples=10, passed=1, k=5)
        0.5
    """
    require_count("k", k, 1)
    require_count("samples", samples, 0)
    passed = plain_number(passed)
    if not isinstance(passed, int):
        raise InputError(f"{passed!r} samples passed: must be a whole number")
    if not 1 <= k <= samples:
        raise OptionError(f"k={k}: there are {samples} samples a problem; k must be 1 to {samples}")
    if not 0 <= passed <= samples:
        raise InputError(f"{passed} of {samples} samples passed: must be 0 to {samples}")
    return 1 - prod((samples - passed - i) / (samples - i) for i in range(k))


def mean_pass_at_k(outcomes: Sequence[Sequence[bool]], k: int) -> float:
    """The mean of :func:`pass_at_k` over problems.

    Args:
        outcomes: for each problem and sample, whether it passed.
        k: 1 to the smallest number of samples.
    """
    if (
        isinstance(outcomes, str)
        or not isinstance(outcomes, Sequence)
        or not all(
            isinstance(passed, Sequence) and all(isinstance(plain_number(one), int) for one in passed)
            for passed in outcomes
        )
    ):
        raise InputError(f"outcomes: expected for each problem a list of True and False, not {outcomes!r}")
    if not outcomes:
        raise InputError("no problem: give the outcomes of at least one")
    return sum(pass_at_k(len(passed), sum(passed), k) for passed in outcomes) / len(outcomes)
