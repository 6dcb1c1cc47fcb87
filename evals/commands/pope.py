"""``decoding eval pope``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Chat, GenerationOptions, expanded
from decoding.errors import OptionError
from decoding.evals.engine.options import ComparisonOptions
from decoding.evals.tasks.pope.data import PROMPT, checked_prompt
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, options_from_text

__all__ = ["pope_command"]

CALIBRATION = 100  # questions, unless told otherwise


@expanded
def pope_command(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="POPE's coco_pope_adversarial.json or the like, with image, text and label; or a hub name.",
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the images; by default that of the file.")
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            callback=checked_prompt,
            help="What is asked, with {question} in it; without --chat also the processor's token for an image.",
        ),
    ] = PROMPT,
    chat: Chat = False,
    calibration: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Choose thresholds on N questions about images that the results omit; by default 100.",
        ),
    ] = None,
    generation: Annotated[
        bool,
        typer.Option("--generation", help="Generate answers, in place of the scores of yes and no; no thresholds."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --generation: at most N tokens per answer.")
    ] = 16,
    generation_config: GenerationOptions = None,
    options: ComparisonOptions,
) -> None:
    """POPE: does a model see objects that are not in an image? With the share of "yes" and a fair threshold, or with
    generated answers.

    Example: decoding eval pope --data pope.json --model llava --chat --strategy greedy --strategy image-contrast
    """
    if generation and calibration is not None:
        raise OptionError("--calibration chooses thresholds of scores: leave it out, or --generation")
    if generation_config and not generation:
        raise OptionError("--generation-config: POPE reads scores and generates no text: give --generation")
    if generation and options.engine == "vllm":
        raise OptionError("--engine vllm: is given no images; leave it out")
    generation_options = options_from_text(generation_config or (), EVALUATIONS_REFUSE) if generation else None

    from decoding.evals.engine.prepared import prepared, report
    from decoding.evals.engine.runner import run
    from decoding.evals.engine.tuning import Part
    from decoding.evals.tasks.pope.data import calibration_split, load
    from decoding.evals.tasks.pope.generation import PopeGeneration
    from decoding.evals.tasks.pope.yes_no import Pope
    from decoding.models.loading import load_processor
    from decoding.models.media import check_images_can_be_read

    check_images_can_be_read()
    questions, left_out = load(data, images, options.skip_bad)
    if not generation:
        first, others = calibration_split(questions[: options.limit], calibration or CALIBRATION, options.seed)
    processor = load_processor(options.model)
    ready = prepared(options)
    if generation:
        answers = PopeGeneration(
            ready.model,
            processor,
            questions,
            prompt=prompt,
            chat=chat,
            max_new_tokens=max_new_tokens,
            left_out=left_out,
        )
        results = ready.run(answers, ready.configurations(answers.settings, generation_config=generation_options))
        report(results, answers.figures, options.json, options.holm)
        return
    pope = functools.partial(
        Pope, ready.model, processor, prompt=prompt, chat=chat, calibration=first, left_out=left_out
    )
    # The settings are those of the report, which the thresholds are part of; they come of these questions.
    configurations = ready.configurations(pope(others).settings, generation_config=None)
    choosing = pope(first)
    chosen = run(
        Part(choosing, choosing.documents(), "calibration"), configurations, everywhere=True, output=options.output,
        seed=options.seed, skip_bad=options.skip_bad,
    )  # fmt: skip
    assert chosen is not None
    thresholds = {entry["configuration"]: entry["metrics"]["threshold"]["value"] for entry in chosen["configurations"]}
    task = pope(others, thresholds=thresholds)
    results = ready.run(
        task, configurations, {"calibration": {"evaluated": chosen["counts"]["evaluated"], "thresholds": thresholds}}
    )
    report(results, task.figures, options.json, options.holm)
