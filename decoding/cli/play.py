"""``decoding play``: strategies side by side in a browser."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from decoding.cli.address import check_address, is_loopback
from decoding.cli.options import Placement, complete_model, expanded
from decoding.errors import OptionError

__all__ = ["play_command"]


@expanded
def play_command(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_model,
            help="A model that the page offers, the first at its start; repeatable; by default expert. A built-in one, "
            "a fetched one (decoding fetch), a model folder, a .gguf file, or a name on the hub.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Address to listen at. From other machines than this one, visitors name no models but those of "
            "--model.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Port to listen at; by default the first free one from 7860."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most new tokens of a text.")] = 512,
    max_prompt: Annotated[int, typer.Option(min=1, metavar="N", help="The most characters of a prompt.")] = 20_000,
    max_waiting: Annotated[int, typer.Option(min=0, metavar="N", help="The most texts that wait for another.")] = 8,
    placement: Placement,
) -> None:
    """Open a page in which two strategies continue the same text, and every token tells why it was chosen.

    The page streams, stops, and goes on from any candidate that is clicked; it shows each text as Python and as a
    command line. It is served to this machine alone, and fetches nothing from elsewhere.

    Example: decoding play --model expert
    """
    if importlib.util.find_spec("gradio") is None:
        raise OptionError("the page needs gradio, which is not installed: pip install 'contrastive-decoding[play]'")
    models = tuple(dict.fromkeys(model or ["expert"]))
    if not all(name.strip() for name in models):
        raise OptionError("--model: is empty; must be a name, a folder or a .gguf file")

    placement.check()
    check_address(host, port)

    from decoding.models.builtin import BUILT_IN
    from decoding.models.sources import source_and_file

    for name in models:
        if name not in BUILT_IN:
            source_and_file(name)  # a folder that is not there is told before anything is served

    from decoding.play.page import serve
    from decoding.play.playground import Playground
    from decoding.play.requests import Limits

    limits = Limits(max_prompt, max_new_tokens, max_waiting, only_named_models=not is_loopback(host))
    serve(Playground(models, limits, placement.load), host, port)
