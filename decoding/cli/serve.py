"""``decoding serve``: an OpenAI server whose answers are made by strategies."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from decoding.cli.address import check_address
from decoding.cli.options import Model, complete_model, complete_strategy, known_strategies
from decoding.errors import OptionError, nearest
from decoding.files import expanded
from decoding.strategies.registry import parse_strategy

__all__ = ["layers_of_option", "serve_command"]

ENGINES = ("vllm", "transformers")
NO_LAYERS = "none"


def _known_engine(given: str) -> str:
    if given not in ENGINES:
        raise OptionError(f"--engine {given!r}{nearest(given, ENGINES)}")
    return given


def layers_of_option(given: str | None) -> list[int | float] | str | None:
    """The layers of ``--layers``, before anything is loaded.

    Raises:
        OptionError: neither numbers with commas between, nor a word that is known.
    """
    if given is None or given == "auto":
        return given
    if given == NO_LAYERS:
        return []
    try:
        return [float(layer) if "." in layer else int(layer) for layer in given.split(",")]
    except ValueError:
        raise OptionError(
            f"--layers {given!r}: expected numbers or shares of the depth with commas between, such as 8,10,0.5; auto, "
            f"or {NO_LAYERS}"
        ) from None


def serve_command(
    model: Model = "expert",
    engine: Annotated[
        str, typer.Option(metavar="NAME", callback=_known_engine, help=f"One of {', '.join(ENGINES)}.")
    ] = "vllm",
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:PARAMETER=VALUE,...",
            callback=known_strategies,
            autocompletion=complete_strategy,
            help="Of requests that name none; by default that of an exported folder, or the model itself.",
        ),
    ] = None,
    amateur: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_model,
            help="With vllm, the amateur that requests may contrast with.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="With vllm, lower layers that requests may read, as numbers or shares of the depth; auto, none; by "
            "default those of the strategy, or what DoLa chooses from.",
        ),
    ] = None,
    second_prompts: Annotated[
        bool,
        typer.Option("--second-prompts", help="With vllm, requests may have a second prompt, as of guidance."),
    ] = False,
    candidates: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="With vllm, the most candidates of a request's contrastive search."),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With transformers, the folder to export the strategy to.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen at.")] = 8000,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARGUMENTS", help="Arguments of the engine's own server.", show_default=False),
    ] = None,
) -> None:
    """Serve a model to many clients over OpenAI's API, with strategies.

    With vllm, each request may name a strategy of its own, and all of them are answered in one batch. With
    transformers, any strategy is served, one request after the other. Everything after -- goes to the engine's own
    server. See docs/vllm.md and docs/serving.md.

    Example: decoding serve --model PATH --amateur PATH --strategy dola:layers=high,alpha=0.2 -- --max-model-len 4096
    """
    more = list(arguments or ())
    if more and not more[0].startswith("-"):
        raise OptionError(
            f"unexpected argument {' '.join(more)!r}: --model names the model; after -- options are expected"
        )
    if engine == "transformers":
        of_vllm = {
            "--amateur": amateur, "--layers": layers, "--second-prompts": second_prompts, "--candidates": candidates,
        }  # fmt: skip
        for option, value in of_vllm.items():
            if value:
                raise OptionError(f"{option} is an option of --engine vllm; with transformers the strategy has it")
        _serve_with_transformers(model, strategy, output, host, port, more)
        return
    if output is not None:
        raise OptionError("--output is an option of --engine transformers; vLLM reads the model's own folder")
    numbers = layers_of_option(layers)

    from decoding.serving.vllm.engine import engine_of, require_vllm
    from decoding.serving.vllm.server import arguments_of, run_server, usage

    require_vllm()
    trusts = "--trust-remote-code" in more
    checked = engine_of(
        model, amateur=amateur, layers=numbers, strategy=strategy, second_prompts=second_prompts,
        candidates=candidates, trust_remote_code=trusts,
    )  # fmt: skip
    words = arguments_of(checked, model, host, port, more)
    print(usage(checked, model, host, port), flush=True)
    run_server(words)


def _serve_with_transformers(
    model: str, strategy: str | None, output: Path | None, host: str, port: int, more: Sequence[str]
) -> None:
    """Run ``transformers serve`` on a folder that was exported, before or now.

    Raises:
        OptionError: the server's packages are missing, there is no folder to serve, or it cannot listen there.
    """
    folder = expanded(model)
    if strategy is None and not _is_exported(folder):
        raise OptionError(f"--model {model}: is no exported folder; give --strategy and --output, the folder to write")
    if (strategy is None) is not (output is None):
        raise OptionError(
            "--engine transformers: give both --strategy and --output, the folder to export to, or neither"
        )
    spec = None if strategy is None else parse_strategy(strategy)
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise OptionError(
                f"--engine transformers needs {package}, which is not installed: pip install "
                "'contrastive-decoding[serve]'"
            )
    check_address(host, port)  # before a folder is written
    if spec is not None and output is not None:
        from decoding.exporting import export

        folder = export(model, spec.strategy, output)
    settings = {"max_new_tokens": 64, "decoding_strategy": {"name": "contrastive-search"}}
    body = {
        "model": str(folder), "messages": [{"role": "user", "content": "The old clockmaker"}],
        "generation_config": json.dumps(settings),
    }  # fmt: skip
    print("Requests may name another strategy, or other parameters, in generation_config:")
    print(
        f"curl http://{host}:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        flush=True,
    )

    from transformers.cli.transformers import main

    words = ["serve", str(folder), "--trust-remote-code", "--host", host, "--port", str(port), *more]
    with _command_line(["transformers", *words]):
        main()


def _is_exported(folder: Path) -> bool:
    """True of a folder that ``decoding export`` wrote."""
    return (folder / "custom_generate" / "generate.py").is_file()


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Replace the process's arguments for the time of the block: transformers reads its own from there alone."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
