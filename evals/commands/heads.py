"""``decoding heads``: the attention heads of a model that copy from the context."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Chat, Json, Model, Output, Placement, expanded, whole_numbers_of
from decoding.cli.output import as_json, console, progress, writable, write_files
from decoding.evals.heads.settings import Settings

__all__ = ["heads_command"]

DEFAULT = Settings()
FILE = "heads.json"


@expanded
def heads_command(
    *,
    model: Model = "expert",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The haystack: texts, one a line, or a table; by default the built-in stories."
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of a table that holds the text; by default text.")
    ] = None,
    needles: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Sentences to be found: a table with needle, question and perhaps answer, a part of the needle; by "
            "default invented facts.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Name the N heads with the highest scores, and mask them for control."),
    ] = DEFAULT.top,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Tokens of the contexts; by default 256,512,1024, or what the model can read."
        ),
    ] = None,
    depths: Annotated[
        int, typer.Option(min=1, metavar="N", help="Depths of the needle, evenly over the haystack.")
    ] = DEFAULT.depths,
    per_depth: Annotated[
        int, typer.Option(min=1, metavar="N", help="Needles of each length and depth.")
    ] = DEFAULT.needles,
    prompt: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What follows the haystack, with {question} in it; \\n is a new line."),
    ] = DEFAULT.prompt.replace("\n", "\\n"),
    chat: Chat = False,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Leave out what is copied without these heads, and without others.")
    ] = False,
    batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a forward pass.")
    ] = DEFAULT.batch_tokens,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the needles and of their places.")
    ] = DEFAULT.seed,
    placement: Placement,
    json: Json = False,
    output: Output = None,
) -> None:
    """Find a model's retrieval heads, which copy from the context; masked-heads (DeCoRe) takes them away.

    With --output, a file heads.json for --strategy masked-heads:heads=DIR/heads.json, or DIR/heads.json:20 for the 20
    best.

    Example: decoding heads --model expert --top 4 --output heads
    """
    began = time.time()
    numbers = None if lengths is None else whole_numbers_of("--lengths", lengths, "numbers of tokens such as 256,512")
    settings = Settings(
        top=top, lengths=numbers, depths=depths, needles=per_depth,
        prompt=prompt.replace("\\n", "\n"), chat=chat, seed=seed, batch_tokens=batch_tokens,
    )  # fmt: skip

    from decoding.evals.heads.needles import read_needles
    from decoding.evals.heads.search import retrieval_heads
    from decoding.evals.heads.tables import show
    from decoding.evals.isotropy.texts import TextFile
    from decoding.versions import versions

    texts = None if data is None else TextFile(data, field)
    if texts is not None:
        texts.count()  # every line is read before a model is loaded
    chosen = None if needles is None else read_needles(needles)
    writable(output)
    loaded, tokenizer = placement.load(model)
    with progress() as bar:
        task = bar.add_task(f"reading with {model}", total=None)
        found = retrieval_heads(
            loaded, tokenizer, texts, chosen, settings, name=model, control=not no_control,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    record = {**found.as_dict(), "versions": versions(), "seconds": round(time.time() - began, 3)}
    if output is not None:
        write_files(output, {FILE: as_json(record, indent=1) + "\n"})
    if json:
        print(as_json(record, indent=1))
        return
    show(console(), found, None if output is None else output / FILE)
