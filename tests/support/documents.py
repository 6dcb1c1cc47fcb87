"""The documents of the repository, and the code and the command lines in them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "CHANGES",
    "DOCUMENTS",
    "FENCE",
    "GUIDES",
    "ROOT",
    "SPAN",
    "blocks",
    "command_lines",
    "commands_in_spans",
    "ids",
    "read",
    "words_of",
]

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHANGES = ROOT / "CHANGELOG.md"
DOCUMENTS = [*GUIDES, CHANGES]

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|[\s(])(?:decoding|python -m decoding\.evals\.cli|-m decoding\.evals\.cli) +([a-z].*)")


def read(document: Path) -> str:
    """Return the text of a document."""
    return document.read_text(encoding="utf-8")


def ids(documents: list[Path]) -> list[str]:
    """Return the names of documents, for the cases of a test."""
    return [document.name for document in documents]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, as they would stand at the margin."""
    return [
        re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        for indent, tongue, code in FENCE.findall(text)
        if tongue == language
    ]


def command_lines(text: str) -> Iterator[str]:
    """Yield what follows ``decoding`` in blocks of shell; a line that goes on is one line."""
    shell = [code for language in ("", "sh", "bash", "console") for code in blocks(text, language)]
    shell += re.findall(r"^ {4,}(\S.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    yield from _commands("\n".join(shell).replace("\\\n", " ").splitlines())


def commands_in_spans(text: str) -> Iterator[str]:
    """Yield what follows ``decoding`` in spans of code."""
    yield from _commands(SPAN.findall(FENCE.sub("", text)))


def _commands(pieces: list[str]) -> Iterator[str]:
    for piece in pieces:
        if line := COMMAND.search(piece):
            yield line.group(1)


def words_of(line: str) -> list[str]:
    """Split a command line as bash does, without its comment."""
    plain = re.sub(r"\$'(.*?)'", lambda quoted: shlex.quote(ast.literal_eval(f"'{quoted[1]}'")), line)
    return shlex.split(plain, comments=True)
