"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "cache_folder",
    "expanded",
    "lock",
    "locked",
    "remove_abandoned",
    "share_weights",
    "workspace",
    "write_whole",
]

ABANDONED = 86_400  # seconds after which a workspace whose lock tells nothing counts as left by a killed process


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in place of ``~``; as it is where no such user is known, as shells do."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cache_folder() -> Path:
    """Return the folder of what this library fetches and compiles: ``DECODING_CACHE``, or one in the user's cache."""
    if chosen := os.environ.get("DECODING_CACHE"):
        return expanded(chosen)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "contrastive-decoding"


def write_whole(file: Path, text: str) -> None:
    """Write a text to a file; where that fails, on a full disk for instance, the file is what it was before.

    Raises:
        OSError: the text cannot be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside a target for the time of the block, locked so that no other process removes it.

    Raises:
        OSError: the folder cannot be made.
    """
    prefix = f".{target.name}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with locked(folder, wait=True):
            yield folder


def remove_abandoned(target: Path) -> None:
    """Remove the workspaces beside a target whose processes are gone; what cannot be removed stays."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
        try:
            with locked(folder, wait=False) as alone:
                # An empty one may have been made just now, and not be locked yet.
                left = alone and any(folder.iterdir())
                if left or time.time() - folder.stat().st_mtime > ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives, it belongs to another user, or it has gone meanwhile
            continue


@contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Lock a folder until the end of the block or of the process; False where there are no locks.

    Raises:
        BlockingIOError: another process has it locked, and ``wait`` is False.
        OSError: the folder cannot be opened.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield lock(descriptor, wait)
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file or folder until it is closed, which the end of the process does too; False without locks.

    Raises:
        BlockingIOError: another process has it locked, and ``wait`` is False.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        return False
    return True


def share_weights(folder: Path, like: str) -> None:
    """Give the .safetensors files of a folder the mode of another file in it, which the umask decided.

    safetensors makes them readable by their owner alone, whatever the umask.
    """
    mode = (folder / like).stat().st_mode & 0o777
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)
