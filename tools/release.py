"""Checks of a release: what ``make dist`` built is whole, small enough, and runs alone in a new environment."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from decoding.versions import __version__

__all__ = ["faults_of", "main"]

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 6_000_000
PACKAGES = {"decoding": "decoding", "kernels": "decoding/kernels", "evals": "decoding/evals"}  # folders, in the wheel
READ = {
    ".css",
    ".js",
    ".json",
    ".jsonl",
    ".py",
    ".safetensors",
    ".typed",
    ".yaml",
}  # what the library reads of its own files


def faults_of(wheel: Path) -> list[str]:
    """Compare a wheel with the repository: a line for each fault."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        version = Parser().parsestr(archive.read(metadata).decode())["Version"]
    folder = metadata.partition("/")[0]
    packed = {name for name in names if not name.startswith(f"{folder}/") and Path(name).suffix in READ}
    others = {name.partition("/")[0] for name in names} - {folder, "decoding"}
    size = wheel.stat().st_size
    return [
        *(f"{name} is missing" for name in sorted(_library() - packed)),
        *(f"{name} does not belong there" for name in sorted(packed - _library())),
        *(f"{name}/ is another top-level package" for name in sorted(others)),
        *([f"{size} bytes, more than {MAX_BYTES}"] if size > MAX_BYTES else []),
        *([f"version {version}, and the library's is {__version__}"] if version != __version__ else []),
    ]


def _library() -> set[str]:
    """Return the files of the library as a wheel has them: not ``tools``, which maintainers run from a clone."""
    return {
        f"{place}/{file.relative_to(ROOT / source).as_posix()}"
        for source, place in PACKAGES.items()
        for file in (ROOT / source).rglob("*")  # which follows no links
        if file.suffix in READ
    }


def run_alone(wheel: Path) -> None:
    """Install a wheel alone into a new environment, and run its demo there.

    Raises:
        CalledProcessError: one of the commands failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        scripts = Path(sysconfig.get_path("scripts", "venv", vars={"base": folder}))
        pip: list[str | Path] = [scripts / "python", "-m", "pip", "--disable-pip-version-check"]
        decoding = scripts / "decoding"
        commands: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", folder],
            [*pip, "install", "-q", "-c", ROOT / "constraints.txt", wheel],
            [*pip, "check"],
            [decoding, "--version"],
            [decoding, "demo"],
        ]
        for command in commands:
            print("+", *command, flush=True)
            subprocess.run(command, check=True, cwd=folder, env=environment)


def main() -> int:
    """Check the one wheel and the one source distribution of a folder; return 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m decoding.tools.release", description=__doc__)
    parser.add_argument("folder", type=Path, help="that python -m build wrote to")
    folder = parser.parse_args().folder.resolve()
    wheels, sources = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        parser.error(f"{folder}: expected one wheel and one source distribution; python -m build makes them")
    (wheel,), (source,) = wheels, sources
    if faults := faults_of(wheel):
        print(f"{wheel.name}:", *faults, sep="\n  ")
        return 1
    run_alone(wheel)
    print(*(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB" for file in (wheel, source)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
