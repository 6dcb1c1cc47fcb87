"""Runs one Python program in a process of its own, isolated by the kernel, and says whether it came to its end."""

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
    """What a program may use.

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
    """Which means of the kernel were in force.

    Attributes:
        landlock: version of its interface, 0 for none: keeps writing inside the program's folder; from 4 on it also
            forbids TCP, from 6 on signals to processes outside.
        namespaces: own process, network, IPC and host-name namespaces: no network at all, no other process in sight,
            and every descendant ends with the program. For users other than root they need a user namespace, which
            some systems and most containers do not allow.
        other_user: the program ran as nobody, where the evaluation runs as root.
        seccomp: no sockets can be made.
        missing: what none of these kept the program from.
    """

    landlock: int
    namespaces: bool
    other_user: bool
    seccomp: bool
    missing: list[str]


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: it ran to its last line.
        reason: "passed", or why not, in one line.
        isolation: what was in force.
    """

    passed: bool
    reason: str
    isolation: Isolation | None = None


def run_program(
    program: str, limits: Limits | None = None, *, weak: bool = False, kernel: bool = True, hooks: bool = True
) -> Outcome:
    """Run a program in a process and an empty folder of its own; it passes if it reaches its end.

    Two lines of defence. The kernel's: namespaces, Landlock, seccomp, another user, resource limits. The interpreter's:
    audit hooks that refuse sockets, other processes, ctypes, and writing outside the folder; a program set on it can
    get around these. It may read whatever the user (nobody, for root) may read; without a network it can tell no one.

    Args:
        program: Python source.
        limits: what it may use.
        weak: run it also where the kernel cannot keep it from all that it must not do (:attr:`Isolation.missing`).
        kernel: False leaves the kernel's line out (for tests of the other one).
        hooks: False leaves the interpreter's line out (likewise).

    Raises:
        OptionError: the kernel cannot isolate it and ``weak`` is False; or this is not Linux.

    Example:
        >>> run_program("assert 1 + 1 == 2").passed
        True
    """
    if not sys.platform.startswith("linux"):
        raise OptionError(f"running programs of others needs Linux; this is {sys.platform}")
    limits = limits or Limits()
    word = secrets.token_hex(16)  # what a program that only exits with 0 does not know
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        job = {
            "program": program, "word": word, "folder": folder, "kernel": kernel, "hooks": hooks, "weak": weak,
            **asdict(limits),
        }  # fmt: skip
        said = _supervised(job, folder, limits.seconds + GRACE)
    return _outcome(said, word)


def isolation(*, weak: bool = False) -> Isolation:
    """Which means of the kernel are in force here, found out by running an empty program.

    Raises:
        OptionError: as :func:`run_program`, or programs cannot be run at all.
    """
    outcome = run_program("", weak=weak)
    if outcome.isolation is None or not outcome.passed:
        raise OptionError(f"programs cannot be run here: an empty one ended with: {outcome.reason}")
    return outcome.isolation


def _supervised(job: dict[str, Any], folder: str, seconds: float) -> bytes:
    """What the supervisor and the program wrote to their pipe."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Nothing of the environment goes in: it may hold secrets. One thread: each counts as a process.
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


def _outcome(said: bytes, word: str) -> Outcome:
    """Lines that begin with the secret word are the supervisor's; what else a program may write there is not read."""
    found: dict[str, str] = {}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(word):
            kind, _, rest = line.removeprefix(word).strip().partition(" ")
            found.setdefault(kind, rest)
    if "isolation" not in found:
        return Outcome(False, f"could not be started ({found.get('error', 'its supervisor said nothing')})")
    means = Isolation(**json.loads(found["isolation"]))
    if "refused" in found:
        raise OptionError(
            f"the kernel cannot keep programs from {found['refused']}; accepted are machines that can, or "
            "--weak-isolation, which leaves that to audit hooks"
        )
    for kind in ("timeout", "failed", "ended"):
        if kind in found:
            return Outcome(False, found[kind], means)
    if "passed" in found:
        return Outcome(True, "passed", means)
    return Outcome(False, "ended before its last line (exit code 0)", means)
