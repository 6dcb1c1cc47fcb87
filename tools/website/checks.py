"""Checks of the built site: pages are what a forge shows, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

__all__ = ["BuiltPage", "structures"]

STRUCTURE = ("h1", "h2", "h3", "h4", "li", "pre", "table", "tr", "blockquote")


def structures(markdown: str, html: str) -> tuple[dict[str, int], dict[str, int]]:
    """Count the parts of a page as a forge shows it, and in its HTML on the site: headings, items, blocks, tables.

    Forges follow CommonMark, the site Python-Markdown, which nests what is indented by four spaces and begins a list
    after an empty line only.
    """
    forge = MarkdownIt("commonmark").enable("table").render(markdown)
    return _counted(forge), _counted(html)


def _counted(html: str) -> dict[str, int]:
    return {tag: count for tag in STRUCTURE if (count := len(re.findall(rf"<{tag}[ >]", html)))}


class BuiltPage(HTMLParser):
    """A page of the site: its anchors, and the addresses beyond the site that a browser would load.

    Attributes:
        ids: of all elements.
        elsewhere: addresses of scripts, style sheets, images and frames.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.elsewhere: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchor of an element, and what it loads."""
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        loaded = values.get("href" if tag == "link" else "src")
        if loaded and re.match(r"(\w+:)?//", loaded):
            self.elsewhere.append(loaded)
