"""What the commands share: options, reading prompts, writing results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn

from decoding.errors import InputError, OptionError
from decoding.loading import one_line

Model = Annotated[
    str, typer.Option(metavar="NAME", help="A built-in model (expert, amateur), a model folder, or a name on the hub.")
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cuda if there is one, else cpu.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, bfloat16, float16 or auto; by default auto on a GPU, float32 on the CPU."
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="auto, balanced, ...: split the model over all devices, as transformers' device_map."
    ),
]
TpPlan = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto: under torchrun, one model shared out among all processes."),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Read prompts in pieces of so many tokens: less memory for long ones."),
]
Seed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Seed of the random draws; each prompt begins with it anew.")
]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the results to files in this folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """``name=value`` strings of ``--set`` as a dictionary.

    Raises:
        OptionError: a string without ``=``, or a name given twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--set {pair!r}: accepted is name=value, for instance --set top_k=5")
        if name in settings:
            raise OptionError(f"--set {name}: given twice")
        settings[name] = value
    return settings


def prompts_of(given: Sequence[str] | None, file: Path | None = None) -> list[str]:
    """The prompts of ``--prompt``, those of a file (one a line), or standard input as one prompt.

    Raises:
        InputError: an empty prompt, none at all, or a file that cannot be read.
    """
    prompts = list(given or [])
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file}: cannot be read ({one_line(error)})") from error
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise InputError(f"--prompts {file}: holds no prompt; accepted is one prompt a line")
        prompts += lines
    if not prompts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("no prompt: give --prompt TEXT, or pipe a text in")
        try:
            prompts = [sys.stdin.read().rstrip("\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is no UTF-8 text ({one_line(error)})") from error
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("the prompt is empty: give at least one word")
    return prompts


def write_files(folder: Path | None, files: Mapping[str, str]) -> None:
    """Write texts to files of these names in ``folder``, which is made where it is missing; nothing where it is None.

    Raises:
        OptionError: the folder or a file cannot be written.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _write_whole(folder / name, text)
    except OSError as error:
        raise OptionError(f"--output {folder}: cannot be written ({one_line(error)})") from error


def _write_whole(file: Path, text: str) -> None:
    """Write a file or, where the disk is full, leave what is there as it is."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def writable(folder: Path | None) -> None:
    """Find out before the work whether its results can be written.

    Raises:
        OptionError: they cannot.
    """
    write_files(folder, {})


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that keeps every script readable."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def console() -> Console:
    """Where tables and headings go: at most 100 columns on a terminal, 80 and no colours in a pipe."""
    made = Console(highlight=False)
    made.width = min(made.width, 100) if made.is_terminal else 80
    return made


def progress(*columns: ProgressColumn, shown: bool = True) -> Progress:
    """A progress bar on standard error that vanishes when it is done; silent where that is no terminal.

    Args:
        columns: of the bar; by default rich's.
        shown: False is silence (on all ranks but one).
    """
    errors = Console(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not (shown and errors.is_terminal))
