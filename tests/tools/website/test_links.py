"""Links of the repository lead to pages of the site."""

from __future__ import annotations

import pytest

from decoding.tools.website.links import ROOT, linked_paths, page_of_code, with_links_of_the_site


@pytest.mark.parametrize(
    ("page", "markdown", "led"),
    [
        ("index.md", "[concepts.md](concepts.md)", "[Concepts](concepts.md)"),
        ("index.md", "[a](../README.md#use-it)", "[a](overview.md#use-it)"),
        ("index.md", "[examples/](../examples)", "[examples/](examples.md)"),
        ("overview.md", "[docs/scale.md](docs/scale.md)", "[Several devices, several processes](scale.md)"),
        ("overview.md", "[a](examples/own_strategy.py)", "[a](sources/examples/own_strategy.py.md)"),
        ("overview.md", "[a](CHANGELOG.md) and [b](docs/index.md)", "[a](changelog.md) and [b](index.md)"),
        ("api/bases.md", "[a](../../CONTRIBUTING.md#add-a-kernel)", "[a](../contributing.md#add-a-kernel)"),
        ("api/bases.md", "[a](../kernels.md)", "[a](../kernels.md)"),
        ("api/bases.md", "[bases](streams.md)", "[bases](streams.md)"),  # a page of the site alone
        ("index.md", "[a](https://example.org/README.md) [b](#here)", "[a](https://example.org/README.md) [b](#here)"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_its_target(page: str, markdown: str, led: str) -> None:
    assert with_links_of_the_site(markdown, page) == led


def test_code_that_a_page_links_to_is_shown() -> None:
    assert list(linked_paths("[a](examples/own_strategy.py), [b](absent.py)", "overview.md")) == [
        "examples/own_strategy.py"
    ]
    page = page_of_code(ROOT / "examples")
    for script in ROOT.glob("examples/*.py"):
        assert f"## `{script.name}`" in page
        assert script.read_text(encoding="utf-8") in page
