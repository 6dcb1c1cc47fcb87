"""Runs one Python program in another process, isolated by the kernel, and returns whether it came to its end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decoding.errors import OptionError

__all__ = ["Isolation", "Limits", "Outcome", "isolation", "run_program"]

INSIDE = Path(__file__).resolve().with_name("inside.py")
GRACE = 5.0  # seconds that the supervisor has for starting up and for killing what is left


@dataclass(frozen=True)
class Limits:
    """The resources of a program.

    Attributes:
        seconds: of wall time, and of processor time a process.
        memory: bytes of address space a process.
        file_size: bytes of a file.
        processes: of its user at a time, threads included; no limit for root that cannot become another user.
        open_files: at a time.
    """

    seconds: float = 5.0
    memory: int = 512 * 2**20
    file_size: int = 2**20
    processes: int = 4
    open_files: int = 32


@dataclass(frozen=True)
class Isolation:
    """The kernel's means of isolation that were in force.

    Attributes:
        landlock: version of its interface, 0 for none: keeps writing inside the program's folder; from 4 on it also
            forbids TCP, from 6 on signals to processes outside.
        namespaces: own process, network, IPC and host-name namespaces: no network at all, no other process in sight,
            and every descendant ends with the program. Users other than root need a user namespace for them, which
            some systems and most containers do not allow.
        other_user: the program ran as nobody, where the evaluation runs as root.
        seccomp: no sockets can be made.
        missing: acts that none of these prevented.
    """

    landlock: int
    namespaces: bool
    other_user: bool
    seccomp: bool
    missing: list[str]


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
        passed: it ran to its last line.
        reason: "passed", or why not, in one line.
        isolation: the means that were in force.
    """

    passed: bool
    reason: str
    isolation: Isolation | None = None


def run_program(
    program: str, limits: Limits | None = None, *, weak: bool = False, kernel: bool = True, hooks: bool = True
) -> Outcome:
    """Run a program in a new process and an empty folder; it passes if it reaches its end.

    There are two lines of defence. The kernel's: namespaces, Landlock, seccomp, another user, resource limits. The
    interpreter's: audit hooks that refuse sockets, other processes, ctypes, and writing outside the folder; a program
    that means to can get around these. It may read what the user (nobody, for root) may read; without a network it can
    send nothing.

    Args:
        program: Python source.
        limits: its resources.
        weak: run it also where the kernel cannot prevent all that it must not do (:attr:`Isolation.missing`).
        kernel: False leaves the kernel's line out (for tests of the other one).
        hooks: False leaves the interpreter's line out (for the same purpose).

    Raises:
        OptionError: the kernel cannot isolate it and ``weak`` is False; or this is not Linux.

    Example:
        >>> run_program("assert 1 + 1 == 2").passed
        True
    """
    if not sys.platform.startswith("linux"):
        raise OptionError(f"running programs of others needs Linux; this is {sys.platform}")
    limits = limits or Limits()
    word = secrets.token_hex(16)  # a secret: a program that only exits with 0 does not pass
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        job = {
            "program": program, "word": word, "folder": folder, "kernel": kernel, "hooks": hooks, "weak": weak,
            **asdict(limits),
        }  # fmt: skip
        output = _supervised(job, folder, limits.seconds + GRACE)
    return _outcome(output, word)


def isolation(*, weak: bool = False) -> Isolation:
    """The kernel's means of isolation that are in force here, found by running an empty program.

    Raises:
        OptionError: as :func:`run_program`, or programs cannot be run at all.
    """
    outcome = run_program("", weak=weak)
    if outcome.isolation is None or not outcome.passed:
        raise OptionError(f"programs cannot be run here: an empty one ended with: {outcome.reason}")
    return outcome.isolation


def _supervised(job: dict[str, Any], folder: str, seconds: float) -> bytes:
    """Run the supervisor; return the content of the pipe that it and the program write to."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # The environment is not passed on: it may hold secrets. One thread: each counts as a process.
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(INSIDE), str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            pass_fds=(writing,),
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(job).encode(), timeout=seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass  # the supervisor hangs, or has ended before it had read its job
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        return _pending(reading)
    finally:
        os.close(reading)
        os.close(writing)


def _pending(pipe: int) -> bytes:
    content = b""
    while len(content) < 2**20:
        try:
            piece = os.read(pipe, 2**16)
        except BlockingIOError:
            break
        if not piece:
            break
        content += piece
    return content


def _outcome(output: bytes, word: str) -> Outcome:
    """Read the lines that begin with the secret word: the supervisor's. All others are the program's."""
    reports: dict[str, str] = {}
    for line in output.decode(errors="replace").splitlines():
        if line.startswith(word):
            kind, _, rest = line.removeprefix(word).strip().partition(" ")
            reports.setdefault(kind, rest)
    if "isolation" not in reports:
        return Outcome(False, f"could not be started ({reports.get('error', 'its supervisor reported nothing')})")
    means = Isolation(**json.loads(reports["isolation"]))
    if "refused" in reports:
        raise OptionError(
            f"the kernel cannot keep programs from {reports['refused']}; use a machine that can, or --weak-isolation, "
            "which leaves that to audit hooks"
        )
    for kind in ("timeout", "failed", "ended"):
        if kind in reports:
            return Outcome(False, reports[kind], means)
    if "passed" in reports:
        return Outcome(True, "passed", means)
    return Outcome(False, "ended before its last line (exit code 0)", means)
