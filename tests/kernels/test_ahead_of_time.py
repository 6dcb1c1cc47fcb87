"""Every kernel compiles for an H100, which needs no GPU: the interpreter accepts code that the compiler may not."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import LAUNCHES

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = 227 * 1024  # bytes that a program may use on sm_90


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    """Return the facts of every kernel of every launch."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    support = ROOT / "tests" / "support"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(support), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(support / "ahead_of_time.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    facts: dict[str, list[dict[str, Any]]] = {}
    for line in result.stdout.splitlines():
        fact = json.loads(line)
        facts.setdefault(fact["launch"], []).append(fact)
    return facts


@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles_without_spilling_and_reads_widely(compiled: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert compiled[name]
    for kernel in compiled[name]:
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        if kernel["kernel"] in LAUNCHES[name].wide:
            assert kernel["wide loads"] > 0, kernel
            assert kernel["narrow loads"] == 0, kernel
    assert set(LAUNCHES[name].wide) <= {kernel["kernel"] for kernel in compiled[name]}


def test_every_kernel_is_compiled(compiled: dict[str, list[dict[str, Any]]]) -> None:
    kernels = {
        node.name
        for file in (ROOT / "kernels").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert kernels
    assert {kernel["kernel"] for facts in compiled.values() for kernel in facts} == kernels
