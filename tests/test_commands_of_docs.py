"""The command lines of the documents run: on the embedded models, but for those that need what a reader has.

Such a line says so: by a word in CAPITALS (``PATH``), by the name of a file or folder (``TruthfulQA.csv``, ``wit/``),
or by that of a model that ``decoding fetch`` brings. It is read to its end, options and their values.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import GUIDES, ROOT, command_lines, commands_in_spans, read, words_of

from decoding.evals import miniature
from decoding.evals.cli import app, main
from decoding.models.releases import RELEASES

MARK = re.compile(rf"\b[A-Z]{{3,}}\b|\.(?:csv|gguf|json|jsonl|png|txt|wav)\b|/$|{'|'.join(RELEASES)}")
OPERATORS = {"|", ">", "<", "&&", "||", ";"}  # of a shell, after which another command or a file stands
# The rest of a line, for fewer tokens and documents than a reader has.
SHORTER = {
    "doctor": (),
    "generate": ("--max-new-tokens", "2"),
    "compare": ("--max-new-tokens", "2"),
    "eval": ("--limit", "1"),
    "tune": ("--limit", "2", "--validation", "1"),
}
# What takes seconds even so: how such a line begins, and where a test runs it on the embedded models.
ELSEWHERE = {
    ("demo",): ("tests/evals/test_cli.py", '["demo", "--max-new-tokens", "8"'),
    ("eval", "truthfulqa", "--miniature", "--generation"): (
        "tests/evals/tasks/truthfulqa/test_generation.py",
        '["eval", "truthfulqa", "--generation", "--miniature", "--limit", "3"',
    ),
    ("play",): ("tests/decoding/cli/test_play.py", 'main(["play", "--model", "amateur", "--port"'),
    ("isotropy", "--model", "expert"): (
        "tests/evals/isotropy/test_command.py",
        '["isotropy", "--model", "expert", "--model", "amateur", "--data"',
    ),
    ("lm-eval", "--", "--tasks", "miniature"): (
        "tests/evals/harness/test_command.py",
        '"--model_args", "pretrained=expert,strategy=lol,amateur=induced,lower_layers=0.5;0.75',
    ),
    ("tune", "truthfulqa", "--miniature", "--output"): (
        "tests/evals/tasks/truthfulqa/test_multiple_choice.py",
        '["tune", "truthfulqa", "--miniature", "--limit", "6", *given, "--output"',
    ),
}


def lines_of_documents() -> Iterator[list[str]]:
    """Yield the words of every line in blocks, and of those in tables that have options."""
    for document in GUIDES:
        text = read(document)
        tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        yield from map(words_of, command_lines(text))
        yield from (words_of(line) for line in commands_in_spans(tables) if " --" in line)


@functools.cache
def command_line() -> Any:
    return typer.main.get_command(app)


def before_operator(words: list[str]) -> tuple[str, ...]:
    return tuple(itertools.takewhile(lambda word: word not in OPERATORS, words))


LINES = sorted(set(map(before_operator, lines_of_documents())))
MARKED = [line for line in LINES if any(map(MARK.search, line))]
BEGUN = {line: start for line in LINES for start in ELSEWHERE if line[: len(start)] == start and line not in MARKED}
RUN = [line for line in LINES if line not in MARKED and line not in BEGUN]


@pytest.fixture(scope="module")
def models_loaded_once() -> Iterator[None]:
    """Keep the embedded models from one line to the next: no strategy changes a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "load", functools.cache(miniature.load))
        yield


@pytest.mark.usefixtures("models_loaded_once")
@pytest.mark.parametrize("line", RUN, ids=" ".join)
def test_a_line_runs(
    line: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([*line, *SHORTER[line[0]]])
    out, err = capsys.readouterr()
    assert (code, bool(out.strip())) == (0, True), err


@pytest.mark.parametrize("line", MARKED, ids=" ".join)
def test_a_line_with_what_the_reader_has_can_be_read(line: tuple[str, ...]) -> None:
    command = command_line()
    words = list(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("decoding", words)  # an option, a value or a strategy that is not known raises an error


@pytest.mark.parametrize(("line", "start"), BEGUN.items(), ids=map(" ".join, BEGUN))
def test_a_line_that_takes_seconds_is_run_elsewhere(line: tuple[str, ...], start: tuple[str, ...]) -> None:
    file, call = ELSEWHERE[start]
    assert call in (ROOT / file).read_text(encoding="utf-8")


def test_every_kind_of_line_was_found() -> None:
    assert len(RUN) > 30
    assert len(MARKED) > 40
    assert {line[0] for line in RUN} == set(SHORTER)
    assert set(BEGUN.values()) == set(ELSEWHERE)
