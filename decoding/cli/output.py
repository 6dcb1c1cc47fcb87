"""Output of the commands: files, JSON, tables and progress bars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from decoding.errors import OptionError, one_line

__all__ = ["as_json", "console", "progress", "writable", "write_files"]


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
