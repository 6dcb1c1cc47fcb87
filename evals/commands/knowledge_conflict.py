"""``decoding eval knowledge-conflict``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoding.cli.options import GenerationOptions, expanded
from decoding.errors import DecodingWarning, OptionError, nearest
from decoding.evals.engine.options import ComparisonOptions
from decoding.evals.miniature.conflicts import MOST_DOCUMENTS
from decoding.evals.tasks.knowledge_conflict.prompts import STYLES, conflict_prompt
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, options_from_text

if TYPE_CHECKING:
    from decoding.evals.tasks.knowledge_conflict.data import ConflictQuestion
    from decoding.strategies.registry import StrategySpec

__all__ = ["knowledge_conflict_command"]


def _known_prompt(given: str) -> str:
    if given not in STYLES:
        raise OptionError(f"unknown --prompt {given!r}{nearest(given, STYLES)}")
    return given


@expanded
def knowledge_conflict_command(
    *,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A file or a hub name with the columns question, context, answer and memory, or with NQ-Swap's; or "
            "facts, our own file. By default questions of the embedded world.",
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_DOCUMENTS, metavar="N", help="Documents of an embedded question; one of them counts."
        ),
    ] = None,
    contradicting: Annotated[
        bool,
        typer.Option(
            "--contradicting", help="Documents beside a true one give other false values; else they are irrelevant."
        ),
    ] = False,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="STYLE",
            callback=_known_prompt,
            help="plain (Q: ... A:), question (Question: ... Answer:), or chat: the model's chat template.",
        ),
    ] = "plain",
    context_in_prompt: Annotated[
        bool,
        typer.Option(
            "--context-in-prompt", help="Strategies without {context} or {documents} read the context in the prompt."
        ),
    ] = False,
    generation: Annotated[
        bool, typer.Option("--generation", help="Generate answers, which are compared by exact match.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --generation: at most N tokens per answer.")
    ] = 32,
    generation_config: GenerationOptions = None,
    options: ComparisonOptions,
) -> None:
    """Knowledge conflicts: does an answer follow the context or the memory, where they differ and where they agree?

    {context}, {documents} and {question} in a strategy's parameters are those of each question.

    Example: decoding eval knowledge-conflict --strategy context-aware:context={context},alpha=0 --strategy
    adaptive-context:context={context}
    """
    if data is not None and (documents is not None or contradicting):
        raise OptionError("--documents and --contradicting are of the embedded questions: leave --data out")
    if contradicting and (documents or 1) < 2:
        raise OptionError("--contradicting: needs documents beside the true one; give --documents 2 or more")
    if generation_config and not generation:
        raise OptionError("--generation-config: likelihoods are read and no text is generated: give --generation")
    chosen = options_from_text(generation_config or (), EVALUATIONS_REFUSE) if generation else None

    from decoding.evals.engine.prepared import candidates_of_options, prepared, report
    from decoding.evals.tasks.knowledge_conflict.data import load, miniature_questions
    from decoding.evals.tasks.knowledge_conflict.generated import GeneratedConflicts
    from decoding.evals.tasks.knowledge_conflict.question_task import GRIDS, STRATEGIES, ConflictTask
    from decoding.evals.tasks.knowledge_conflict.scored import ScoredConflicts

    tuning = options.tuning.validation is not None
    validation: list[ConflictQuestion] = []
    left_out: list[str] = []
    if data is None:
        validation = miniature_questions("validation", documents or 1, contradicting) if tuning else []
        questions = [*validation, *miniature_questions("test", documents or 1, contradicting)]
    else:
        questions, left_out = load(data, options.skip_bad)
    candidates = candidates_of_options(options, GRIDS if tuning else STRATEGIES)
    if options.strategy is not None and not context_in_prompt:
        _note_blind(candidates[0][1][0])
    ready = prepared(options, candidates)
    style = conflict_prompt(prompt, ready.tokenizer)
    name = f"knowledge_conflict{'' if data is not None else '_miniature'}{'_generation' if generation else ''}"
    given: dict[str, Any] = {"context_in_prompt": context_in_prompt, "left_out": left_out, "name": name}
    parts = (ready.model, ready.tokenizer, questions, style)
    task: ConflictTask = (
        GeneratedConflicts(*parts, max_new_tokens=max_new_tokens, **given)
        if generation
        else ScoredConflicts(*parts, **given)
    )
    task.validation_ids = [question.id for question in validation]
    results = ready.run(task, ready.configurations(task.settings, generation_config=chosen))
    report(results, task.figures, options.json, options.holm)


def _note_blind(first: StrategySpec) -> None:
    """Warn where the strategy that the others are compared with reads no context: then any context is a gain."""
    from decoding.evals.tasks.knowledge_conflict.question_task import CONTROL, reads_context

    if not reads_context(first):
        warnings.warn(
            f"{first.label} reads no context, and the others are compared with it: put {CONTROL} first, or give "
            "--context-in-prompt",
            DecodingWarning,
            stacklevel=2,
        )
