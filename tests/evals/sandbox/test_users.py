"""The kernel's line of defence alone, for root and for an ordinary user, and where the kernel allows less."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from decoding.errors import OptionError
from decoding.evals.sandbox import Limits, inside, programs, run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

NOBODY = 65534
# What the default profile of containers refuses, and what kernels before Linux 5.13 lack.
UNSHARE, LANDLOCK = {"x86_64": 272, "aarch64": 97}, {"x86_64": 444, "aarch64": 444}
MACHINES = {
    "root, no namespaces": (True, [UNSHARE]),
    "a user": (False, []),
    "a user, no namespaces": (False, [UNSHARE]),
}


def interpreter_for_all():
    """A Python that any user may run: the one that runs this may lie in somebody's home."""
    for interpreter in filter(None, (sys.executable, shutil.which("python3", path=os.defpath))):
        command = [interpreter, "-I", "-c", f"open({str(programs.INSIDE)!r}).read(); import ctypes"]
        try:
            subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return interpreter
    return None


@pytest.fixture(scope="module")
def ordinary():
    """The interpreter of an ordinary user's evaluation."""
    if os.getuid() != 0:
        return sys.executable
    return interpreter_for_all() or pytest.skip("no Python here can be run by a user other than root")


@pytest.fixture(params=MACHINES)
def machine(request, ordinary):
    root, without = MACHINES[request.param]
    if root and os.getuid() != 0:
        pytest.skip("the tests do not run as root")
    if without and platform.machine() not in inside.MACHINES:
        pytest.skip(f"how to take system calls away on {platform.machine()} is not known here")
    return {"without": without, "python": None if root else ordinary}


@pytest.fixture
def open_folder():
    """A folder that everybody may write to: the sandbox's user must not be what stops a program."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def reason(program, python=None, without=(), limits=None):
    """The end of a program in a new evaluation, whose process it may know as EVALUATION.

    Args:
        program: source.
        python: the interpreter of an ordinary user's evaluation; None for the tests' own.
        without: system calls that are taken away beforehand.
        limits: of the program.
    """
    reading, writing = os.pipe()
    evaluation = os.fork()
    if evaluation == 0:
        try:
            if python is not None:
                sys.executable = python
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, NOBODY)
                    inside.libc.prctl(inside.PR_SET_DUMPABLE, 1, 0, 0, 0)  # as a process is that began as this user's
            if without:
                inside.libc.prctl(inside.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                inside.refuse_calls(*without)
            outcome = run_program(f"EVALUATION = {os.getpid()}\n{program}", limits or Limits(seconds=2), hooks=False)
            found = [outcome.reason, vars(outcome.isolation)]
        except OptionError as error:
            found = [f"refused: {error}", {}]
        finally:
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said, means = json.load(file)
    assert os.waitpid(evaluation, 0)[1] == 0  # nothing has ended the evaluation
    assert (UNSHARE in without) <= (not means.get("namespaces"))
    assert means.get("other_user", False) == (python is None and os.getuid() == 0 and bool(means))
    return said


def test_a_program_passes_and_may_write_in_its_folder(machine):
    assert reason("open('a', 'w').write('b')\nassert open('a').read() == 'b'", **machine) == "passed"


def test_a_loop_ends_with_its_time(machine):
    assert reason("while True: pass", limits=Limits(seconds=0.2), **machine) == "timed out after 0.2 s"


def test_memory_without_end(machine):
    limits = Limits(seconds=5, memory=128 * 2**20)
    assert reason("kept = []\nwhile True: kept.append('a' * 10**7)", limits=limits, **machine) == "MemoryError"


def test_forks_without_end_leave_nothing_behind(machine):
    name = f"fork{os.getpid()}"
    program = f"import ctypes, os\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\nwhile True: os.fork()"
    assert reason(program, limits=Limits(seconds=0.5), **machine).startswith(("BlockingIOError", "timed out"))
    assert name not in [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]


@pytest.mark.parametrize(
    "attempt",
    ["open({0!r}, 'w')", "import os; os.mkdir({0!r})", "import os; os.chmod('.', 0o777); os.link('a', {0!r})"],
)
def test_writing_outside_its_folder(attempt, machine, open_folder):
    target = open_folder / "file"
    assert reason(f"open('a', 'w')\n{attempt.format(str(target))}", **machine).startswith(
        ("PermissionError", "OSError")
    )
    assert not target.exists()


def test_changing_a_file_of_the_user(machine, open_folder):
    target = open_folder / "file"
    target.write_text("kept")
    target.chmod(0o666)
    assert "Error" in reason(f"import os; os.truncate({str(target)!r}, 0)", **machine)
    assert target.read_text() == "kept"


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_sockets(kind, machine):
    with socket.socket(socket.AF_INET, getattr(socket, kind)) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.1)
        program = f"""
import socket
sender = socket.socket(socket.AF_INET, socket.{kind})
sender.connect(('127.0.0.1', {receiver.getsockname()[1]}))
sender.send(b'secret')
"""
        if kind == "SOCK_STREAM":
            receiver.listen()
        assert "PermissionError" in reason(program, **machine)
        with pytest.raises(TimeoutError):
            receiver.accept() if kind == "SOCK_STREAM" else receiver.recv(1)


@pytest.mark.parametrize(
    "attempt",
    ["import os; os.kill(EVALUATION, 9)",
     "import os, fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, EVALUATION); fcntl.fcntl(r, 10, 9);"
     "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'a'); raise OSError('sent, to no effect')",
     "import resource; resource.prlimit(EVALUATION, resource.RLIMIT_CPU, (0, 0))",
     "open(f'/proc/{EVALUATION}/environ').read()",
     "open(f'/proc/{EVALUATION}/mem', 'r+b')"],
    ids=["signal", "signal of a pipe", "limits", "environment", "memory"],
)  # fmt: skip
def test_the_evaluation_itself_is_out_of_reach(attempt, machine):
    assert "Error" in reason(attempt, **machine)


def test_without_landlock_it_is_refused_in_one_line(ordinary):
    said = reason("", ordinary, [LANDLOCK])
    assert said.startswith("refused: the kernel cannot keep programs from writing outside its folder (Landlock, Linux")
    assert said.endswith("; use a machine that can, or --weak-isolation, which leaves that to audit hooks")
    assert "\n" not in said


def test_what_is_missing_depends_on_the_user():
    container = {"landlock": 5, "namespaces": False, "other_user": True, "seccomp": True}
    assert inside._missing(container) == []
    (signals,) = inside._missing({**container, "other_user": False})
    assert signals.startswith("signals to the processes of its user")
    assert inside._missing({**container, "other_user": False, "landlock": 6}) == []
    assert len(inside._missing(dict.fromkeys(container, 0))) == 3
