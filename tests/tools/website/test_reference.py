"""The API reference has every public name on one page, and the navigation every page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import decoding
from decoding.tools.website.reference import names_of_pages, pages

ROOT = Path(decoding.__file__).resolve().parents[1]
# Made of what is beside docs/, and of what the embedded models write.
BESIDE = {"overview.md", "examples.md", "contributing.md", "changelog.md", "gallery.md"}


def test_every_public_name_of_the_package_is_on_one_page() -> None:
    shown = [line.split()[1] for text in pages().values() for line in text.splitlines() if line.startswith(":::")]
    assert sorted(name for name in decoding.__all__ if shown.count(f"decoding.{name}") != 1) == []


@pytest.mark.parametrize(
    ("page", "modules"),
    [
        ("kernels", {f"decoding.kernels.{file.parent.name}" for file in ROOT.glob("kernels/*/naive.py")}),
        ("evals-engine", {f"decoding.evals.engine.{file.stem}" for file in ROOT.glob("evals/engine/[a-z]*.py")}),
        ("evals-tasks", {f"decoding.evals.tasks.{file.stem}" for file in ROOT.glob("evals/tasks/[a-z]*.py")}),
        ("evals-metrics", {f"decoding.evals.metrics.{file.stem}" for file in ROOT.glob("evals/metrics/[a-z]*.py")}),
    ],
)
def test_every_operation_and_module_of_evaluations_is_on_its_page(page: str, modules: set[str]) -> None:
    assert len(modules) > 1
    assert modules - {module for module, _ in names_of_pages()[page]} == set()


def test_a_function_with_the_name_of_its_module_is_found_in_that() -> None:
    assert ("decoding.evals.miniature.questions", ["questions"]) in names_of_pages()["evals-miniature"]


def test_the_navigation_has_every_page_once() -> None:
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)["nav"]
    here = {path.name for path in ROOT.glob("docs/*.md")} | {f"api/{page}.md" for page in pages()} | BESIDE
    assert sorted(_pages(nav)) == sorted(here)


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in _pages(entry)]
