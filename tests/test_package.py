"""The distribution: what it installs, and what importing it imports."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from decoding.tools.release import MAX_BYTES, faults_of
from decoding.versions import __version__

ROOT = Path(__file__).parents[1]


def test_the_wheel_is_the_library_and_nothing_else(tmp_path: Path) -> None:
    """One top-level package: ``kernels`` and ``evals`` are other packages' names. No ``tools``, and no tests."""
    # By way of the source distribution, as a release is: a build/ of earlier code beside the tree would be packed too.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert faults_of(wheel) == []
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "decoding/py.typed",
        "decoding/kernels/degeneration_penalty/naive.py",
        "decoding/evals/cli.py",
        "decoding/explanation/explorer/explorer.css",
        "decoding/explanation/explorer/explorer.js",
        "decoding/evals/metrics/rep_n/rep_n.py",
        "decoding/evals/sandbox/inside.py",
        "decoding/evals/miniature/models/expert/model.safetensors",
        "decoding/evals/miniature/models/amateur/tokenizer.json",
        "decoding/evals/harness/tasks/truthfulqa_mc1_local.yaml",
    ):
        assert needed in names
    # What is wrong with a wheel is told.
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(tmp_path / "other.whl", "w") as other:
        for name in names:
            if name == metadata:
                other.writestr(name, whole.read(name).replace(f"Version: {__version__}".encode(), b"Version: 9.9"))
            elif name != "decoding/evals/cli.py":
                other.writestr(name, whole.read(name))  # not compressed
        other.writestr("decoding/tools/release.py", "")
        other.writestr("kernels/__init__.py", "")
        other.writestr("padding", bytes(MAX_BYTES))
    size = (tmp_path / "other.whl").stat().st_size
    assert faults_of(tmp_path / "other.whl") == [
        "decoding/evals/cli.py is missing",
        "decoding/tools/release.py does not belong there",
        "kernels/__init__.py does not belong there",
        "kernels/ is another top-level package",
        "padding/ is another top-level package",
        f"{size} bytes, more than {MAX_BYTES}",
        f"version 9.9, and the library's is {__version__}",
    ]


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "decoding.versions.__version__"}


def test_importing_it_does_not_import_the_evaluations() -> None:
    code = "import sys, decoding; print([m for m in sys.modules if m.startswith('decoding.evals')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
