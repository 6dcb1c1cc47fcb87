"""The core tests in environments of their own, one for each version of transformers; ``make compat`` runs this.

    python tests/compat.py 5.17.0 5.24.0 [--torch 2.11.0] [--python python3.13]

An environment holds its version of transformers, whatever that needs in another version than the environment this runs
in, and torch where ``--torch`` names another one. All else is shared with the environment this runs in. An environment
of another Python shares nothing, and has the newest versions that fit. Environments are kept in ``.compat/``, so that a
second run starts at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = (
    "import decoding.api, platform, torch, transformers;"
    "print(transformers.__version__, torch.__version__, platform.python_version())"
)

# What runs through every private name of transformers, in about two minutes: all ways of branching and kinds of cache,
# prompts in chunks, batches with padding, the token loop, exported folders, scoring.
CORE = (
    "tests/decoding/test_transformers_private.py",
    "tests/decoding/models",
    "tests/decoding/cache/test_growing.py",
    "tests/decoding/cache/test_module_states.py",
    "tests/decoding/stream/test_stream.py",
    "tests/decoding/stream/test_recompute.py",
    "tests/decoding/test_api.py",
    "tests/decoding/test_api_arguments.py",
    "tests/decoding/test_exported.py",
    "tests/decoding/strategies/test_recorded_tokens.py",
    "tests/decoding/strategies/contrast/test_family_in_generate.py",
    "tests/decoding/scoring/test_teacher_forcing.py",
)


# What the core tests need beside the library.
OPTIONAL = ".[lora,gguf,images]"
TESTING = ("pytest>=8", "hypothesis>=6.100")


def environment(transformers: str, torch: str | None, other_python: str | None) -> Path:
    """Make or complete the environment of one version, and return its interpreter."""
    name = f"transformers-{transformers}" + (f"-torch-{torch}" if torch else "")
    if other_python:
        folder = ROOT / ".compat" / f"{name}-{Path(other_python).name}"
        return _apart(folder, other_python, transformers, torch)
    folder = ROOT / ".compat" / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    _install(site, "--no-deps", f"transformers=={transformers}")
    if torch:
        _install(site, f"torch=={torch}")
    while missing := _missing(site):
        _install(site, "--no-deps", *missing)
    # After its own packages come those of the environment that this runs in, editable ones included.
    shared = sysconfig.get_path("purelib")
    (site / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n", encoding="utf-8")
    return python


def _apart(folder: Path, other_python: str, transformers: str, torch: str | None) -> Path:
    """Make an environment that shares nothing with another, and return its interpreter."""
    python, mark = folder / "bin" / "python", folder / ".installed"
    if not mark.exists():
        subprocess.run([other_python, "-m", "venv", "--clear", str(folder)], check=True)
        versions = [f"transformers=={transformers}", *([f"torch=={torch}"] if torch else [])]
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, *versions, "-e", OPTIONAL, *TESTING], check=True, cwd=ROOT)
        mark.touch()
    return python


def _missing(site: Path) -> list[str]:
    """What the packages in an environment need and find neither there nor in the shared one."""
    own = {_key(package.name): package for package in metadata.distributions(path=[str(site)])}
    missing = {}
    for line in itertools.chain.from_iterable(package.requires or () for package in own.values()):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = own[name].version if (name := _key(requirement.name)) in own else metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing[name] = f"{requirement.name}{requirement.specifier}"
    return list(missing.values())


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def _install(site: Path, *what: str) -> None:
    mark = site / f".{'-'.join(requirement.strip('-').replace('/', '') for requirement in what)}.installed"
    if not mark.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--upgrade", "--no-compile"]
        subprocess.run([*pip, "--target", str(site), *what], check=True)
        mark.touch()


def run(transformers: str, torch: str | None, other_python: str | None, tests: list[str]) -> tuple[str, ...]:
    """Run the core tests with one version: its row of the table."""
    python = environment(transformers, torch, other_python)
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    said = subprocess.run([python, "-c", VERSIONS], env=settings, capture_output=True, text=True, cwd=ROOT)
    if said.returncode:
        failure = f"import fails: {said.stderr.strip().splitlines()[-1]}"
        return transformers, torch or "?", other_python or platform.python_version(), failure, ""
    installed, installed_torch, installed_python = said.stdout.split()
    assert installed == transformers, f"transformers {installed} is imported in place of {transformers}"
    start = time.monotonic()
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short", *(tests or CORE)]
    outcome = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=ROOT)
    lines = outcome.stdout.strip().splitlines()
    if outcome.returncode:
        print(f"--- transformers {transformers}\n{outcome.stdout}\n{outcome.stderr}", flush=True)
    summary = lines[-1].partition(" in ")[0] if lines else "nothing ran"
    print(f"transformers {installed}: {summary}", flush=True)
    return installed, installed_torch, installed_python, summary, f"{time.monotonic() - start:.0f}"


def main() -> int:
    """Run all versions, print the table, and return 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="of transformers")
    parser.add_argument("--torch", help="its version; that of this environment by default")
    parser.add_argument("--python", help="another interpreter; that of this environment by default")
    parser.add_argument("--tests", nargs="+", default=[], help="in place of the core tests")
    arguments = parser.parse_args()
    rows = [("transformers", "torch", "Python", "core tests", "seconds")]
    rows += [run(version, arguments.torch, arguments.python, arguments.tests) for version in arguments.versions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(any(word in row[3] for row in rows[1:] for word in ("failed", "error", "fails")))


if __name__ == "__main__":
    sys.exit(main())
