"""Runs programs that models wrote where they can do no harm; docs/multilingual.md says what that rests on."""

from decoding.evals.sandbox.programs import Isolation, Limits, Outcome, isolation, run_program

__all__ = ["Isolation", "Limits", "Outcome", "isolation", "run_program"]
