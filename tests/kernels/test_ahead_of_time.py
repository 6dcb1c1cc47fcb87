"""Every kernel compiles for an H100, without one at hand: the interpreter accepts what the compiler may not."""

from __future__ import annotations

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
SHARED_MEMORY = 227 * 1024  # bytes that a program may have on sm_90


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    """Facts of every kernel of every launch."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    support = ROOT / "tests" / "support"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(support), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(support / "ahead_of_time.py")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    facts: dict[str, list[dict[str, Any]]] = {}
    for line in ended.stdout.splitlines():
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
