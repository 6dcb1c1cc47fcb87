"""The console script: the commands of ``decoding.cli.app`` and those that evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from decoding.cli.app import add_command, app, run
from decoding.evals.compare.compare import compare_command
from decoding.evals.compare.demo import demo_command
from decoding.evals.engine.options import eval_app
from decoding.evals.harness.command import lm_eval_command
from decoding.evals.isotropy.command import isotropy_command
from decoding.evals.metrics.command import metrics_command
from decoding.evals.ray_workers import at_scale
from decoding.evals.tasks.factor import factor_command
from decoding.evals.tasks.halueval import halueval_command
from decoding.evals.tasks.multilingual.command import multilingual_command
from decoding.evals.tasks.truthfulqa.cli import truthfulqa_command

__all__ = ["main"]


add_command(app, "compare", compare_command)
add_command(app, "demo", demo_command)
add_command(app, "isotropy", isotropy_command)
add_command(app, "lm-eval", lm_eval_command)
add_command(eval_app, "factor", at_scale(factor_command))
add_command(eval_app, "halueval", at_scale(halueval_command))
add_command(eval_app, "truthfulqa", at_scale(truthfulqa_command))
add_command(app, "metrics", metrics_command)
add_command(eval_app, "multilingual", at_scale(multilingual_command))
app.add_typer(eval_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``decoding`` command line on ``arguments`` (those of the process by default); returns the exit code."""
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
