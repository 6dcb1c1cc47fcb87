"""``decoding eval truthfulqa``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from decoding.cli.options import GenerationOptions, codes_of, expanded
from decoding.cli.output import as_json
from decoding.errors import OptionError
from decoding.evals.engine.options import ComparisonOptions
from decoding.evals.tasks.truthfulqa.prompts import STYLES, Prompt, prompt_of
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, options_from_text
from decoding.strategies.registry import StrategySpec

if TYPE_CHECKING:
    from decoding.evals.engine.results import Results
    from decoding.evals.tasks.truthfulqa.data import Question
    from decoding.evals.tasks.truthfulqa.question_task import QuestionTask

__all__ = ["truthfulqa_command"]

GENERATION_BATCH = 8  # questions
ON_THE_HUB = "truthfulqa/truthful_qa"


@expanded
def truthfulqa_command(
    *,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="TruthfulQA.csv, mc_task.json, a translation, a folder, or a hub name."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(metavar="CODES", help="Such as es,de: the files of the folder --data that end so, one by one."),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="STYLE", help=f"How to ask: {', '.join(STYLES)}.")] = "dola",
    miniature_: Annotated[
        bool, typer.Option("--miniature", help="The embedded questions instead, and strategies to compare on them.")
    ] = False,
    binary: Annotated[
        bool,
        typer.Option("--binary", help="The choice of the best answer or the best incorrect one, of January 2025."),
    ] = False,
    max_branch_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of questions and answers in one forward pass; by default 512."),
    ] = None,
    generation: Annotated[
        bool,
        typer.Option("--generation", help="Generate answers; they are judged by BLEU, ROUGE and judge models."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --generation: at most N tokens per answer.")
    ] = 50,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Questions per batch, which a killed run loses; by default 4, with --generation 8."
        ),
    ] = None,
    judge_truth: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --generation: a fine-tuned judge of truth.")
    ] = None,
    judge_info: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --generation: a fine-tuned judge of informativeness.")
    ] = None,
    generation_config: GenerationOptions = None,
    options: ComparisonOptions,
) -> None:
    """TruthfulQA: multiple choice (MC1, MC2, MC3, normalised and raw), --binary or --generation, with paired tests.

    Example: decoding eval truthfulqa --miniature --strategy greedy --strategy dola
    """
    if miniature_ and (data is not None or languages is not None):
        raise OptionError("--miniature brings its own questions: leave --data and --languages out")
    if languages is not None and data is None:
        raise OptionError(f"--languages {languages}: expected with --data, whose files are in these languages")
    if binary and generation:
        raise OptionError("--binary is a choice of two answers: leave --generation out")
    named_judges = {"truth": judge_truth, "info": judge_info}
    if any(named_judges.values()) and not generation:
        raise OptionError("--judge-truth and --judge-info judge generated answers: give --generation as well")
    if generation_config and not generation:
        raise OptionError(
            "--generation-config: multiple choice reads likelihoods and generates no text: give --generation"
        )
    chosen = options_from_text(generation_config or (), EVALUATIONS_REFUSE) if generation else None
    style = None if prompt == "chat" else prompt_of(prompt)
    codes = [] if languages is None else codes_of("--languages", languages)

    from decoding.evals.engine.prepared import candidates_of_options, of_last_rank, prepared, report
    from decoding.evals.engine.results import corrected
    from decoding.evals.tasks.truthfulqa import miniature
    from decoding.evals.tasks.truthfulqa.binary_choice import BinaryChoice
    from decoding.evals.tasks.truthfulqa.data import check_languages, load
    from decoding.evals.tasks.truthfulqa.generation import Generation
    from decoding.evals.tasks.truthfulqa.judge import Judge
    from decoding.evals.tasks.truthfulqa.multiple_choice import MultipleChoice
    from decoding.models import loading
    from decoding.models.devices import input_device

    source = data or f"{ON_THE_HUB}:{'generation' if generation or binary else 'multiple_choice'}"
    check_languages(source, codes)
    # Before a model is loaded.
    sets = [
        (language, load(source, language, options.skip_bad, binary=binary))
        for language in (() if miniature_ else codes or (None,))
    ]
    tuning = options.tuning.validation is not None
    usual = (miniature.GRIDS if tuning else miniature.STRATEGIES) if miniature_ else ("greedy",)
    ready = prepared(options, candidates_of_options(options, usual), generates=generation)
    judges = [
        Judge(asks, *loading.load(name, str(input_device(ready.model)), options.placement.dtype))
        for asks, name in named_judges.items()
        if name
    ]

    def task_of(questions: Sequence[Question], style: Prompt, left_out: Sequence[str], suffix: str) -> QuestionTask:
        if generation:
            return Generation(
                ready.model, ready.tokenizer, questions, style, max_new_tokens=max_new_tokens,
                batch_size=batch_size or GENERATION_BATCH,
                judges=judges, left_out=left_out, name=f"truthfulqa_generation{suffix}", engine=ready.texts,
            )  # fmt: skip
        if binary:
            return BinaryChoice(
                ready.model, ready.tokenizer, questions, style, seed=options.seed, left_out=left_out,
                name=f"truthfulqa_binary{suffix}", max_branch_tokens=max_branch_tokens, batch_size=batch_size,
            )  # fmt: skip
        name = "truthfulqa_miniature" if miniature_ else f"truthfulqa_mc{suffix}"
        return MultipleChoice(
            ready.model, ready.tokenizer, questions, style, left_out=left_out, name=name,
            max_branch_tokens=max_branch_tokens, batch_size=batch_size,
        )  # fmt: skip

    results: list[Results | None] = []

    def evaluate(task: QuestionTask, specs: Sequence[StrategySpec]) -> None:
        try:
            results.append(ready.run(task, ready.configurations(task.settings, specs, chosen)))
        finally:
            task.release()

    if miniature_:
        validation = miniature.questions("validation") if tuning else []
        task = task_of([*validation, *miniature.questions("test")], prompt_of("none"), (), "_miniature")
        task.validation_ids = [question.id for question in validation]
        evaluate(task, ready.specs)
    else:
        style = style or prompt_of(prompt, ready.tokenizer)
        for language, (questions, left_out) in sets:
            task = task_of(questions, style, left_out, f"_{language}" if language else "")
            evaluate(task, [spec.in_language(language) if language else spec for spec in ready.specs])
    whole = of_last_rank(results, ready.runs, options.output, limit=options.limit, seed=options.seed)
    if whole is None:
        return
    if options.json and len(whole) > 1:
        print(as_json([corrected(table, task.figures) for table in whole] if options.holm else whole, indent=2))
        return
    for table in whole:
        report(table, task.figures, options.json, options.holm)
