"""The documents name what is there: names, paths, links, commands with their options, and code that runs."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import (
    CHANGES,
    DOCUMENTS,
    FENCE,
    GUIDES,
    ROOT,
    SPAN,
    blocks,
    command_lines,
    commands_in_spans,
    ids,
    read,
    words_of,
)

import decoding
from decoding.errors import OptionError
from decoding.evals.cli import app
from decoding.strategies.registry import STRATEGIES, candidates_of, exportable_strategies, parse_strategy
from decoding.versions import NEWEST_TRANSFORMERS, OLDEST_TRANSFORMERS

FOLDERS = "benchmarks|decoding|docs|evals|examples|kernels|tests|tools"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*[\w/*](?![\w<])")
NAME = re.compile(r"(?<![\w./-])decoding(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"^PATH$|=PATH\b|\.(?:csv|jsonl|txt)$")  # a file or folder that the reader has
NEW_FILE = re.compile(r"^`([\w/]+\.py)`:$", re.MULTILINE)  # that a recipe shows: tests/test_recipes.py runs it
GROUPS = {"decoding.adapters", "decoding.models", "decoding.strategies"}  # of entry points
# Options of other programs that the documents name.
FOREIGN = {
    "--",
    "--apply_chat_template",
    "--continuous-batching",
    "--enable-lora",
    "--help",
    "--logprobs-mode",
    "--model_args",
    "--tasks",
    "--trust-remote-code",
}


def has(value: Any, name: str) -> bool:
    """Find an attribute of a value, or a field that a class declares without a default."""
    declared = [inspect.get_annotations(parent) for parent in value.__mro__] if isinstance(value, type) else []
    return hasattr(value, name) or any(name in annotations for annotations in declared)


def resolve(dotted: str) -> bool:
    """Follow a dotted name by imports and attributes; False where it leads nowhere."""
    value: Any = decoding
    path = "decoding"
    for part in dotted.split(".")[1:]:
        path = f"{path}.{part}"
        if not has(value, part):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        value = getattr(value, part, None)
    return True


def unknown_names(text: str) -> list[str]:
    shown = shown_modules(text)
    return sorted(
        name
        for name in set(NAME.findall(text))
        if not shown & {name, name.rpartition(".")[0]} and name not in GROUPS and not resolve(name)
    )


def shown_modules(text: str) -> set[str]:
    """The modules whose files a recipe shows."""
    paths = [path.removesuffix(".py").removesuffix("/__init__") for path in NEW_FILE.findall(text)]
    return {f"decoding.{path.removeprefix('decoding/').replace('/', '.')}" for path in paths}


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_names_can_be_imported(document: Path) -> None:
    assert unknown_names(read(document)) == []


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_attributes_of_public_classes_are_there(document: Path) -> None:
    named = re.findall(r"`([A-Z]\w+)\.([A-Za-z_]\w*)", read(document))
    public = [(getattr(decoding, name), attribute) for name, attribute in named if name in decoding.__all__]
    assert [pair for pair in public if not has(*pair)] == []


def calls_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of a public name in code, with its keywords."""
    for code in [*blocks(text, "python"), *SPAN.findall(text)]:
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue  # a span that is no Python, or has an ellipsis
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).removeprefix("decoding.")
                if name in decoding.__all__:
                    yield name, [keyword.arg for keyword in node.keywords if keyword.arg is not None]


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_calls_of_public_names_have_keywords_that_are_there(document: Path) -> None:
    faults = []
    for name, keywords in calls_of(read(document)):
        parameters = inspect.signature(getattr(decoding, name)).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            faults += [f"{name}({keyword}=)" for keyword in keywords if keyword not in parameters]
    assert faults == []


def test_the_table_of_strategies_has_their_defaults() -> None:
    spans = re.findall(r"^\| `((\w+)\(.*\))` \|", read(ROOT / "docs" / "strategies.md"), flags=re.MULTILINE)
    assert {name for _, name in spans} == {STRATEGIES[name].__name__ for name in exportable_strategies()}
    for call, name in spans:
        for keyword in ast.parse(call).body[0].value.keywords:  # type: ignore[attr-defined]
            default = inspect.signature(getattr(decoding, name)).parameters[keyword.arg].default
            assert "form=" in call or default == ast.literal_eval(keyword.value), call


def test_new_names_in_the_changelog_can_be_imported() -> None:
    """Old names stand in the first column of its tables and in its section on what was removed."""
    lines = kept(CHANGES).splitlines()
    rows = [line.rstrip("|").rpartition("|")[2] if line.startswith("|") else line for line in lines]
    assert unknown_names("\n".join(rows)) == []


def test_names_that_moved_are_where_the_changelog_says() -> None:
    rows = re.findall(r"^\| (`\w.*) \| `decoding[\w.]+` \| `(decoding[\w.]+)` \|$", read(CHANGES), flags=re.MULTILINE)
    assert len(rows) > 20
    names = [f"{module}.{name}" for row, module in rows for name in SPAN.findall(row)]
    assert [name for name in names if not resolve(name)] == []


def test_old_names_in_the_changelog_are_gone() -> None:
    rows = re.findall(r"^\| `(decoding(?:\.\w+)+)`[^|]*\| (.*) \|$", read(CHANGES), flags=re.MULTILINE)
    # Names that something else has taken: packages, and two functions.
    packages = ("cache", "cli", "evals.compare", "explanation", "generation", "scoring", "stream")
    taken = {f"decoding.{name}" for name in (*packages, "export", "evals.isotropy.verdict")}
    assert len(rows) >= 80
    assert [old for old, _ in rows if old not in taken and resolve(old)] == []


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_imports_of_code_blocks_can_be_made(document: Path) -> None:
    missing, shown = [], shown_modules(read(document))
    for code in blocks(read(document), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "decoding":
                if node.module in shown:
                    continue
                statement = ast.unparse(node)
                try:
                    exec(statement, {})
                except ImportError:
                    missing.append(statement)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", read(document))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in anchors(read(target))):
            broken.append(link)
    assert broken == []


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_paths_are_there(document: Path) -> None:
    paths = {path for path in PATH.findall(re.sub(r"\]\([^)]*\)", "]", read(document))) if "..." not in path}
    shown = set(NEW_FILE.findall(read(document)))
    assert sorted(path for path in paths - shown if not list(ROOT.glob(path.rstrip("/")))) == []


def names_of(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]  # --knowledge, --no-knowledge


def faults_of(group: Any, words: list[str]) -> Iterator[str]:
    """Each fault of a command line: an unknown command, an unknown option, a strategy that does not parse."""
    command, names = group, []
    words = list(words)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break
        if words[0] not in command.commands:
            yield f"{' '.join([*names, words[0]])}: no such command"
            return
        names.append(words[0])
        command = command.commands[words.pop(0)]
    known = {name: option for option in command.params for name in names_of(option)}
    while words:
        word = words.pop(0)
        if word in ("|", ">", "&&", "||", ";", "--"):
            return
        if not word.startswith("--") or word == "--help":
            continue
        name, equals, value = word.partition("=")
        if name not in known:
            yield f"{' '.join(names)}: no option {name}"
        elif not getattr(known[name], "is_flag", False):
            value = value if equals else (words.pop(0) if words else "")
            if name == "--strategy" and "..." not in value:
                yield from strategy_faults(value, names[0] == "tune")


def strategy_faults(spec: str, tuning: bool) -> Iterator[str]:
    spec = spec.removeprefix("$")
    try:
        for candidate in candidates_of(spec) if tuning else [spec]:
            parse_strategy(candidate)
    except OptionError as error:
        yield str(error)


def kept(document: Path) -> str:
    """The text of a document, without the changelog's section on what was removed."""
    return re.sub(r"^### Removed\n.*?(?=^### )", "", read(document), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def command_line() -> Any:
    """The command line, made once: it takes 70 ms."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_commands_know_their_options(document: Path) -> None:
    faults = []
    for line in [*command_lines(kept(document)), *commands_in_spans(kept(document))]:
        faults += faults_of(command_line(), words_of(line))
    assert faults == []


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_options_named_in_the_text_are_some_commands(document: Path) -> None:
    commands, known = [command_line()], set(FOREIGN)
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        known |= {name for option in command.params for name in names_of(option)}
    spans = SPAN.findall(FENCE.sub("", read(document)))
    assert [span for span in spans if span.startswith("--") and re.split("[ =]", span)[0] not in known] == []


@pytest.mark.parametrize("document", GUIDES, ids=ids(GUIDES))
def test_make_targets_and_extras_are_there(document: Path) -> None:
    text = read(document)
    spans = "\n".join([*SPAN.findall(text), *re.findall(r"^ {4,}(\S.*)$", text, flags=re.MULTILINE)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", spans, flags=re.MULTILINE)) <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for extras in re.findall(r"contrastive-decoding\[([\w,-]+)\]", text) for extra in extras.split(",")}
    assert named <= set(project["optional-dependencies"])


def test_extras_and_versions_are_explained() -> None:
    """All extras but those that a maintainer installs, and the ends of the supported range of transformers."""
    page = read(ROOT / "docs" / "installing.md")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"test", "lint", "docs", "dist"}
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)) == extras
    ends = (".".join(map(str, end)) for end in (OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS))
    assert f"transformers {' to '.join(ends)}, " in page


def test_the_tree_names_every_package() -> None:
    """And nothing that is not there."""
    tree = blocks(read(ROOT / "CONTRIBUTING.md"), "")[0]
    named: list[str] = []
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        entry = re.split(r" {2,}", line.strip())[0]
        for name in entry.split(", "):
            named.append("".join([*parents[:depth], name]))
        parents[depth:] = [entry]
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = [
        path for top in ("tools", "evals", "decoding") for path in (ROOT / top).iterdir() if not path.is_symlink()
    ]
    packages = {f"{path.relative_to(ROOT)}/" for path in modules if (path / "__init__.py").is_file()}
    files = {str(path.relative_to(ROOT)) for path in modules if path.suffix == ".py" and path.name != "__init__.py"}
    assert (packages | files) - set(named) == set()


def needs_nothing(code: str) -> bool:
    """Whether a block of Python binds every name that it uses."""
    tree = ast.parse(code)
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.Constant) and PLACEHOLDER.search(str(node.value)):
            return False
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return used <= bound and any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)


EXAMPLES = [
    pytest.param(code, id=f"{document.stem}-{number}")
    for document in GUIDES
    # tests/evals/isotropy/test_documentation.py also compares what blocks print; tests/test_recipes.py runs recipes.
    if document.stem not in ("isotropy", "CONTRIBUTING")
    for number, code in enumerate(blocks(read(document), "python"))
    if needs_nothing(code)
]


@pytest.mark.usefixtures("models_loaded_once")
@pytest.mark.parametrize("code", EXAMPLES)
def test_blocks_that_need_nothing_run(code: str) -> None:
    exec(code, {"__name__": "__main__"})


def test_the_readme_has_a_block_that_runs() -> None:
    assert any(str(parameter.id).startswith("README") for parameter in EXAMPLES)
