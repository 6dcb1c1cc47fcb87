"""The pages of the API reference: which names stand on which page. Their text is that of the docstrings.

A page is made of what ``__all__`` of the package and of its modules lists, so that a name that is added to one of these
appears by itself.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import decoding
from decoding.tools.website.links import ROOT

__all__ = ["names_of_pages", "pages"]


class Reference(NamedTuple):
    """A page of the reference.

    Attributes:
        title: its heading.
        about: a line of Markdown under the heading.
        modules: whose names it shows.
    """

    title: str
    about: str
    modules: tuple[str, ...]


# The names of `decoding` itself, by the modules and packages that define them: the longest that fits decides. A name
# that none fits is on the first page.
OWN = {
    "functions": Reference("Functions", "What a program calls: load a model, generate, export.", ()),
    "strategies": Reference(
        "Strategies",
        "[Which strategy to choose](../strategies.md#which-strategy-to-choose); the methods of all: [bases](bases.md).",
        ("decoding.strategies", "decoding.generation.warpers"),
    ),
    "scoring": Reference("Scoring", "Scores of given answers.", ("decoding.scoring",)),
    "streams": Reference(
        "Streams and sessions",
        "[Concepts](../concepts.md) says how these belong together.",
        ("decoding.stream", "decoding.capabilities", "decoding.generation"),
    ),
    "errors": Reference("Errors", "What is raised, and when.", ("decoding.errors", "decoding.models.forward_errors")),
}
# The names that modules list in `__all__`: of a package that lists some, these. Of one that lists none, or is given
# with `.*`, those of all that is in it.
MODULES = {
    "bases": Reference(
        "Bases of strategies",
        "[Add a strategy](../../CONTRIBUTING.md#add-a-strategy) says which base suits which strategy.",
        (
            "decoding.strategies.contrast.base",
            "decoding.strategies.contrast.session",
            "decoding.strategies.contrast.weighted",
            "decoding.strategies.contrast.strengths",
            "decoding.strategies.contrast.readers",
            "decoding.strategies.stream_strategy",
            "decoding.generation.candidates",
            "decoding.parameters",
        ),
    ),
    "kernels": Reference("Kernels", "[Kernels](../kernels.md) says which form runs where.", ("decoding.kernels",)),
    "evals-engine": Reference(
        "Evaluation engine",
        "[Write a task of your own](../evaluation.md#write-a-task-of-your-own).",
        ("decoding.evals.engine", "decoding.evals.sandbox"),
    ),
    "evals-tasks": Reference(
        "Evaluation tasks", "[Evaluation](../evaluation.md) has their commands.", ("decoding.evals.tasks",)
    ),
    "evals-metrics": Reference(
        "Metrics", "[Metrics](../metrics.md) says what they measure.", ("decoding.evals.metrics.*",)
    ),
    "evals-isotropy": Reference(
        "Isotropy", "[Isotropy](../isotropy.md) says what the figures mean.", ("decoding.evals.isotropy",)
    ),
    "evals-heads": Reference(
        "Retrieval heads",
        "[Retrieval heads](../contrasts.md#retrieval-heads) says how they are found.",
        ("decoding.evals.heads",),
    ),
    "evals-compare": Reference("Comparing", "Texts of several strategies side by side.", ("decoding.evals.compare",)),
    "evals-harness": Reference(
        "lm-evaluation-harness", "[lm-eval](../lm-eval.md) has the command.", ("decoding.evals.harness",)
    ),
    "evals-miniature": Reference(
        "Embedded models",
        "The embedded models, and the small world that they know.",
        ("decoding.evals.miniature", "decoding.evals.builtin"),
    ),
}


def pages() -> dict[str, str]:
    """Return the Markdown of each page, by its name without a suffix."""
    written = {page: [f"# {reference.title}\n\n{reference.about}\n"] for page, reference in (OWN | MODULES).items()}
    for page, listed in names_of_pages().items():
        for module, names in listed:
            if module == "decoding":
                # The methods that a strategy overrides are those of its base.
                options = "    options:\n      members: false\n" if page == "strategies" else ""
                written[page] += [f"::: decoding.{name}\n{options}" for name in names]
            else:
                members = "".join(f"\n        - {name}" for name in names)
                written[page].append(f"::: {module}\n    options:\n      members:{members}\n")
    return {page: "\n".join(parts) for page, parts in written.items()}


def names_of_pages() -> dict[str, list[tuple[str, list[str]]]]:
    """Return the modules of each page, with the names that the page shows of each."""
    own: dict[str, list[str]] = {page: [] for page in OWN}
    for name in decoding.__all__:
        own[_page_of(name)].append(name)
    listed: dict[str, list[tuple[str, list[str]]]] = {page: [("decoding", names)] for page, names in own.items()}
    for page, reference in MODULES.items():
        listed[page] = [entry for module in reference.modules for entry in _public(module)]
    return listed


def _page_of(name: str) -> str:
    home = decoding._HOMES.get(name, "")
    fitting = [
        (len(module), page)
        for page, reference in OWN.items()
        for module in reference.modules
        if f"{home}.".startswith(f"{module}.")
    ]
    return max(fitting)[1] if fitting else next(iter(OWN))


def _public(module: str) -> Iterator[tuple[str, list[str]]]:
    package = module.removesuffix(".*")
    path = ROOT.joinpath(*package.split("."))
    names = _listed(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    if names and package == module:
        # A function with the name of its module, which a reader of files would find in its place.
        hidden = [name for name in names if (path / f"{name}.py").is_file()]
        yield module, [name for name in names if name not in hidden]
        yield from ((f"{module}.{name}", [name]) for name in hidden)
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if (inner / "__init__.py").is_file() or (inner.suffix == ".py" and inner.stem != "__init__"):
                yield from _public(f"{package}.{inner.stem}")


@functools.cache
def _listed(file: Path) -> tuple[str, ...]:
    """Return the ``__all__`` of a module that is not imported: some need what is not installed."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            return tuple(ast.literal_eval(node.value))
    return ()
