"""The order of the floors: imports run down, wherever they stand in a file."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("evals", "kernels", "tools")  # top-level folders that are subpackages of decoding by links

# From the top to the bottom. A module may import modules of its own floor and of floors below it. A name stands for a
# module or a package with all that is in it; the longest name that fits a module is its floor.
FLOORS = [
    "decoding.tools",
    "decoding.evals.cli",
    "decoding.evals.commands",
    "decoding.evals.harness",
    "decoding.evals.compare",
    "decoding.evals.heads",
    "decoding.evals.isotropy",
    "decoding.evals.tasks",
    "decoding.evals.metrics",
    "decoding.evals.ray_workers",
    "decoding.evals.engine",
    "decoding.evals.sandbox",
    "decoding.evals.builtin",
    "decoding.evals.miniature",
    "decoding.evals",
    "decoding",  # the package's public names
    "decoding.cli",
    "decoding.play",
    "decoding.serving",
    "decoding.exporting",
    "decoding.exported",
    "decoding.explanation",
    "decoding.text",
    "decoding.api",
    "decoding.scoring",
    "decoding.strategies",
    "decoding.generation",
    "decoding.drafts",
    "decoding.capabilities",
    "decoding.stream",
    "decoding.induce",
    "decoding.rows",
    "decoding.models",
    "decoding.cache",
    "decoding.transformers_private",
    "decoding.versions",
    "decoding.lazy",
    "decoding.entry_points",
    "decoding.parameters",
    "decoding.errors",
    "decoding.kernels",
    "decoding.files",
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, those behind links included."""
    found = {}
    for folder in ("decoding", *LINKS):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "decoding" and parts[1] in LINKS:
                continue  # the links, whose targets are read under their own path
            parts = parts if parts[0] == "decoding" else ("decoding", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


@functools.cache
def imports_of(name: str) -> list[tuple[str, int]]:
    """The project's modules that a module imports, with the line: function-local and TYPE_CHECKING ones included."""
    return list(_imports_of(name))


def _imports_of(name: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "decoding":
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                base = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
                package = ".".join([*base[: len(base) - node.level + 1], *filter(None, [node.module])])
            if package.split(".")[0] != "decoding":
                continue
            for alias in node.names:
                submodule = f"{package}.{alias.name}"
                yield (submodule if submodule in MODULES else package), node.lineno


@functools.cache
def floor_of(module: str) -> int:
    """The index of a module's floor."""
    fitting = [floor for floor in FLOORS if module == floor or (floor != "decoding" and module.startswith(floor + "."))]
    if not fitting:
        pytest.fail(f"{module} stands on no floor: add its package to FLOORS, where it belongs")
    return FLOORS.index(max(fitting, key=len))


def test_imports_run_down() -> None:
    upward = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {target} ({MODULES[target].relative_to(ROOT)}), "
        f"which stands on a floor above"
        for module in MODULES
        for target, line in imports_of(module)
        if floor_of(target) < floor_of(module)
    ]
    assert not upward, "\n".join(upward)


def test_there_is_no_circle() -> None:
    """No module imports itself by way of others, on its own floor either."""
    graph = {module: [(target, line) for target, line in imports_of(module) if target != module] for module in MODULES}
    # A module's packages are imported with it.
    done: set[str] = set()

    def visit(module: str, path: list[tuple[str, int]]) -> None:
        names = [name for name, _ in path]
        if module in names:
            circle = path[names.index(module) :]
            pytest.fail(
                "circle: "
                + " -> ".join(f"{MODULES[name].relative_to(ROOT)}:{line}" for name, line in circle)
                + f" -> {MODULES[module].relative_to(ROOT)}"
            )
        if module in done:
            return
        for target, line in graph[module]:
            visit(target, [*path, (module, line)])
        done.add(module)

    for module in MODULES:
        visit(module, [])


def test_every_module_can_be_read_alone() -> None:
    """The test reads the package that is tested, links included."""
    assert len(MODULES) > 150
    assert "decoding.stream.stream" in MODULES
    assert "decoding.kernels.contrast" in MODULES
    assert "decoding.evals.engine.runner" in MODULES
