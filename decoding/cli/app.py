"""The command line's app and the commands that need a model only. ``decoding.evals.cli`` adds the others."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from decoding.cli.doctor import doctor_command
from decoding.cli.export import export_command
from decoding.cli.generate import generate_command
from decoding.cli.induce import induce_command
from decoding.errors import DecodingError, one_line
from decoding.models.quiet import quiet
from decoding.versions import __version__

__all__ = ["app", "run"]

app = typer.Typer(
    name="decoding",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate_command)
app.command("export")(export_command)
app.command("induce")(induce_command)
app.command("doctor")(doctor_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"contrastive-decoding {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Contrastive search and the contrastive decoding family for Hugging Face models.

    Example: decoding generate --prompt "The old clockmaker"
    """


def _note(message: Warning | str, *_: object, **__: object) -> None:
    print(f"decoding: note: {' '.join(str(message).split())}", file=sys.stderr)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 went well; 1 something unexpected (one line, or a traceback with ``DECODING_DEBUG=1``); 2 bad input, one line on
    standard error; 130 interrupted.
    """
    try:
        with quiet():  # which puts warnings back as they were
            warnings.showwarning = _note
            app(arguments, prog_name="decoding")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except DecodingError as error:
        print(f"decoding: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("DECODING_DEBUG") == "1":
            raise
        print(f"decoding: {type(error).__name__}: {one_line(error)} (DECODING_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0
