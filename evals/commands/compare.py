"""``decoding compare``: strategies on the same prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import (
    Chat,
    GenerationOptions,
    Json,
    MaxNewTokens,
    Model,
    Output,
    ParallelPlacement,
    PrefillChunk,
    Seed,
    complete_strategy,
    expanded,
    known_strategies,
    placed_prompts_of,
)
from decoding.cli.output import as_json, check_file, console, writable, write_file, write_files
from decoding.errors import OptionError
from decoding.strategies.generation_options import check_apply, options_from_text
from decoding.strategies.registry import NOT_EXPLAINED, parse_strategy

__all__ = ["compare_command"]

DEFAULT_STRATEGIES = ("greedy", "sampling", "contrastive-search")


@expanded
def compare_command(
    *,
    model: Model = "expert",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PARAMETER=VALUE,...",
            callback=known_strategies,
            autocompletion=complete_strategy,
            help="A strategy; repeatable; by default greedy, sampling and contrastive-search.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A text to continue; repeatable; by default standard input."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, one a line, or the column prompt of a table.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    chat: Chat = False,
    generation_config: GenerationOptions = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show where strategies left greedy search's path, and why."),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an HTML file in which each token tells why it was chosen."),
    ] = None,
    prefill_chunk: PrefillChunk = None,
    seed: Seed = 0,
    placement: ParallelPlacement,
    json: Json = False,
    output: Output = None,
) -> None:
    """Continue the same prompts with several strategies; show the texts, how much they repeat and what they cost.

    Strategies are what they are called: penalties and the like of the model's generation_config.json are off, unless
    --generation-config turns them on for all.

    Example: decoding compare --prompt "The old clockmaker" --strategy greedy --strategy contrastive-search:top_k=5

    Why each token was chosen: --explain in a table, --html FILE in a page that a browser opens.
    """
    specs = [parse_strategy(spec) for spec in strategy or DEFAULT_STRATEGIES]
    if explain and all(spec.name in NOT_EXPLAINED for spec in specs):
        raise OptionError("--explain explains the choice of each token, and beam search makes none: add a strategy")
    options = options_from_text(generation_config or ())
    check_apply(options, specs)
    places, texts = zip(*placed_prompts_of(prompt, prompts), strict=True)
    writable(output)
    if html is not None:
        check_file("--html", html)

    from decoding.capabilities.chunked_prefill import enable_chunked_prefill
    from decoding.evals.compare.compare import compare, show_figures, show_texts
    from decoding.evals.engine.configurations import check_distinct
    from decoding.models.devices import is_main_process

    check_distinct(specs)
    loaded, tokenizer = placement.load(model)
    enable_chunked_prefill(loaded, prefill_chunk, padded=False)
    result = compare(
        model, loaded, tokenizer, specs, texts, max_new_tokens=max_new_tokens, seed=seed,
        explain=explain or html is not None, chat=chat, generation_config=options, places=places,
    )  # fmt: skip
    if not is_main_process(loaded):
        return
    if html is not None:
        write_file("--html", html, result.as_html())
    # compare.json and --json have the explanations of --html too.
    shown = result if explain else replace(result, explanations={})
    write_files(
        output,
        {"compare.json": as_json(result.as_dict(), indent=2) + "\n", "compare.md": shown.as_markdown()},
    )
    if json:
        print(as_json(result.as_dict(), indent=2))
        return
    out = console()
    show_texts(out, shown)
    show_figures(out, result)
    if html is not None:
        out.print(f"written: {html}", markup=False, highlight=False, soft_wrap=True)
