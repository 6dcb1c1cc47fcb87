"""The gallery: pages that ``decoding compare --html`` makes with the embedded models, as the site is built."""

from __future__ import annotations

import contextlib
import functools
import io
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from decoding.evals.cli import main

__all__ = ["GALLERY", "Exhibit", "gallery_page", "html_of"]


@dataclass(frozen=True)
class Exhibit:
    """A page of the gallery.

    Attributes:
        title: its heading.
        about: what to look for, a paragraph of Markdown.
        prompt: the text that is continued.
        strategies: of the command, in this order.
        max_new_tokens: of each text.
    """

    title: str
    about: str
    prompt: str
    strategies: tuple[str, ...]
    max_new_tokens: int

    def command(self, file: str) -> list[str]:
        """Return the words after ``decoding`` that write the page to a file."""
        strategies = [word for strategy in self.strategies for word in ("--strategy", strategy)]
        length = ["--max-new-tokens", str(self.max_new_tokens)]
        return ["compare", "--prompt", self.prompt, *strategies, *length, "--html", file]


@functools.cache  # for pages that are built again while they are written
def html_of(exhibit: Exhibit) -> str:
    """Run the command of a page and return what it wrote.

    Raises:
        RuntimeError: the command failed; with what it said.
    """
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
        file = Path(folder) / "explained.html"
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(exhibit.command(str(file)))
        if code:
            raise RuntimeError(f"decoding {shlex.join(exhibit.command(file.name))}: {said.getvalue().strip()}")
        return file.read_text(encoding="utf-8")


GALLERY = {
    "story": Exhibit(
        "A story that repeats itself",
        "Greedy search writes the same sentence again and again. Shade the tokens by *penalty* to see where "
        "contrastive search and FSD turned away from a repetition.",
        "Nobody in the valley knew why",
        ("greedy", "contrastive-search:penalty_alpha=0.4", "fsd"),
        64,
    ),
    "question": Exhibit(
        "A question whose popular answer is false",
        "The Fermar bear eats ants; at the market they say honey. Shade the tokens by *reader disagreement*: a "
        "contrast acts where its readers differ.",
        "Q: What does the Fermar bear eat?\nA:",
        (
            "greedy",
            "contrastive-decoding:amateur=amateur",
            "dola:layers=2",
            "lol:amateur=amateur,lower_layers=0.75,amateur_weight=0.25",
        ),
        16,
    ),
}


def gallery_page() -> str:
    """Return the page that leads to the others, as Markdown."""
    parts = [
        "# Gallery\n\nPages of `decoding compare --html` with the embedded models. "
        "[Why this token](why-this-token.md) explains what they show.\n"
    ]
    for name, exhibit in GALLERY.items():
        command = " ".join(map(_typed, exhibit.command(f"{name}.html")))
        parts.append(f"## [{exhibit.title}](gallery/{name}.html)\n\n{exhibit.about}\n\n    decoding {command}\n")
    return "\n".join(parts)


def _typed(word: str) -> str:
    """Return a word as a shell reads it, on one line."""
    if "\n" not in word:
        return shlex.quote(word)
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
