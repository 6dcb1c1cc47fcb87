"""The console script: the commands of ``decoding.cli``, those that evaluate, and the models that are built in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from decoding.cli import app, run
from decoding.evals import miniature
from decoding.evals.architectures.command import architectures_command
from decoding.evals.cli_eval import at_scale, eval_app
from decoding.evals.cli_metrics import metrics_command
from decoding.evals.compare import compare_command
from decoding.evals.demo import demo_command
from decoding.evals.factor import factor_command
from decoding.evals.halueval import halueval_command
from decoding.evals.harness.command import lm_eval_command
from decoding.evals.isotropy.command import isotropy_command
from decoding.evals.multilingual.command import multilingual_command
from decoding.evals.truthfulqa.cli import truthfulqa_command
from decoding.loading import BUILT_IN, BUILT_IN_ADAPTERS

__all__ = ["main"]


def _miniature(name: str) -> Any:
    def load(dtype: torch.dtype, **placed: Any) -> tuple[Any, Any]:
        if not (miniature.folder(name) / "config.json").is_file():
            raise FileNotFoundError(f"its folder {miniature.folder(name)} holds no model")
        return miniature.load(name, dtype=dtype, **placed)

    return load


BUILT_IN.update({name: _miniature(name) for name in miniature.NAMES})
BUILT_IN_ADAPTERS.update({name: miniature.folder(name) for name in miniature.ADAPTERS})
app.command("architectures")(architectures_command)
app.command("compare")(compare_command)
app.command("demo")(demo_command)
app.command("isotropy")(isotropy_command)
app.command("lm-eval")(lm_eval_command)
eval_app.command("factor")(at_scale(factor_command))
eval_app.command("halueval")(at_scale(halueval_command))
eval_app.command("truthfulqa")(at_scale(truthfulqa_command))
app.command("metrics")(metrics_command)
eval_app.command("multilingual")(at_scale(multilingual_command))
app.add_typer(eval_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``decoding`` command line on ``arguments`` (those of the process by default); returns the exit code."""
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
