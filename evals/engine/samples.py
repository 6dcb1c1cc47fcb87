"""The samples file of an evaluation: one line a document and configuration, append-only, whole after any crash."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from decoding.errors import DecodingWarning, InputError, OptionError, one_line

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Sample", "SampleFile"]

Sample = dict[str, Any]
"""What one line holds: ``task``, ``document``, ``configuration``, and ``metrics`` or ``skipped`` among the rest."""

Key = tuple[str, str]  # document, configuration


class SampleFile:
    """The samples of a task in one folder, or in memory alone.

    Every rank of a run reads all sample files of the folder and appends to one of its own, which it holds alone.

    Args:
        folder: where the files lie, made where it is missing; None keeps samples in memory.
        task: whose samples.
        rank: of this process.
        world: how many processes there are.
        wait: until another process is done with the file, instead of refusing it.
        reads_only: another process writes what this one does as well; keep it in memory here.

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
        """Take in what every sample file of the task holds by now."""
        if self.folder is None:
            return
        for path in _files(self.folder, self.task):
            for sample in _samples(path):
                self.known.setdefault(_key(sample), sample)

    def __contains__(self, key: Key) -> bool:
        return key in self.known

    def append(self, samples: Iterable[Sample]) -> None:
        """Write samples that are not known yet, in one write, and wait until they are on the disk.

        Raises:
            OptionError: they cannot be written; the file is as it was before.
            InputError: a sample with a number that is not finite.
        """
        new = [each for each in samples if _key(each) not in self.known]
        text = "".join(_line(each) for each in new)
        if self._file is not None and new:
            size = os.fstat(self._file).st_size
            try:
                _write(self._file, text.encode())
            except OSError as error:
                os.ftruncate(self._file, size)
                raise OptionError(
                    f"{self.path}: cannot be written ({one_line(error)}); the {len(self.known)} samples before are "
                    "safe: make room and run the same command again to go on"
                ) from error
        for each in new:
            self.known[_key(each)] = each

    def merge(self, order: Callable[[Sample], Any]) -> None:
        """Move the samples of all ranks into this file, sorted by ``order``, and remove the ranks' files."""
        if self.folder is None:
            return
        here = {_key(each) for each in _samples(self.path)}
        held: dict[Path, int] = {}
        try:
            for path in _files(self.folder, self.task)[1:]:
                try:
                    held[path] = os.open(path, os.O_RDWR)
                except FileNotFoundError:  # left empty by its rank, which has just taken it away
                    continue
                _lock(held[path], path, wait=True)
            self.read()
            known, self.known = self.known, {key: each for key, each in self.known.items() if key in here}
            self.append(sorted(known.values(), key=order))
            for path in held:
                path.unlink(missing_ok=True)
        finally:
            for file in held.values():
                os.close(file)

    def remove(self) -> None:
        """Take the file away where it holds nothing; a rank that had nothing to do leaves none."""
        if self._file is not None and os.fstat(self._file).st_size == 0:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _files(folder: Path, task: str) -> list[Path]:
    """The sample files of a task in a folder: the whole one first, whether or not it is there, then those of ranks."""
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
    """Cut off a last line that a crash left unfinished."""
    with open(path, "rb") as reading:
        content = reading.read()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    os.ftruncate(file, end)
    os.fsync(file)
    warnings.warn(
        f"{path}: its last line was cut short ({len(content) - end} bytes without an end); it has been taken out and "
        "its document is evaluated anew",
        DecodingWarning,
        stacklevel=2,
    )


def _lock(file: int, path: Path, wait: bool) -> None:
    """Hold the file alone until it is closed, which the end of the process does too."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OptionError(f"{path}: another run is writing it; wait for its end or give another --output") from error
    except OSError:
        pass  # some network file systems have no locks


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
    os.fsync(file)
