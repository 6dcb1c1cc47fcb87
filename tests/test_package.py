"""The distribution: what it installs, and which way its imports run."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["kernels", "decoding", "evals", "tools"]  # each may import itself and those before it


def test_the_wheel_has_one_top_level_package(tmp_path: Path) -> None:
    """``kernels`` and ``evals`` are other packages' names."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"decoding"}
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
        "decoding/evals/metrics/rep_n/rep_n.py",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith("decoding/tools")]  # maintainers run them from a clone
    assert wheel.stat().st_size < 6 * 2**20


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    later = ORDER[ORDER.index(package) + 1 :]
    for file in (ROOT / package).rglob("*.py"):
        if package == "decoding" and file.relative_to(ROOT).parts[1] in ORDER:
            continue  # reached through a link: checked under its own name
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert _part(module) not in later, f"{file.relative_to(ROOT)} imports {module}"


def _part(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "decoding":
        return ""
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "decoding"


def test_importing_it_does_not_import_the_evaluations() -> None:
    code = "import sys, decoding; print([m for m in sys.modules if m.startswith('decoding.evals')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
