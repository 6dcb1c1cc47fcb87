"""``decoding export``: a model folder that generates with a strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.options import Device, DeviceMap, Model, settings_of
from decoding.exporting import LINKS, export
from decoding.strategies.registry import exportable_strategies, parse_strategy

__all__ = ["export_command"]


def export_command(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    model: Model = "expert",
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME", help=f"One of {', '.join(exportable_strategies())}; parameters may follow a colon."
        ),
    ] = "contrastive-search",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the strategy; repeatable.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="KIND", help=f"Link the model's files ({' or '.join(LINKS)}); default: copy."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder, with all that it holds.")] = False,
    device: Device = None,
    device_map: DeviceMap = None,
) -> None:
    """Write a model folder whose own generate() is a strategy, for transformers, pipelines, servers and the hub.

    Example: decoding export --model PATH --set top_k=5 --output DIR
    """
    choice = parse_strategy(strategy, settings_of(set_ or []))
    folder = export(model, choice.strategy, output, link=link, force=force, device=device, device_map=device_map)
    print(f"{folder}: {choice.label}")
    print(f"transformers serve {folder} --trust-remote-code")
