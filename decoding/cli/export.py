"""``decoding export``: a model folder that generates with a strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Device, DeviceMap, GenerationOptions, Model, Settings, settings_of, strategy_option
from decoding.strategies.generation_options import options_from_text
from decoding.strategies.registry import exportable_strategies, parse_strategy

__all__ = ["export_command"]


def export_command(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    model: Model = "expert",
    strategy: Annotated[str, strategy_option(exportable_strategies())] = "contrastive-search",
    set_: Settings = None,
    generation_config: GenerationOptions = None,
    link: Annotated[
        str | None, typer.Option(metavar="hard|sym", help="Link the model's files; by default they are copied.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder and everything in it.")] = False,
    device: Device = None,
    device_map: DeviceMap = None,
) -> None:
    """Write a model folder whose own generate() is a strategy, for transformers, pipelines, servers and the hub.

    Example: decoding export --model PATH --set top_k=5 --output DIR
    """
    spec = parse_strategy(strategy, settings_of(set_ or []))
    options = options_from_text(generation_config or ())

    from decoding.exporting import export

    folder = export(
        model, spec.strategy, output, link=link, force=force, device=device, device_map=device_map,
        generation_config=options,
    )  # fmt: skip
    print(f"{folder}: {spec.label}")
    print(f"transformers serve {folder} --trust-remote-code")
