"""The command line's app and the commands that need a model only; ``decoding.evals.cli`` adds the others.

Help pages and wrong options import no model code: a command's module holds its options, and its function imports what
it works with.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from decoding.cli.doctor import doctor_command
from decoding.cli.export import export_command
from decoding.cli.fetch import fetch_command
from decoding.cli.generate import generate_command
from decoding.cli.induce import induce_command
from decoding.cli.play import play_command
from decoding.cli.serve import serve_command
from decoding.cli.usage import UsageError, empty_path, explain
from decoding.errors import DecodingError, one_line
from decoding.versions import __version__

__all__ = ["add_command", "app", "run"]

app = typer.Typer(
    name="decoding",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_command(group: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Add a command to a group; while it runs transformers is silent, and warnings of this library are notes."""

    @functools.wraps(command)
    def quietly(**options: Any) -> None:
        from decoding.models.quiet import quiet

        with quiet():  # which puts warnings back as they were
            warnings.showwarning = _note
            command(**options)

    group.command(name)(quietly)
    _command_line.cache_clear()


@functools.cache
def _command_line() -> Any:
    """Build the command line of all commands that are registered, which is kept until another is added."""
    return typer.main.get_command(app)


def _note(message: Warning | str, *_: object, **__: object) -> None:
    print(f"decoding: note: {' '.join(str(message).split())}", file=sys.stderr)


add_command(app, "generate", generate_command)
add_command(app, "export", export_command)
add_command(app, "play", play_command)
add_command(app, "serve", serve_command)
add_command(app, "induce", induce_command)
add_command(app, "doctor", doctor_command)
add_command(app, "fetch", fetch_command)


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


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0 where all went well; 1 after something unexpected (one line, or a traceback with ``DECODING_DEBUG=1``); 2
        after bad input (one line on standard error); 130 when interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if (problem := empty_path(_command_line(), words)) is not None:
            return _failed(problem, 2)
        code = _command_line()(words, prog_name="decoding", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except DecodingError as error:
        return _failed(str(error), 2)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help page is printed, or is the message
            print(error.format_message(), end="", file=sys.stderr)
            return 2
        return _failed(explain(error, _command_line(), words), 2)
    except Exception as error:
        if os.environ.get("DECODING_DEBUG") == "1":
            raise
        return _failed(f"{type(error).__name__}: {one_line(error)} (DECODING_DEBUG=1 shows where)", 1)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int) -> int:
    print(f"decoding: {' '.join(message.split())}", file=sys.stderr)
    return code
