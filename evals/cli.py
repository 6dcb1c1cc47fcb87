"""The console script: the commands of ``decoding.cli.app`` and those that evaluate."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

import typer

from decoding.cli.app import add_command, app, run
from decoding.evals.commands.compare import compare_command
from decoding.evals.commands.demo import demo_command
from decoding.evals.commands.factor import factor_command
from decoding.evals.commands.halueval import halueval_command
from decoding.evals.commands.heads import heads_command
from decoding.evals.commands.isotropy import isotropy_command
from decoding.evals.commands.knowledge_conflict import knowledge_conflict_command
from decoding.evals.commands.lm_eval import lm_eval_command
from decoding.evals.commands.metrics import metrics_command
from decoding.evals.commands.multilingual import multilingual_command
from decoding.evals.commands.pope import pope_command
from decoding.evals.commands.scale import at_scale
from decoding.evals.commands.truthfulqa import truthfulqa_command
from decoding.evals.commands.tune import tuning, without_tuning

__all__ = ["main"]

# Objects until the garbage collector makes a pass, of a process that is a command's own. With Python's 700 it takes a
# fifth of the five seconds in which torch and transformers are imported.
GARBAGE = 50_000

eval_app = typer.Typer(
    name="eval", no_args_is_help=True, help="Evaluate strategies. Example: decoding eval truthfulqa --miniature"
)
tune_app = typer.Typer(
    name="tune",
    no_args_is_help=True,
    help="Choose the values of strategies on some documents. Example: decoding tune truthfulqa --miniature",
)

add_command(app, "compare", compare_command)
add_command(app, "demo", demo_command)
add_command(app, "heads", heads_command)
add_command(app, "isotropy", isotropy_command)
add_command(app, "lm-eval", lm_eval_command)
add_command(app, "metrics", metrics_command)
for name, command, what, example in (
    ("factor", factor_command, "FACTOR", "--data news_factor.csv --strategy greedy --strategy dola"),
    ("halueval", halueval_command, "HaluEval", "--data qa_data.json --strategy greedy --strategy dola"),
    ("pope", pope_command, "POPE", "--data pope.json --model llava --chat --strategy greedy --strategy image-contrast"),
    (
        "knowledge-conflict",
        knowledge_conflict_command,
        "Knowledge conflicts",
        "--strategy 'context-aware:context={context},alpha=0' --strategy 'context-aware:context={context}'",
    ),
    ("truthfulqa", truthfulqa_command, "TruthfulQA", "--miniature --strategy greedy --strategy 'dola:layers=low|high'"),
    (
        "multilingual",
        multilingual_command,
        "Texts in many languages",
        "--data wit/ --languages en --coherence-model amateur --strategy 'contrastive-search:top_k=4|6'",
    ),
):
    add_command(eval_app, name, without_tuning(at_scale(command)))
    add_command(tune_app, name, tuning(at_scale(command), what, f"decoding tune {name} {example}"))
app.add_typer(eval_app)
app.add_typer(tune_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``decoding`` command line on ``arguments`` (those of the process by default); return the exit code."""
    if arguments is None:
        gc.set_threshold(GARBAGE)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
