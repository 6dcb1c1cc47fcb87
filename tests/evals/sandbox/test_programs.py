"""Programs that attack: each fails in its time and leaves no trace, under either line of defence."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from decoding.errors import OptionError
from decoding.evals.sandbox import Limits, isolation, programs, run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

BRIEF = Limits(seconds=1)
ENDLESS = Limits(seconds=0.3)  # of what is stopped by its time alone, however slow the machine
LINES = {"both": {}, "kernel": {"hooks": False}, "hooks": {"kernel": False}}


@pytest.fixture(scope="module")
def means():
    try:
        return isolation()
    except OptionError as error:
        pytest.skip(f"this kernel cannot isolate programs: {error}")


@pytest.fixture(params=LINES)
def line(request, means):
    return LINES[request.param]


@pytest.fixture(params=["kernel", "hooks"])
def single_line(request, means):
    """Each line of defence alone: what either stops, both do."""
    return LINES[request.param]


def reason(program, line, limits=BRIEF):
    began = time.monotonic()
    outcome = run_program(program, limits, **line)
    assert time.monotonic() - began < limits.seconds + 3  # a slow machine may take a while to start and to kill
    assert outcome.passed == (outcome.reason == "passed")
    return outcome.reason


def test_a_program_that_reaches_its_end_passes(line):
    assert reason("import collections\nassert sum([1, 2]) == 3", line) == "passed"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 == 2, 'not equal'", "AssertionError: not equal"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended before its last line (exit code 0)"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("input()", "EOFError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import os; os._exit = os.write = print\nassert False", "AssertionError"),
    ],
)
def test_one_that_does_not_fails_and_says_why(program, expected, means):
    assert reason(program, {}).startswith(expected)


def test_reading_is_fine(line):
    assert reason(f"assert open({__file__!r}).read()", line) == "passed"


def test_writing_in_its_folder_is_fine_and_goes_with_it(line):
    program = (
        "open('a', 'w').write('b')\nassert open('a').read() == 'b'\nimport os\nos.mkdir('d')\nos.rename('a', 'd/a')"
    )
    assert reason(program, line) == "passed"


def test_a_loop_ends_with_its_time(line):
    assert reason("while True: pass", line, ENDLESS) == "timed out after 0.3 s"


def test_so_does_sleep_and_output_without_end(means):
    assert reason("import time\ntime.sleep(60)", {}, ENDLESS) == "timed out after 0.3 s"
    assert reason("while True: print('a' * 10000)", {}, ENDLESS) == "timed out after 0.3 s"


def test_memory_without_end(single_line):
    limits = Limits(seconds=5, memory=128 * 2**20)
    assert "MemoryError" in reason("kept = []\nwhile True: kept.append('a' * 10**7)", single_line, limits)


def test_a_file_without_end(single_line):
    assert reason("file = open('a', 'wb')\nwhile True: file.write(b'a' * 10**6)", single_line) == "killed by SIGXFSZ"


@pytest.mark.parametrize(
    "attempt",
    ["open({0!r}, 'w')", "open({0!r}, 'a')", "import os; os.open({0!r}, os.O_CREAT)", "import os; os.mkdir({0!r})",
     "import os; os.symlink('/', 'root'); open('root' + {0!r}, 'w')", "import pathlib; pathlib.Path({0!r}).touch()"],
)  # fmt: skip
def test_writing_outside_its_folder(attempt, single_line, tmp_path):
    tmp_path.chmod(0o777)  # the sandbox's user must not be what stops it
    target = tmp_path / "file"
    assert "PermissionError" in reason(attempt.format(str(target)), single_line)
    assert not target.exists()


@pytest.mark.parametrize("attempt", ["os.remove({0!r})", "os.rename({0!r}, 'mine')", "os.truncate({0!r}, 0)"])
def test_changing_files_outside_its_folder(attempt, single_line, tmp_path):
    tmp_path.chmod(0o777)
    target = tmp_path / "file"
    target.write_text("kept")
    target.chmod(0o666)
    assert "Error" in reason("import os\n" + attempt.format(str(target)), single_line)
    assert target.read_text() == "kept"


def test_sockets(single_line):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=0.5)"
        assert "Error" in reason(program, single_line)
        with pytest.raises(TimeoutError):
            server.accept()


def test_there_is_no_network_for_datagrams_either(means):
    if not means.namespaces:
        pytest.skip("this kernel allows no network namespace")
    devices = reason("assert len(open('/proc/net/dev').readlines()) == 3", LINES["kernel"])  # two of them the header
    assert devices == "passed"  # the loopback alone, which is down


def test_a_fork_bomb(single_line):
    assert reason("import os\nwhile True: os.fork()", single_line).startswith(
        ("PermissionError", "BlockingIOError", "timed out")
    )


def test_starting_other_programs(means):
    assert "PermissionError" in reason("import subprocess\nsubprocess.run(['true'])", LINES["hooks"])
    assert "PermissionError" in reason("import ctypes\nctypes.CDLL(None)", LINES["hooks"])


@pytest.mark.parametrize("kernel", [True, False], ids=["namespaces", "subreaper"])
def test_children_that_lose_their_parent_end_too(kernel, means):
    name = f"d{os.getpid()}-{int(kernel)}"
    program = f"""
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)
        time.sleep(60)
    os._exit(0)
time.sleep(0.3)
"""
    # Nobody's processes may be more than ours; the limit of them is another test's.
    assert reason(program, {"kernel": kernel, "hooks": False}, Limits(seconds=2, processes=1000)) == "passed"
    running = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert name not in running


def test_a_child_does_not_pass_for_its_parent(means):
    program = "import os\nif os.fork(): os._exit(0)"
    found = reason(program, LINES["kernel"], Limits(seconds=1, processes=1000))
    assert found == "ended before its last line (exit code 0)"


def test_signals_to_the_evaluation(single_line):
    assert "Error" in reason(f"import os\nos.kill({os.getpid()}, 9)", single_line)


def test_the_environment_and_standard_input_are_empty(means, monkeypatch):
    monkeypatch.setenv("SECRET", "word")
    assert reason("import os, sys\nassert 'SECRET' not in os.environ\nassert sys.stdin.read() == ''", {}) == "passed"


def test_an_answer_on_the_supervisors_pipe_is_not_believed(means):
    forged = """
import os
for fd in range(3, 32):
    try: os.write(fd, b'passed\\n' * 9)
    except OSError: pass
assert False
"""
    assert reason(forged, {}) == "AssertionError"


def test_a_supervisor_that_says_nothing_is_a_failure(monkeypatch):
    monkeypatch.setattr(programs, "INSIDE", Path("/absent.py"))
    assert run_program("", BRIEF).reason == "could not be started (its supervisor reported nothing)"
    with pytest.raises(OptionError, match="cannot be run here"):
        isolation()
