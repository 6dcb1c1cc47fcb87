"""Output of the commands: files, JSON, tables and progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from decoding.errors import OptionError, one_line
from decoding.files import write_whole

__all__ = ["as_json", "check_file", "console", "progress", "writable", "write_file", "write_files"]


def write_files(folder: Path | None, files: Mapping[str, str]) -> None:
    """Write texts to files of these names in ``folder``, which is made where it is missing; None writes nothing.

    Raises:
        OptionError: the folder or a file cannot be written.
    """
    if folder is None:
        return
    with _telling("--output", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text)


def writable(folder: Path | None) -> None:
    """Make the folder of the results before the work begins.

    Raises:
        OptionError: it cannot be made.
    """
    write_files(folder, {})


def check_file(option: str, file: Path) -> None:
    """Find out before the work begins that a file can be written.

    Raises:
        OptionError: it cannot.
    """
    if file.is_dir():
        raise OptionError(f"{option} {file}: is a folder; must be the name of a file")
    with _telling(option, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        existed = file.exists()
        with file.open("a"):
            pass
        if not existed:
            file.unlink()


def write_file(option: str, file: Path, text: str) -> None:
    """Write a text to a file.

    Raises:
        OptionError: it cannot be written.
    """
    with _telling(option, file):
        write_whole(file, text)


@contextmanager
def _telling(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"{option} {path}: cannot be written ({one_line(error)})") from error


def as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON in which letters of every script are letters, not escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def console() -> Console:
    """Return what prints tables and headings: at most 100 columns on a terminal; in a pipe 80, without colours."""
    out = Console(highlight=False)
    out.width = min(out.width, 100) if out.is_terminal else 80
    return out


def progress(*columns: ProgressColumn, shown: bool = True) -> Progress:
    """Return a progress bar on standard error, which vanishes when it is done and needs a terminal to show.

    Args:
        columns: of the bar; by default those of rich.
        shown: False shows nothing (all ranks but one).
    """
    errors = Console(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not (shown and errors.is_terminal))
