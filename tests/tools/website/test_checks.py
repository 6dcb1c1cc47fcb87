"""What would make `make docs` fail."""

from __future__ import annotations

from decoding.tools.website.checks import BuiltPage, structures


def test_lists_that_only_a_forge_nests_have_another_structure() -> None:
    nested = "1. one\n    - two\n"
    html = "<ol><li>one<ul><li>two</li></ul></li></ol>"
    assert structures(nested, html) == ({"li": 2}, {"li": 2})
    joined = "A list:\n- one\n- two\n"  # Python-Markdown makes one paragraph of it
    assert structures(joined, "<p>A list: - one - two</p>") == ({"li": 2}, {})
    table = "# T\n\n| a |\n|---|\n| b |\n"
    assert structures(table, "")[0] == {"h1": 1, "table": 1, "tr": 2}


def test_what_a_page_loads_from_elsewhere_is_seen_and_what_it_links_to_is_not() -> None:
    page = BuiltPage(
        '<link rel="stylesheet" href="//fonts.example/a.css"><link href="assets/b.css"><h2 id="decoding.load"></h2>'
        '<script src="https://cdn.example/c.js"></script><a href="https://example.org"></a><img src="d.png">'
    )
    assert page.elsewhere == ["//fonts.example/a.css", "https://cdn.example/c.js"]
    assert "decoding.load" in page.ids
