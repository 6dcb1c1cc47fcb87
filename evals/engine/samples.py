"""The samples file of an evaluation: one line a document and configuration, append-only, intact after any crash."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from decoding.errors import DecodingWarning, InputError, OptionError, one_line
from decoding.files import lock

__all__ = ["Sample", "SampleFile"]

Sample = dict[str, Any]
"""The content of a line: ``task``, ``document``, ``configuration``, and ``metrics`` or ``skipped`` among the rest."""

Key = tuple[str, str]  # document, configuration


class SampleFile:
    """The samples of a task in one folder, or in memory alone.

    Every rank of a run reads all sample files of the folder and appends to its own file, under an exclusive lock.

    Args:
        folder: of the files, made where it is missing; None keeps samples in memory.
        task: name of the task.
        rank: of this process.
        world: number of processes.
        wait: wait until another process has closed the file, instead of refusing it.
        reads_only: keep new samples in memory, because another process writes the same ones.

    Raises:
        OptionError: the folder cannot be written, or another process is writing the same file.
        InputError: a file holds a line that is no sample.
    """

    def __init__(
        self,
        folder: Path | None,
        task: str,
        rank: int = 0,
        world: int = 1,
        wait: bool = False,
        reads_only: bool = False,
    ) -> None:
        self.folder = folder
        self.task = task
        self.known: dict[Key, Sample] = {}
        self._file: int | None = None
        if folder is None:
            return
        if reads_only:
            self.read()
            return
        self.path = folder / (f"samples_{task}.jsonl" if world == 1 else f"samples_{task}.rank{rank}of{world}.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OptionError(f"--output {folder}: cannot be written ({one_line(error)})") from error
        try:
            _lock(self._file, self.path, wait)
            _repair(self._file, self.path)
            self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> None:
        """Read all sample files of the task, as they are now."""
        if self.folder is None:
            return
        for path in _files(self.folder, self.task):
            for sample in _samples(path):
                self.known.setdefault(_key(sample), sample)

    def __contains__(self, key: Key) -> bool:
        return key in self.known

    def append(self, samples: Iterable[Sample]) -> None:
        """Write samples that are not known yet, in one write, and sync them to the disk.

        Raises:
            OptionError: they cannot be written; the file is as it was before.
            InputError: a sample with a number that is not finite.
        """
        new = [sample for sample in samples if _key(sample) not in self.known]
        text = "".join(_line(sample) for sample in new)
        if self._file is not None and new:
            size = os.fstat(self._file).st_size
            try:
                _write(self._file, text.encode())
            except OSError as error:
                os.ftruncate(self._file, size)
                raise OptionError(
                    f"{self.path}: cannot be written ({one_line(error)}); the {len(self.known)} samples before are "
                    "safe: free disk space and run the same command again to go on"
                ) from error
        for sample in new:
            self.known[_key(sample)] = sample

    def merge(self, order: Callable[[Sample], Any]) -> None:
        """Move the samples of all ranks into this file, sorted by ``order``, and remove the ranks' files."""
        if self.folder is None:
            return
        in_this_file = {_key(sample) for sample in _samples(self.path)}
        held: dict[Path, int] = {}
        try:
            for path in _files(self.folder, self.task)[1:]:
                try:
                    held[path] = os.open(path, os.O_RDWR)
                except FileNotFoundError:  # it was empty, and its rank has just removed it
                    continue
                _lock(held[path], path, wait=True)
            self.read()
            known, self.known = self.known, {key: sample for key, sample in self.known.items() if key in in_this_file}
            self.append(sorted(known.values(), key=order))
            for path in held:
                path.unlink(missing_ok=True)
        finally:
            for file in held.values():
                os.close(file)

    def remove(self) -> None:
        """Remove the file if it is empty; a rank that had nothing to do leaves none."""
        if self._file is not None and os.fstat(self._file).st_size == 0:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, so that other processes can write it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _files(folder: Path, task: str) -> list[Path]:
    """The sample files of a task in a folder: the whole one first, even if it does not exist, then those of ranks."""
    return [folder / f"samples_{task}.jsonl", *sorted(folder.glob(f"samples_{task}.rank*of*.jsonl"))]


def _key(sample: Sample) -> Key:
    return sample["document"], sample["configuration"]


def _samples(path: Path) -> Iterator[Sample]:
    """The samples of a file; a last line that somebody is still writing is left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:  # not there yet, or merged by another rank since it was listed
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    for number, line in enumerate(lines, 1):
        sample = _sample(line)
        if sample is None:
            raise InputError(f"{path}, line {number}: is no sample of an evaluation; remove the line to go on")
        yield sample


def _line(sample: Sample) -> str:
    try:
        return json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(f"document {sample['document']}: its record holds a number that is not finite") from error


def _sample(line: bytes) -> Sample | None:
    try:
        sample = json.loads(line)
    except ValueError:
        return None
    keyed = isinstance(sample, dict) and all(
        isinstance(sample.get(name), str) for name in ("task", "document", "configuration")
    )
    return sample if keyed and ("skipped" in sample or isinstance(sample.get("metrics"), dict)) else None


def _repair(file: int, path: Path) -> None:
    """Remove a last line that a crash left incomplete."""
    with open(path, "rb") as reading:
        content = reading.read()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    os.ftruncate(file, end)
    os.fsync(file)
    warnings.warn(
        f"{path}: its last line was cut short ({len(content) - end} bytes without an end); it has been removed and "
        "its document is evaluated again",
        DecodingWarning,
        stacklevel=2,
    )


def _lock(file: int, path: Path, wait: bool) -> None:
    """Lock the file until it is closed, which the end of the process does too."""
    try:
        lock(file, wait)
    except BlockingIOError as error:
        raise OptionError(f"{path}: another run is writing it; wait for its end or give another --output") from error


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
    os.fsync(file)
