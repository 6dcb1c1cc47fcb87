"""The console script: the commands of ``decoding.cli.app`` and those that evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from decoding.cli.app import add_command, app, run
from decoding.evals.commands.compare import compare_command
from decoding.evals.commands.demo import demo_command
from decoding.evals.commands.factor import factor_command
from decoding.evals.commands.halueval import halueval_command
from decoding.evals.commands.isotropy import isotropy_command
from decoding.evals.commands.lm_eval import lm_eval_command
from decoding.evals.commands.metrics import metrics_command
from decoding.evals.commands.multilingual import multilingual_command
from decoding.evals.commands.scale import at_scale
from decoding.evals.commands.truthfulqa import truthfulqa_command

__all__ = ["main"]

eval_app = typer.Typer(name="eval", no_args_is_help=True, help="Evaluate strategies. Example: decoding eval truthfulqa")

add_command(app, "compare", compare_command)
add_command(app, "demo", demo_command)
add_command(app, "isotropy", isotropy_command)
add_command(app, "lm-eval", lm_eval_command)
add_command(app, "metrics", metrics_command)
add_command(eval_app, "factor", at_scale(factor_command))
add_command(eval_app, "halueval", at_scale(halueval_command))
add_command(eval_app, "truthfulqa", at_scale(truthfulqa_command))
add_command(eval_app, "multilingual", at_scale(multilingual_command))
app.add_typer(eval_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``decoding`` command line on ``arguments`` (those of the process by default); return the exit code."""
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
