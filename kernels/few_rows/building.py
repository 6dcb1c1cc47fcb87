"""The kernel in C: compiled for this machine at first use, and kept in the cache folder for later processes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from decoding.files import cache_folder, remove_abandoned, workspace

__all__ = ["BuildError", "built", "why_not_compiled"]

SOURCE = Path(__file__).with_name("product.c")
COMPILERS = ("cc", "gcc", "clang")  # where the environment variable CC names none
OPTIONS = ("-O3", "-mcpu=native" if platform.machine() == "aarch64" else "-march=native", "-shared", "-fPIC")
PATIENCE = 60  # seconds for the compiler, which needs half of one

Kernel = Callable[[int, int, int | None, int, int, int, int, int], None]


class BuildError(RuntimeError):
    """The kernel cannot be compiled or loaded here; the message says why."""


def built() -> Kernel:
    """The compiled function: addresses of states, weight, bias or None, and output; rows, outputs, inputs; threads.

    Raises:
        BuildError: there is no compiler, or it or the loader failed; the same at every call of this process.
    """
    found = _built()
    if isinstance(found, str):
        raise BuildError(found)  # a new one: its traceback holds the caller's tensors
    return found


def why_not_compiled() -> str | None:
    """Say why the kernel cannot be compiled or loaded on this machine; None where it can. Compiles it at first use."""
    found = _built()
    return found if isinstance(found, str) else None


@functools.cache
def _built() -> Kernel | str:
    """The function, or the reason why there is none."""
    try:
        command = [*_compiler(), *OPTIONS]
        try:
            return _loaded(_kept(command))
        except OSError:  # the cache cannot be written, or nothing may be loaded from where it is
            return _loaded(_compiled(command, Path(_folder_of_process().name)))
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f"the compiled kernel can be kept or loaded nowhere: {error}"


def _compiler() -> list[str]:
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the kernel is compiled on Linux only, this is {sys.platform}")
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"no C compiler is found (CC names none, and {', '.join(COMPILERS)} are not on the PATH)")


def _kept(command: list[str]) -> Path:
    """The library in the cache folder."""
    library = cache_folder() / "kernels" / f"few-rows-{_identity(command)}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(library)
        with workspace(library) as work:
            compiled = _compiled(command, work)
            with compiled.open("rb") as file:
                os.fsync(file.fileno())  # what is cut short, after a power failure, ends a process that loads it
            compiled.replace(library)  # another process may be about the same
    return library


@functools.cache
def _folder_of_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="decoding-few-rows.")  # removed when the process ends


def _compiled(command: list[str], folder: Path) -> Path:
    library = folder / "few-rows.so"
    command = [*command, "-o", str(library), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C compiler does not run: {error}") from None
    if done.returncode or not library.is_file():
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BuildError(f"{command[0]} failed: {next((line for line in said if 'error' in line), said[-1])}")
    return library


def _loaded(library: Path) -> Kernel:
    function = ctypes.CDLL(str(library)).few_rows_product
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3 + [ctypes.c_int]
    function.restype = None
    kernel: Kernel = function
    return kernel


def _identity(command: list[str]) -> str:
    """Of what the library is made from and for: the source, the command, and this machine's instructions."""
    facts = [SOURCE.read_text(encoding="utf-8"), *command, platform.machine(), _instructions()]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _instructions() -> str:
    """The instruction sets that the kernel of the system names; folders may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.node()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.node())
