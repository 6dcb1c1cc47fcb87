"""The checks of every change, ``.ci/run``, with a stub of make: what decides, and what is only left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
MAKE = """#!/bin/sh
echo "$*" >> made
case "$*" in
test | lint | docs) [ "$*" != "$FAILING" ] ;;
*.vllm/.installed)
    sleep "$INSTALLING" && echo "ERROR: no network" && [ "$FAILING" != install ] && echo installed >> made ;;
test-vllm*) [ "$FAILING" != vllm ] ;;
esac
"""
QUICK = "test-vllm SELECT=-m quick"


@pytest.mark.parametrize(
    ("settings", "code", "made", "skipped"),
    [
        ({}, 0, [QUICK], ""),
        ({"FAILING": "vllm"}, 1, [QUICK], ""),
        ({"CI": ""}, 0, [], "is not there"),
        ({"FAILING": "install"}, 0, [], "could not be made (ERROR: no network)"),
        ({"SECONDS": "839", "INSTALLING": "50"}, 0, [], "was not made by second 840"),
        ({"SECONDS": "900"}, 0, [], "the tests before them took until second 900"),
        ({"FAILING": "test", "INSTALLING": "50"}, 1, None, ""),
        ({"FAILING": "lint", "INSTALLING": "50"}, 1, None, ""),
        ({"FAILING": "docs", "INSTALLING": "50"}, 1, [], ""),
    ],
)
def test_tests_lint_and_docs_decide_and_vllm_is_tested_while_there_is_time(
    tmp_path: Path, settings: dict[str, str], code: int, made: list[str] | None, skipped: str
) -> None:
    for folder in (".ci", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".ci" / "run").write_bytes(SCRIPT.read_bytes())
    for name, text in (("make", MAKE), ("chromium", "")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CI": "true", "INSTALLING": "0", "FAILING": ""}
    ended = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, env=environment | settings | {"TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == code
    assert skipped in ended.stdout
    assert ("make test-vllm" in ended.stdout) == bool(skipped)
    steps = (tmp_path / "made").read_text().splitlines()
    if made is None:
        assert "docs" not in steps
    else:
        decisive = [step for step in steps if not step.startswith("-s") and step != "installed"]
        assert decisive == ["test", "lint", "docs", *made]
        assert QUICK not in steps or steps.index("installed") < steps.index(QUICK)
    assert not list(tmp_path.glob("tmp.*"))  # the installation's log
