"""Runs of parts, and what is kept of them."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoding.cli.output import as_json
from decoding.errors import OptionError
from decoding.files import write_whole
from decoding.tools.evidence.parts import PARTS, Part, Step

__all__ = ["is_made", "kept", "left_of", "run_part", "runs_of"]

KEPT = ("task", "model", "versions", "device", "counts", "limit", "seed", "statistics", "chance", "tuning")
DIGITS = 6  # of figures


def run_part(name: str, data: str, work: str, results: Path, anew: bool = False) -> None:
    """Run the commands of a part, and write what is kept of the results of each as soon as it ends.

    A part that was killed continues where it was: commands whose results are kept are not run again, and the others
    read their samples from ``work``.

    Args:
        name: of the part.
        data: folder of the data sets.
        work: folder of samples and adapters.
        results: folder of ``<part>.json``.
        anew: run also the commands whose results are kept, and replace these one by one.

    Raises:
        OptionError: a command failed, or what it needs has not been made.
    """
    part, path = PARTS[name], results / f"{name}.json"
    runs = runs_of(part, path)
    for step in left_of(part, path, work, anew):
        for needed in step.after:
            if not all(is_made(other, work) for other in PARTS[needed].steps):
                raise OptionError(f"{name} needs what {needed} makes: run that first")
        arguments = [argument.replace("{data}", data).replace("{work}", work) for argument in step.arguments]
        folder = Path(work, name, step.digest)
        if not step.makes:
            arguments += ["--output", str(folder)]
        code = subprocess.run([sys.executable, "-m", "decoding.evals.cli", *arguments], check=False).returncode
        if code:
            raise OptionError(f"{name}: decoding {shlex.join(arguments)} ended with {code}; what it evaluated is kept")
        if step.makes:
            _made_by(step, work).write_text(step.command + "\n", encoding="utf-8")
            continue
        found = [kept(written, step.language) for written in newest(folder)]
        runs[step.command] = {"command": step.command, "cpu": _cpu(), "results": found}
        in_order = [runs[other.command] for other in part.steps if other.command in runs]
        results.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_json({"part": name, "runs": in_order}, indent=1) + "\n")


def left_of(part: Part, path: Path, work: str, anew: bool = False) -> list[Step]:
    """The commands of a part that a run of it runs.

    Args:
        part: the part.
        path: of ``<part>.json``, which need not exist.
        work: folder of adapters.
        anew: also those whose results are kept; an adapter is made once.
    """
    runs = {} if anew else runs_of(part, path)
    return [step for step in part.steps if not (is_made(step, work) if step.makes else step.command in runs)]


def runs_of(part: Part, path: Path) -> dict[str, Any]:
    """What is kept of a part, by command, in the part's order: ``command``, ``cpu`` and ``results``.

    Args:
        part: of which commands that are no longer its own are left out.
        path: of ``<part>.json``, which need not exist.
    """
    if not path.exists():
        return {}
    runs = {run["command"]: run for run in json.loads(path.read_text(encoding="utf-8"))["runs"]}
    return {step.command: runs[step.command] for step in part.steps if step.command in runs}


def newest(folder: Path) -> list[dict[str, Any]]:
    """The newest results of each task in a folder, but for those of the documents that values were chosen on."""
    by_task: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("results_*.json")):
        written = json.loads(path.read_text(encoding="utf-8"))
        task = str(written.get("task", ""))
        if not task.endswith("_validation"):
            by_task[task] = written
    return list(by_task.values())


def kept(written: Mapping[str, Any], language: str = "") -> dict[str, Any]:
    """What is kept of a results file: no times, so that a part which was killed ends in the same file.

    Args:
        written: the results of an evaluation, or of ``decoding isotropy``.
        language: of the results; by default the end of the task's name, of a task whose name has one.
    """
    if written["task"] == "isotropy":
        layers = [
            {
                **{name: result[name] for name in ("model", "data", "counts")},
                "isotropy": result["layers"][-1]["isotropy"],
            }
            for result in written["results"]
        ]
        return _rounded({"task": "isotropy", "versions": written["versions"], "results": layers})
    configurations = [
        {
            **{name: entry[name] for name in ("label", "strategy", "parameters", "configuration", "metrics")},
            "others": entry["settings"]["others"],  # the weights of its other readers
        }
        for entry in written["configurations"]
    ]
    chosen = {name: written[name] for name in KEPT if name in written}
    _, dash, end = written["task"].removesuffix("_report").rpartition("-")
    language = language or (end if dash else "")
    return _rounded(
        {"language": language, **chosen, "configurations": configurations, "comparisons": written["comparisons"]}
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def is_made(step: Step, work: str) -> bool:
    """True where this very command has made its adapter: training writes the config last."""
    made_by = _made_by(step, work)
    if not (made_by.with_suffix("") / "adapter_config.json").is_file():
        return False
    return made_by.is_file() and made_by.read_text(encoding="utf-8").strip() == step.command


def _made_by(step: Step, work: str) -> Path:
    """The file beside what a command makes that tells the command."""
    return Path(f"{step.makes.replace('{work}', work)}.command")


def _cpu() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
