"""Models of installed packages are known by name, the embedded ones among them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from decoding.evals import miniature
from decoding.models import builtin
from decoding.models.builtin import EntryPointTable


def _table(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> EntryPointTable[Any]:
    monkeypatch.setattr(builtin, "entry_points", lambda group: EntryPoints(entries).select(group=group))
    return EntryPointTable("decoding.adapters", "ADAPTERS")


def test_the_embedded_models_are_known_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(monkeypatch)
    assert list(table) == ["induced"]
    assert table["induced"] == miniature.folder("induced")
    assert table.get("else") is None


def test_another_packages_objects_are_imported_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(
        monkeypatch,
        EntryPoint("mine", "os:sep", "decoding.adapters"),
        EntryPoint("broken", "no_such_package:FOLDER", "decoding.adapters"),
        EntryPoint("a model", "os:sep", "decoding.models"),
    )
    assert sorted(table) == ["broken", "induced", "mine"]
    assert "broken" in table
    assert table["mine"] == os.sep
    with pytest.raises(ModuleNotFoundError):
        table["broken"]


def test_entry_points_of_this_package_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(monkeypatch, EntryPoint("tamed", "decoding.evals.builtin:INDUCED", "decoding.adapters"))
    assert dict(table) == {"tamed": miniature.folder("induced")}


def test_what_is_put_in_goes_before_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(monkeypatch, EntryPoint("induced", "decoding.evals.builtin:INDUCED", "decoding.adapters"))
    table["induced"] = Path("elsewhere")
    assert table["induced"] == Path("elsewhere")
    del table["induced"]
    assert len(table) == 0


def test_embedded_models_need_no_command_line() -> None:
    program = """
import sys, torch, decoding
model, tokenizer = decoding.load("expert", "cpu")
strategy = decoding.ContrastiveDecoding("amateur")
decoding.generate(model, torch.tensor([[5, 6, 7]]), strategy=strategy, max_new_tokens=1)
decoding.generate(model, torch.tensor([[5, 6, 7]]), strategy=decoding.ContrastiveDecoding("induced"), max_new_tokens=1)
assert not {name for name in sys.modules if name.startswith(("decoding.cli", "decoding.evals.cli", "typer"))}
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
