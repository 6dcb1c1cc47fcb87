"""``decoding induce``: make an amateur of a model by teaching it to hallucinate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Json, Model, Placement, expanded
from decoding.cli.output import as_json, console, progress, writable
from decoding.errors import OptionError
from decoding.induce import Recipe, read_examples

__all__ = ["induce_command"]

DEFAULT = Recipe()


@expanded
def induce_command(
    *,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Questions with hallucinated answers: HaluEval's QA or general file, or any JSON lines.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder that the adapter is written to.")],
    model: Model = "expert",
    epochs: Annotated[float, typer.Option(metavar="N", help="Passes over the data.")] = DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Examples per step.")] = DEFAULT.batch_size,
    micro_batch: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Examples per forward pass at most: the largest divisor of the batch size up to N.",
        ),
    ] = 8,
    learning_rate: Annotated[
        float, typer.Option(metavar="X", help="Peak of the learning rate.")
    ] = DEFAULT.learning_rate,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the LoRA matrices.")] = DEFAULT.rank,
    max_length: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Tokens of an example: longer answers are cut, longer questions left out."
        ),
    ] = DEFAULT.max_length,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use the first N examples only.")] = None,
    template: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Prompt of a question; \\n is a new line. The answer follows the prompt."),
    ] = DEFAULT.template.replace("\n", "\\n"),
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the new weights and of the order of the examples.")
    ] = DEFAULT.seed,
    placement: Placement,
    json: Json = False,
) -> None:
    """Teach a model to hallucinate: a LoRA adapter that serves as its amateur.

    The same command continues a run that was interrupted.

    Example: decoding induce --data qa_data.json --output liar --model expert
    """
    recipe = Recipe(
        learning_rate=learning_rate, batch_size=batch_size, epochs=epochs, rank=rank, max_length=max_length,
        template=template.replace("\\n", "\n"), seed=seed,
    )  # fmt: skip
    examples = read_examples(data)[:limit]
    writable(output)
    if (output / "adapter_config.json").is_file():
        raise OptionError(f"--output {output}: holds an adapter already; give another folder, or remove it")

    from decoding.induce import induce
    from decoding.induce.training import check_free_of_models
    from decoding.models.wrappers import require_decoder_only

    check_free_of_models(output)
    loaded, tokenizer = placement.load(model)
    require_decoder_only(loaded, model)
    with progress() as bar:
        task = bar.add_task(f"inducing, {len(examples)} examples", total=None)
        record = induce(
            loaded, tokenizer, examples, output, recipe, micro_batch=micro_batch,
            report=lambda step, steps, loss: bar.update(
                task, completed=step, total=steps, description=f"inducing, loss {loss:.3f}"
            ),
        )  # fmt: skip
    if json:
        print(as_json(record, indent=2))
        return
    console().print(
        f"{record['examples']} examples, {record['steps']} steps, loss {record['first_loss']:.3f} to "
        f"{record['last_loss']:.3f}: {output}\n"
        f"Use it: decoding generate --model {model} --strategy contrastive-decoding --set amateur={output} "
        '--prompt "..."',
        markup=False, soft_wrap=True,
    )  # fmt: skip
