"""The sandbox's first process, run by its path with the standard library only: isolates, runs, supervises.

There are three processes: this one supervises; the init of a process namespace, whose end ends all in it (left out
where there is no namespace); the program. The job comes as JSON on standard input. Reports go to the pipe named in the
arguments, one line each, after the job's secret word.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534

# <linux/sched.h>, <linux/prctl.h>
NEW_USER, NEW_PID, NEW_NET, NEW_IPC, NEW_UTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 36, 38
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
READ_ANYTHING = 1 << 2  # CAP_DAC_READ_SEARCH

# <linux/landlock.h>; these system calls have the same numbers on every architecture
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
# Removing and making files and folders of every kind; then moving between folders (2), truncating (3), ioctl (5).
WRITING = {1: WRITE_FILE | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}

# <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>: each machine's code and its number of prlimit64; then system
# calls by their numbers on each. io_uring can open sockets as well.
MACHINES = {"x86_64": (0xC000003E, 302), "aarch64": (0xC00000B7, 261)}
SOCKET, IO_URING_SETUP = {"x86_64": 41, "aarch64": 198}, {"x86_64": 425, "aarch64": 425}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOWED, NOT_PERMITTED = 0x7FFF0000, 0x00050000 | errno.EPERM


def main() -> None:
    """Supervise one program."""
    pipe = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    report = _reporter(pipe, job["word"])
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    means: dict[str, Any] = {"landlock": 0, "namespaces": False, "other_user": False, "seccomp": False}
    if job["kernel"]:
        means["namespaces"] = _namespaces()
        means["other_user"] = _other_user(job["folder"])
        means["landlock"] = max(0, libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1))
        means["seccomp"] = _can_filter()
    missing = _missing(means)
    report("isolation", json.dumps({**means, "missing": missing}))
    if job["kernel"] and not job["weak"] and missing:
        report("refused", " and ".join(missing))
        return
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.nice(10)  # processes without end must not keep the supervisor from its work
        _init(job, report, means) if means["namespaces"] else _program(job, report, means)
    status = _wait(child, began + job["seconds"])
    if status is None:
        report("timeout", f"timed out after {job['seconds']:g} s")
    elif not os.WIFEXITED(status) or os.WEXITSTATUS(status) != 0:
        report("ended", _ending(status))
    _kill_descendants()


def _init(job: dict[str, Any], report: Callable[[str, str], None], means: dict[str, Any]) -> None:
    """Be the first process of the namespace: wait for the program, pass its end on; all others end with this one."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    program = os.fork()
    if program == 0:
        _program(job, report, means)
    while True:
        ended, status = os.wait()
        if ended == program:
            break
    if os.WIFSIGNALED(status):
        report("ended", _ending(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _program(job: dict[str, Any], report: Callable[[str, str], None], means: dict[str, Any]) -> None:
    """Give up all that the program does not need, run it, report how it ended."""
    leave, process, code = os._exit, os.getpid(), 1  # names that the program may replace
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for name, most in (
            (resource.RLIMIT_CPU, int(job["seconds"]) + 1),
            (resource.RLIMIT_AS, job["memory"]),
            (resource.RLIMIT_FSIZE, job["file_size"]),
            (resource.RLIMIT_NOFILE, job["open_files"]),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, job["processes"]),
        ):
            hard = resource.getrlimit(name)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(name, (most, most))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _keep_capabilities(READ_ANYTHING)
        if means["landlock"]:
            _landlock(job["folder"], means["landlock"])
        if means["seccomp"]:
            refuse_calls(SOCKET, IO_URING_SETUP)
        os.chdir(job["folder"])
        source = compile(job["program"], "program.py", "exec")
        if job["hooks"]:
            sys.addaudithook(_hook(os.path.realpath(job["folder"])))
        del sys.argv[1:]
        sys.modules["__main__"] = main_module = types.ModuleType("__main__")
        exec(source, main_module.__dict__)
        code = 0
        if os.getpid() == process:  # not a child that it has forked
            report("passed", "")
    except BaseException as error:  # SystemExit too: a program that exits has not come to its end
        if os.getpid() == process:
            report("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": "))
    finally:
        leave(code)


def _missing(means: dict[str, Any]) -> list[str]:
    """Acts that the kernel does not prevent with these means; the limits of resources hold everywhere."""
    prevented = {
        "writing outside its folder (Landlock, Linux 5.13 or newer)": means["landlock"],
        "the network (namespaces or seccomp)": means["namespaces"] or means["seccomp"],
        # Another user's processes cannot be signalled.
        "signals to the processes of its user (namespaces, or Landlock of Linux 6.12)": means["namespaces"]
        or means["other_user"]
        or means["landlock"] >= 6,
    }
    return [what for what, holds in prevented.items() if not holds]


def _namespaces() -> bool:
    """Enter new process, network, IPC and host-name namespaces; users other than root through a user namespace."""
    namespaces = NEW_PID | NEW_NET | NEW_IPC | NEW_UTS
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(namespaces) == 0:
        return True
    if libc.unshare(namespaces | NEW_USER) != 0:
        return False
    for file, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        try:
            with open(f"/proc/self/{file}", "w") as writing:
                writing.write(content)
        except OSError:
            pass  # the user is then nobody, which is enough for a program
    return True


def _other_user(folder: str) -> bool:
    """Become nobody if this is root: only then does the limit of processes hold.

    Where nobody cannot read the interpreter's files (below /root, for instance), it may read as root does.
    """
    if os.getuid() != 0:
        return False
    needed = [os.__file__, *(path for path in sys.path if os.path.exists(path))]
    try:
        os.chown(folder, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        readable = all(os.access(path, os.R_OK, effective_ids=True) for path in needed)
        os.seteuid(0)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:  # user namespaces may know no such user
        return False
    _keep_capabilities(0 if readable else READ_ANYTHING)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the change of user has cleared it
    return True


def _keep_capabilities(kept: int) -> None:
    """Give up all capabilities but these, as far as it has them."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    libc.capget(header, held)
    kept &= held[1]
    libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept))


def _landlock(folder: str, version: int) -> None:
    """Forbid writing everywhere but in the folder and to /dev/null, TCP, and signals to processes outside."""
    writing = sum(rights for since, rights in WRITING.items() if since <= version)
    tcp = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = (ctypes.c_uint64 * 3)(writing, tcp, scoped)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    to_a_file = writing & (WRITE_FILE | TRUNCATE)
    for path, rights in ((folder, writing), (os.devnull, to_a_file)):
        beneath = os.open(path, os.O_PATH)
        rule = rights.to_bytes(8, sys.byteorder) + beneath.to_bytes(4, sys.byteorder)  # packed
        if libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock takes no rule for {path}")
        os.close(beneath)
    if libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock cannot be put in force")
    os.close(ruleset)


def _can_filter() -> bool:
    """Return whether the kernel takes a filter of system calls: it then finds that the address is none."""
    if platform.machine() not in MACHINES or sys.maxsize < 2**32:
        return False
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0) != 0 and ctypes.get_errno() == errno.EFAULT


def refuse_calls(*calls: dict[str, int]) -> None:
    """Forbid system calls, given by their numbers on each machine, for good.

    Calls of the machine's other interfaces (32 bits, x32), whose numbers differ, and limits of other processes are
    forbidden too.
    """
    machine = platform.machine()
    code, prlimit = MACHINES[machine]
    # Each line: operation, how many lines to skip where it holds and where it does not, operand.
    head = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, code), (RETURN, 0, 0, NOT_PERMITTED), (LOAD, 0, 0, 0)]
    comparisons = [(AT_LEAST, 0x40000000), *((EQUAL, numbers[machine]) for numbers in calls)]
    tests = [(operation, 0, 1, number) for operation, number in comparisons]
    refusals = [line for test in tests for line in (test, (RETURN, 0, 0, NOT_PERMITTED))]
    # The first argument of prlimit64, its lower half: 0 is the process itself.
    limits = [(EQUAL, 0, 3, prlimit), (LOAD, 0, 0, 16), (EQUAL, 1, 0, 0), (RETURN, 0, 0, NOT_PERMITTED)]
    lines = [*head, *refusals, *limits, (RETURN, 0, 0, ALLOWED)]
    filter_ = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(filter_))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls cannot be put in force")


# Other processes, native code, the network, and acts on processes. "open" and the file events are examined.
REFUSED = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "pty.", "os.kill", "signal.pthread_kill", "sys.addaudithook", "resource.", "fcntl.", "urllib.", "ftplib.",
    "smtplib.", "http.", "webbrowser.", "sqlite3.", "os.setxattr", "os.removexattr",
)  # fmt: skip
ON_FILES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.chflags", "os.lockf", "os.mkfifo", "os.mknod", "shutil.rmtree", "shutil.move", "shutil.copyfile",
    "shutil.chown", "shutil.unpack_archive", "shutil.make_archive",
}  # fmt: skip
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    refused, on_files, realpath, join, to_write = REFUSED, ON_FILES, os.path.realpath, os.path.join, TO_WRITE
    null, fspath = os.devnull, os.fspath

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        path = fspath(path)
        real = realpath(path.decode(errors="surrogateescape") if isinstance(path, bytes) else path)
        return real not in (folder, null) and not real.startswith(join(folder, ""))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) or bool(mode is None and (flags or 0) & to_write)
            if writes and outside(path):
                raise PermissionError(f"a program may write in its folder only, not {path!r}")
        elif event in on_files:
            paths = (item for item in arguments if isinstance(item, (str, bytes)) or hasattr(item, "__fspath__"))
            if any(map(outside, paths)):
                raise PermissionError(f"a program may change files in its folder only ({event})")
        elif event.startswith(refused):
            raise PermissionError(f"a program may not call {event}")

    return hook


def _reporter(pipe: int, word: str) -> Callable[[str, str], None]:
    # _program's code may have replaced os.write by then
    write = os.write

    def report(kind: str, text: str) -> None:
        with contextlib.suppress(BlockingIOError):  # a program that has filled the pipe gets no report
            write(pipe, f"\n{word} {kind} {text}\n".encode(errors="replace"))

    return report


def _wait(child: int, deadline: float) -> int | None:
    """The child's exit status; after the deadline the child is killed and the status is None."""
    pause = 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)  # the whole group in one call, which a fork bomb cannot outrun
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _kill_descendants() -> None:
    """Kill the processes that a program left: as subreaper, this process is the parent of all orphans."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for process in _children(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


def _children(parent: int) -> list[int]:
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            return [int(number) for number in file.read().split()]
    except OSError:
        return []


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by {signal.Signals(number).name}"
    return f"ended before its last line (exit code {os.WEXITSTATUS(status)})"


if __name__ == "__main__":
    main()
