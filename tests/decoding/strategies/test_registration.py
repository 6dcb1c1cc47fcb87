"""Strategies of other packages: by entry point, and by ``decoding.register``."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from forked_process import after_fork, forget
from tiny_models import random_ids, tiny_model

import decoding
from decoding import ContrastiveSearch, DecodingWarning, DoLa, OptionError, Strategy
from decoding.strategies.registration import StrategyRegistry
from decoding.strategies.registry import STRATEGIES, exportable_strategies, parse_strategy, scorable_strategies

CODE = """
from dataclasses import dataclass
from decoding import ContrastiveSearch

@dataclass(frozen=True)
class Plugged(ContrastiveSearch):
    extra: int = 1

class NoStrategy:
    pass
"""
ENTRIES = """[decoding.strategies]
plugged = plugged:Plugged
absent = plugged:Absent
odd = plugged:NoStrategy
gone = nowhere:Strategy
dola = plugged:Plugged
Bad Name = plugged:Plugged
"""


def _installed(folder: Path, name: str, entries: str) -> None:
    """Make a folder on ``sys.path`` hold a distribution of this name."""
    facts = folder / f"{name}-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(entries)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two installed distributions; the second names a strategy as the first does."""
    (tmp_path / "plugged.py").write_text(CODE)
    _installed(tmp_path, "plugging", ENTRIES)
    _installed(tmp_path, "rival", "[decoding.strategies]\nplugged = rival:Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("plugged", None)


def test_entry_points_follow_the_built_in_strategies(packages: Path) -> None:
    registry = StrategyRegistry({"dola": "decoding.strategies.dola:DoLa"})
    with pytest.warns(DecodingWarning) as warned:
        names = list(registry)
    assert names == ["dola", "plugged", "absent", "odd", "gone"]
    assert sorted(str(warning.message) for warning in warned) == [
        "strategy Bad Name of package plugging is left out: a name must be lower-case words with hyphens between them",
        "strategy dola of package plugging is left out: the name is taken by this library",
        "strategy plugged of package rival is left out: the name is taken by package plugging",
    ]
    assert list(registry) == names  # no second warning
    assert "plugged" not in sys.modules
    assert registry["dola"] is DoLa
    plugged = registry["plugged"]
    assert (plugged.name, plugged(extra=3).extra, registry.name_of(plugged)) == ("plugged", 3, "plugged")
    assert registry.requirement_of("plugged") == "plugging>=1.2"
    assert registry.requirement_of("dola") is None
    with pytest.raises(KeyError):
        registry["no such"]


@pytest.mark.filterwarnings("ignore::decoding.DecodingWarning")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "strategy absent of package plugging: plugged:Absent cannot be imported (AttributeError: "),
        ("gone", "strategy gone of package plugging: nowhere:Strategy cannot be imported (ModuleNotFoundError: "),
        (
            "odd",
            "strategy odd of package plugging: plugged:NoStrategy must be a dataclass derived from decoding.Strategy",
        ),
    ],
)
def test_a_broken_entry_is_one_line_that_names_the_package(packages: Path, name: str, message: str) -> None:
    registry = StrategyRegistry({})
    with pytest.raises(OptionError) as raised:
        registry[name]
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def _said_by_commands(packages: Path, output: Path) -> None:
    """Be a process in which the packages were installed before anything of this library was imported."""
    after_fork()
    forget("decoding")
    sys.path_importer_cache.clear()
    os.environ["COLUMNS"] = "300"
    warnings.simplefilter("ignore")
    from transformers import AutoModelForCausalLM
    from typer.testing import CliRunner

    import decoding
    from decoding.evals import miniature
    from decoding.evals.cli import app
    from decoding.strategies.registry import parse_strategy, scorable_strategies
    from decoding.strategies.stored import stored_strategy

    runner = CliRunner()
    said: dict[str, Any] = {"label": parse_strategy("plugged:extra=2,top_k=3").label, "scorable": scorable_strategies()}
    said["help"] = ["plugged" in runner.invoke(app, [command, "--help"]).output for command in ("generate", "export")]
    made = runner.invoke(
        app,
        [
            "generate",
            "--strategy",
            "plugged",
            "--set",
            "extra=2",
            "--prompt",
            "The old",
            "--json",
            "--max-new-tokens",
            "3",
        ],
    )
    said["generated"] = json.loads(made.stdout)["parameters"]
    folder = decoding.export(str(miniature.folder("amateur")), "plugged:extra=5", str(packages / "exported"))
    said["requirements"] = (folder / "custom_generate" / "requirements.txt").read_text().splitlines()
    said["stored"] = stored_strategy(AutoModelForCausalLM.from_pretrained(folder), None, {}).extra
    output.write_text(json.dumps(said))


def test_every_command_knows_the_strategies_of_other_packages(packages: Path) -> None:
    output = packages / "said.json"
    process = multiprocessing.get_context("fork").Process(target=_said_by_commands, args=(packages, output))
    process.start()
    process.join()
    assert process.exitcode == 0
    said: dict[str, Any] = json.loads(output.read_text())
    assert said["label"] == "plugged(penalty_alpha=0.6, top_k=3, extra=2)"
    assert said["scorable"] == scorable_strategies()  # plugged is none, and those that cannot be imported are left out
    assert said["help"] == [True, True]
    assert said["generated"]["extra"] == 2
    assert said["requirements"][1:] == ["plugging>=1.2"]
    assert said["stored"] == 5


@dataclass(frozen=True)
class Registered(ContrastiveSearch):
    """A strategy of these tests."""

    extra: int = 1


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have registrations undone after the test."""
    monkeypatch.setattr(STRATEGIES, "_registered", {})


def test_a_registered_strategy_is_known_by_its_name(clean: None) -> None:
    assert decoding.register("a-registered-one")(Registered) is Registered  # as a decorator
    decoding.register("a-registered-one", Registered)  # once more, as a call
    assert Registered.name == "a-registered-one"
    assert "a-registered-one" in exportable_strategies()
    strategy = parse_strategy("a-registered-one:extra=4,top_k=2").strategy
    assert strategy == Registered(top_k=2, extra=4)
    assert STRATEGIES.name_of(Registered) == "a-registered-one"
    assert STRATEGIES.requirement_of("a-registered-one") is None
    model, ids = tiny_model("llama"), random_ids(1, 6)
    expected = decoding.generate(model, ids, strategy=ContrastiveSearch(top_k=2), max_new_tokens=4)
    stored = {"name": "a-registered-one", "top_k": 2}
    assert torch.equal(decoding.generate(model, ids, decoding_strategy=stored, max_new_tokens=4), expected)


def test_what_cannot_be_registered_is_one_line(clean: None) -> None:
    @dataclass(frozen=True)
    class Named(ContrastiveSearch):
        name: ClassVar[str] = "another"

    for name, strategy_class, message in (
        ("dola", Registered, "strategy dola: the name is taken by decoding.strategies.dola:DoLa"),
        ("Not a name", Registered, "strategy 'Not a name': a name must be lower-case words"),
        ("number", int, "strategy number: builtins:int must be a dataclass derived from decoding.Strategy"),
        ("named", Named, "has the name 'another'; it must be 'named'"),
    ):
        with pytest.raises(OptionError) as raised:
            decoding.register(name, strategy_class)
        assert message in str(raised.value)
        assert name == "dola" or name not in STRATEGIES


def test_a_strategy_that_lacks_a_method_is_not_registered(clean: None) -> None:
    @dataclass(frozen=True)
    class Unfinished(Strategy):
        """A strategy without a session."""

    with pytest.raises(OptionError, match=r"strategy unfinished: .*Unfinished lacks session, which it must have"):
        decoding.register("unfinished", Unfinished)
    for name, strategy in ((5, Unfinished), ("unfinished", Unfinished.__name__), ("unfinished", 0)):
        with pytest.raises(OptionError, match=r"strategy (5|unfinished): .*must be"):
            decoding.register(name, strategy)  # type: ignore[arg-type, type-var]
