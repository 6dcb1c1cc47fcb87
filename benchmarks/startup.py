"""How long processes take to start: imports, help pages and wrong options, whole processes side by side.

    python benchmarks/startup.py

Each process runs from start to end under the same interpreter, in turns, after a first turn that writes bytecode and is
not counted. CPU time is user and system time of the process; ratios are those of the same turn, against the import that
every program with a transformers model has to make.

Where gradio is installed (extra ``play``): the time from the start of `decoding play` to the first answer of its page,
beside a process that only imports what the page imports. The difference, printed too, is what a user waits for the page
itself.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from turns import percentile_columns, percentiles, write_csv

TRANSFORMERS = "from transformers import AutoModelForCausalLM, GenerationMixin"
IMPORTS = (TRANSFORMERS, "import decoding", "from decoding import ContrastiveSearch, generate")
PAGE_IMPORTS = "import decoding.api, decoding.play.page, gradio, torch, transformers"
PAGE = "decoding play, to the first answer of its page"
CONSOLE_SCRIPT = "import sys; from decoding.evals.cli import main; sys.exit(main())"
COLUMNS = [
    "process", *percentile_columns("cpu_s"), *percentile_columns("wall_s"), "cpu_ratio", "wall_ratio",
    "repeats", "device", "cpus", "torch", "transformers", "typer", "python",
]  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent / "results" / "startup.csv", help="CSV file"
    )
    options = parser.parse_args()
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        statement: partial(timed, ["-c", statement]) for statement in IMPORTS
    }
    runs |= {f"decoding {line}": partial(timed, ["-c", CONSOLE_SCRIPT, *line.split()]) for line in command_lines()}
    if util.find_spec("gradio"):
        runs |= {PAGE_IMPORTS: partial(timed, ["-c", PAGE_IMPORTS]), PAGE: timed_page}
    else:
        print("decoding play: left out, gradio is not installed (extra play)")
    seconds: dict[str, list[tuple[float, float]]] = {process: [] for process in runs}
    for turn in range(-1, options.repeats):
        for process, run in runs.items():
            spent = run()
            if turn >= 0:
                seconds[process].append(spent)
    rows = [row(process, spent, seconds[TRANSFORMERS]) for process, spent in seconds.items()]
    for found in rows:
        print(f"{found['process']:70} {found['cpu_s_p50']} s CPU, {found['cpu_ratio']} of transformers")
    if PAGE in seconds:
        waits = [page[1] - imports[1] for page, imports in zip(seconds[PAGE], seconds[PAGE_IMPORTS], strict=True)]
        print(f"\ndecoding play answers {statistics.median(waits):.2f} s after a process that only imports would end")
    write_csv(rows, COLUMNS, options.output)
    print(f"\nwritten: {options.output}")


def command_lines() -> Iterator[str]:
    """Yield the command lines that do no work: every help page, the version, and a wrong option."""
    from typer.main import get_command

    from decoding.evals import cli

    yield from ("--help", "--version", "generate --no-such-option")
    group = get_command(cli.app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        yield f"{name} --help"
        yield from (f"{name} {task} --help" for task in getattr(command, "commands", ()))


def timed(arguments: list[str]) -> tuple[float, float]:
    """Run a process of this interpreter to its end; return its CPU time and its wall time, in seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    expected = 2 if "--no-such-option" in arguments else 0
    if process.returncode != expected:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}\n{message.decode()}")
    return usage.ru_utime + usage.ru_stime, wall


def timed_page() -> tuple[float, float]:
    """Start `decoding play` and end it once its page has answered; return CPU time, and wall time until then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE_SCRIPT, "play", "--port", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    answer.read()
                wall = time.perf_counter() - began
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        else:
            raise SystemExit(f"decoding play: ended with {process.returncode} before it answered")
    finally:
        process.terminate()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return usage.ru_utime + usage.ru_stime, wall


def row(process: str, spent: list[tuple[float, float]], baseline: list[tuple[float, float]]) -> dict[str, Any]:
    """Return a row of the file: quantiles, and the median ratio to the baseline of the same turn."""
    figures: dict[str, Any] = {"process": process}
    for index, name in enumerate(("cpu", "wall")):
        values = [times[index] for times in spent]
        figures |= percentiles(f"{name}_s", values)
        ratio = statistics.median(times[index] / other[index] for times, other in zip(spent, baseline, strict=True))
        figures[f"{name}_ratio"] = f"{ratio:.3f}"
    return figures | {
        "repeats": len(spent),
        "device": f"{platform.machine()} cpu",
        "cpus": os.cpu_count(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "typer")},
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
