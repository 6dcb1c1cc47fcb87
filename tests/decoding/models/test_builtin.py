"""Models of installed packages are known by name, the embedded ones among them."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from forked_process import forget, forked
from transformers import AttentionInterface

import decoding
from decoding import DecodingWarning, OptionError, entry_points
from decoding.entry_points import EntryPointTable
from decoding.evals import builtin, miniature
from decoding.models import loading
from decoding.models.builtin import BUILT_IN, BUILT_IN_ADAPTERS


def _table(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> EntryPointTable[Any]:
    monkeypatch.setattr(entry_points, "entry_points", lambda group: EntryPoints(entries).select(group=group))
    return EntryPointTable("decoding.adapters", "adapter", BUILT_IN_ADAPTERS.locations)


def test_the_embedded_models_are_known() -> None:
    assert BUILT_IN["expert"] is builtin.load_expert
    assert BUILT_IN["amateur"] is builtin.load_amateur
    assert BUILT_IN_ADAPTERS["induced"] == miniature.folder("induced")
    assert BUILT_IN_ADAPTERS.get("else") is None


def test_another_packages_objects_are_imported_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(
        monkeypatch,
        EntryPoint("mine", "os:sep", "decoding.adapters"),
        EntryPoint("broken", "no_such_package:FOLDER", "decoding.adapters"),
        EntryPoint("a model", "os:sep", "decoding.models"),
    )
    assert list(table) == ["induced", "mine", "broken"]
    assert len(table) == 3
    assert "broken" in table
    assert table["mine"] == os.sep
    message = r"adapter broken of package \(unknown\): no_such_package:FOLDER cannot be imported \(ModuleNotFoundError"
    with pytest.raises(OptionError, match=message):
        table["broken"]


def test_a_name_of_this_library_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(monkeypatch, EntryPoint("induced", "os:sep", "decoding.adapters"))
    with pytest.warns(DecodingWarning, match=r"adapter induced of .* is left out: the name is taken by this library"):
        assert list(table) == ["induced"]
    assert table["induced"] == miniature.folder("induced")


def test_a_broken_model_of_another_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints([EntryPoint("mine", "no_such_package:load", "decoding.models")])
    monkeypatch.setattr(entry_points, "entry_points", lambda group: entries)
    monkeypatch.setattr(loading, "BUILT_IN", EntryPointTable("decoding.models", "model", {}))
    with pytest.raises(OptionError, match=r"model mine of package .* cannot be imported"):
        decoding.load("mine")


def test_in_a_process_embedded_models_need_no_command_line_and_imports_change_no_attention() -> None:
    """The process is a fork of this one that forgets the library, and what else only the command line imports."""

    def imported() -> tuple[bool, list[str]]:
        forget("decoding", "typer")
        before = AttentionInterface()["sdpa"]
        decoding = importlib.import_module("decoding")
        for name in ("api", "models.attention", "stream.stream"):
            importlib.import_module(f"decoding.{name}")
        unchanged = AttentionInterface()["sdpa"] is before
        model, _ = decoding.load("expert", "cpu")
        for amateur in ("amateur", "induced"):
            strategy = decoding.ContrastiveDecoding(amateur)
            decoding.generate(model, torch.tensor([[5, 6, 7]]), strategy=strategy, max_new_tokens=1)
        command_line = ("decoding.cli", "decoding.evals.cli", "typer")
        return unchanged, [name for name in sys.modules if name.startswith(command_line)]

    assert forked(imported) == (True, [])
