"""Where links lead: those of the repository, which forges follow, and the pages of the site that take their place."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import decoding

__all__ = ["BESIDE", "ROOT", "linked_paths", "page_of", "page_of_code", "with_links_of_the_site"]

ROOT = Path(decoding.__file__).resolve().parents[1]
# What beside docs/ is a page of the site, by its path in the repository. Another file or folder that a page links to is
# shown on a page of its own, in sources/.
BESIDE = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples.md",
}
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)([)#])")  # its text, the path, and what follows the path


def page_of(path: str) -> str:
    """Return the page that shows a path of the repository, relative to docs/."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return BESIDE.get(path, f"sources/{path}.md")


def linked_paths(markdown: str, page: str) -> Iterator[str]:
    """Yield the paths in the repository, of what is there, that a page links to."""
    for _, link, _ in LINK.findall(markdown):
        path = _target(link, page)
        if (ROOT / path).exists():
            yield path


def with_links_of_the_site(markdown: str, page: str) -> str:
    """Lead the links of a page to pages of the site, and call these by their titles where the text is a file's name.

    What leads to nothing in the repository is left as it is: a page of the site alone, or a fault that mkdocs reports.
    """

    def led(link: re.Match[str]) -> str:
        path = _target(link[2], page)
        if not (ROOT / path).exists():
            return link[0]
        text = _title(ROOT / path) if link[1].endswith(".md") else link[1]
        return f"[{text}]({posixpath.relpath(page_of(path), posixpath.dirname(page))}{link[3]}"

    return LINK.sub(led, markdown)


def page_of_code(path: Path) -> str:
    """Return a page that shows a file, or all scripts of a folder."""
    scripts = [path] if path.is_file() else sorted(path.glob("*.py"))
    codes = [f"`{script.name}`\n\n````python\n{script.read_text(encoding='utf-8')}````\n" for script in scripts]
    title = path.relative_to(ROOT).as_posix()
    return f"# {title}\n\n" + "\n".join(code if path.is_file() else f"## {code}" for code in codes)


def _target(link: str, page: str) -> str:
    """Return the path in the repository that a link of a page leads to."""
    source = next((path for path, name in BESIDE.items() if name == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
