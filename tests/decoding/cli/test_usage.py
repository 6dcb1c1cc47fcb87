"""A wrong command line is one line on every command: what was given, what is expected, exit code 2."""

import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import command_results
import pytest
import typer
from typer.main import get_command

from decoding.cli.app import add_command, app
from decoding.evals.cli import main

HEAVY = {
    "datasets", "evaluate", "gradio", "huggingface_hub", "lm_eval", "matplotlib", "mauve", "numpy", "pandas", "peft",
    "ray", "sacrebleu", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers", "triton",
}  # fmt: skip


def commands(group, path=()):
    """Each command's words, and the command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(get_command(app)))
GROUPS = [(), ("eval",)]


def options(command):
    """The options of a command that take a value: the option, its type, and its declaration."""
    signature = inspect.signature(command.callback, eval_str=True)
    for parameter in command.params:
        if parameter.opts[0].startswith("--") and parameter.name in signature.parameters:
            kind, info = typing.get_args(signature.parameters[parameter.name].annotation)[:2]
            if kind is not bool:
                yield parameter.opts[0], {kind, *typing.get_args(kind)}, info


def cases(wanted):
    """Each declaration of an option once, with the first command that has it, and of each command its first option.

    Most options are those of many commands: what is said of them does not depend on the command.
    """
    declared, found = set(), {}
    for words, command in COMMANDS.items():
        for name, kinds, info in options(command):
            declaration = (name, frozenset(kinds), info.metavar, info.min, info.max)
            if wanted(kinds, info) and (declaration not in declared or not found.get(words)):
                declared.add(declaration)
                found.setdefault(words, []).append(pytest.param(words, name, kinds, info, id=" ".join((*words, name))))
    return [case for of_command in found.values() for case in of_command]


@pytest.fixture
def refused(capfd):
    """Run a wrong command line and return its one line, without what every line begins with."""

    def refused(*arguments):
        err = command_results.refused(main(list(arguments)), *capfd.readouterr())
        assert not set(err) & set("╭│╰─")
        assert "Usage" not in err
        return err.removeprefix("decoding: ").rstrip("\n")

    return refused


def needed(command):
    """Values of the options and arguments that a command needs."""
    words = []
    for parameter in command.params:
        if parameter.required:
            words += [parameter.opts[0], "x"] if parameter.opts[0].startswith("--") else ["x"]
    return words


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_unknown_option_names_the_nearest(words, refused):
    name = next(parameter.opts[0] for parameter in COMMANDS[words].params if parameter.opts[0].startswith("--"))
    wrong = name[:-2] + name[-1]
    line = refused(*words, wrong, "x")
    assert line.startswith(f"unknown option {wrong}; did you mean {name}? decoding {' '.join(words)} --help shows all")
    line = refused(*words, "--zzzzzz=1")
    assert line.startswith(f"unknown option --zzzzzz; decoding {' '.join(words)} --help shows all options")
    assert refused(*words, "-z").startswith("unknown option -z; ")


@pytest.mark.parametrize(("words", "name", "kinds", "info"), cases(lambda kinds, _: kinds & {int, float}))
def test_a_word_where_a_number_belongs(words, name, kinds, info, refused):
    number = "a number" if float in kinds else "a whole number"
    for given in ("many", ""):
        line = refused(*words, *needed(COMMANDS[words]), name, given)
        assert line.startswith(f"{name} {given!r}: expected {number}")
        if info.min is not None:
            assert f" from {info.min:g}" in line
    assert refused(*words, *needed(COMMANDS[words]), f"{name}=many") == line.replace("''", "'many'")


@pytest.mark.parametrize(("words", "name", "kinds", "info"), cases(lambda _, info: info.min is not None))
def test_a_number_out_of_range(words, name, kinds, info, refused):
    line = refused(*words, *needed(COMMANDS[words]), name, str(info.min - 1))
    assert line.startswith(f"{name} '{info.min - 1}': expected ")
    assert f" from {info.min:g}{'' if info.max is None else f' to {info.max:g}'}" in line


@pytest.mark.parametrize(("words", "name", "kinds", "info"), cases(lambda *_: True))
def test_an_option_without_its_value(words, name, kinds, info, refused):
    line = refused(*words, *needed(COMMANDS[words]), name)
    assert line.startswith(f"{name}: expected ")
    assert line.endswith(" after it")
    if not kinds & {int, float}:
        assert info.metavar in line


@pytest.mark.parametrize("words", [words for words, command in COMMANDS.items() if needed(command)], ids=" ".join)
def test_what_a_command_needs_is_named(words, refused):
    line = refused(*words)
    first = next(parameter for parameter in COMMANDS[words].params if parameter.required)
    assert line.startswith(first.opts[0] if first.opts[0].startswith("--") else first.metavar)
    assert f" is missing: decoding {' '.join(words)} needs it" in line


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words not in (("metrics",), ("lm-eval",))], ids=" ".join
)
def test_an_argument_that_no_option_takes(words, refused):
    assert refused(*words, *needed(COMMANDS[words]), "old", "clock").startswith("unexpected argument 'old clock': ")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_flag_takes_no_value(words, refused):
    flags = [parameter.opts[0] for parameter in COMMANDS[words].params if getattr(parameter, "is_flag", False)]
    for flag in flags:
        assert refused(*words, f"{flag}=1") == f"{flag}: takes no value; leave out what follows ="


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_an_unknown_command_names_the_nearest(group, refused):
    for words in COMMANDS:
        if words[:-1] == group:
            assert refused(*group, words[-1][:-1]).startswith(
                f"unknown command {words[-1][:-1]!r}; did you mean {words[-1]}"
            )
    assert refused(*group, "--hlp").startswith("unknown option --hlp; did you mean --help? ")


def test_a_command_that_is_added_later_is_known(refused, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        assert refused("late").startswith("unknown command 'late'")
        patch.setattr(app, "registered_commands", [*app.registered_commands])
        add_command(app, "late", lambda: print("here"))
        assert main(["late"]) == 0
        assert capfd.readouterr().out == "here\n"
    add_command(typer.Typer(), "another", lambda: None)  # from here on the first one is forgotten
    assert refused("late").startswith("unknown command 'late'")


def test_what_lm_eval_takes_follows_two_dashes(refused):
    assert refused("lm-eval", "--tasks", "x").endswith("; options of the program that it runs go after --")


MISSING_FILES = {
    "generate": ["--prompt", "x", "--model", "./absent.gguf"],
    "compare": ["--prompts", "absent.txt"],
    "doctor": ["--model", "./absent"],
    "export": ["--model", "./absent", "--output", "new"],
    "play": ["--model", "./absent"],
    "serve": ["--engine", "transformers", "--model", "./absent"],
    "induce": ["--data", "absent.json", "--output", "new"],
    "heads": ["--data", "absent.txt"],
    "isotropy": ["--data", "absent.txt"],
    "metrics": ["absent.jsonl"],
    "lm-eval": ["--truthfulqa", "absent.csv"],
    "eval factor": ["--data", "./absent.csv"],
    "eval halueval": ["--data", "./absent.json"],
    "eval pope": ["--data", "./absent.json"],
    "eval knowledge-conflict": ["--data", "./absent.csv"],
    "eval truthfulqa": ["--data", "./absent.csv"],
    "eval multilingual": ["--data", "./absent"],
}
MISSING_FILES |= {words.replace("eval", "tune", 1): given for words, given in MISSING_FILES.items() if "eval " in words}


@pytest.mark.parametrize("words", MISSING_FILES)
def test_a_missing_file_is_named(words, refused, tmp_path, monkeypatch):
    if words in ("lm-eval", "play"):
        pytest.importorskip({"lm-eval": "lm_eval", "play": "gradio"}[words])
    monkeypatch.chdir(tmp_path)
    assert "absent" in refused(*words.split(), *MISSING_FILES[words])
    assert {" ".join(command) for command in COMMANDS} - set(MISSING_FILES) == {"demo", "fetch"}  # which read no file


def test_help_and_wrong_options_import_no_model_code():
    """Every page in one process; after each, what was imported that help does not need."""
    lines = [[*words, "--help"] for words in (*GROUPS, *COMMANDS)]
    lines += [["--version"], [], *([*words, "--no-such-option"] for words in COMMANDS)]
    lines += [
        [*words, "--seed", "x"]
        for words, command in COMMANDS.items()
        if "--seed" in [name for name, *_ in options(command)]
    ]
    lines += [
        ["generate", "--strategy", "gredy"], ["eval", "factor", "--data", "x", "--strategy", "gredy"],
        ["metrics", "x", "--metric", "blue"], ["eval", "multilingual", "--data", "x", "--task", "poetry"],
        ["eval", "factor", "--data", "x", "--engine", "rai"], ["eval", "no-such-task"], ["no-such-command"],
    ]  # fmt: skip
    program = (
        "import contextlib, io, json, sys\n"
        "from decoding.evals.cli import main\n"
        "found = {}\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        code = main(line)\n"
        "    found[' '.join(line)] = [code, *sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines), json.dumps(sorted(HEAVY))],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found == {" ".join(line): [0 if line and line[-1] in ("--help", "--version") else 2] for line in lines}
    assert len(found) > 40


def test_importing_the_package_imports_no_model_code():
    program = "import sys, decoding; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_names_that_help_lists_are_those_of_the_code():
    from decoding.evals.commands import metrics, multilingual
    from decoding.evals.metrics.table import METRICS
    from decoding.evals.tasks.multilingual.options import DEFAULTS
    from decoding.exporting import LINKS

    assert tuple(METRICS) == metrics.METRICS
    assert tuple(DEFAULTS) == multilingual.TASKS
    assert "|".join(LINKS) in {parameter.metavar for parameter in COMMANDS["export",].params}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words, capfd):
    assert main([*words, "--help"]) == 0
    assert f"Example: decoding {' '.join(words)}" in capfd.readouterr().out


def test_help_says_what_options_the_dataclasses_bring(capfd):
    assert main(["eval", "factor", "--help"]) == 0
    page = capfd.readouterr().out
    for name in ("--data", "--prefix", "--model", "--device", "--tp-plan", "--engine", "--output"):
        assert name in page


def test_every_command_is_documented():
    pages = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[3].glob("docs/*.md"))
    pages += (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for words in COMMANDS:
        assert f"decoding {' '.join(words)}" in pages
