"""Rows of data by name: a file, a folder, or a data set on the hub."""

from __future__ import annotations

from pathlib import Path

from decoding.errors import InputError, one_line
from decoding.files import expanded
from decoding.models.quiet import quiet
from decoding.rows.files import SUFFIXES, read_rows
from decoding.rows.row import Row, row_of

__all__ = ["rows_of"]

SPLITS = ("validation", "val", "test", "train")  # of a hub data set, the first of these that it has


def rows_of(source: str, configuration: str | None = None) -> list[Row]:
    """The rows of a file, of a folder that ``datasets`` can read, or of a data set on the hub.

    Args:
        source: a path, or a hub name, perhaps with a configuration: ``owner/name:configuration``.
        configuration: of a hub name that names none.

    Raises:
        InputError: there are no such data, or they cannot be read.
    """
    if not source.strip():
        raise InputError("the name of the data is empty: give a file, a folder or a hub name")
    path = expanded(source)
    if path.is_file():
        return read_rows(path)
    if path.is_dir():
        return _hub_rows(str(path))
    if path.suffix in SUFFIXES or source.startswith((".", "~", "/")) or source.count("/") > 1:
        raise InputError(f"{source}: there is no such file or folder")
    name, _, chosen = source.partition(":")
    return _hub_rows(name, chosen or configuration)


def _hub_rows(name: str, configuration: str | None = None) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name}: hub data needs datasets; pip install 'contrastive-decoding[eval]'") from error
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with quiet():
            loaded = datasets.load_dataset(name, configuration)
    except Exception as error:  # of any kind: there are no rows
        what = (
            "the data of this folder cannot be read" if Path(name).is_dir() else "no data of this name could be loaded"
        )
        raise InputError(f"{name}: {what} ({one_line(error.__cause__ or error)})") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    split = next((name for name in SPLITS if name in loaded), next(iter(loaded)))
    return [row_of(name, number, None, fields) for number, fields in enumerate(loaded[split], 1)]
