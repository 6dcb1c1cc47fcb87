"""The program itself: usage errors, unexpected ones, help, version, and processes of its own."""

import os
import re
import subprocess
import sys

import pytest
from command_results import refused
from forked_process import forked

from decoding.cli.app import run
from decoding.evals.cli import main

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def test_typers_own_usage_errors_end_with_2(generate):
    for arguments in (["--max-new-tokens", "0"], ["--no-such-option"], ["--seed", "-1"]):
        code, out, err = generate("--prompt", "w1", *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), KeyboardInterrupt(), ValueError()])
def test_the_unexpected_is_one_line_and_an_interrupt_is_quiet(generate, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("decoding.models.loading.load", fail)
    code, _, err = generate("--prompt", "w1")
    if isinstance(error, KeyboardInterrupt):
        assert (code, err) == (130, "")
        return
    assert code == 1
    assert len(err.splitlines()) == 1
    assert type(error).__name__ in err
    monkeypatch.setenv("DECODING_DEBUG", "1")
    with pytest.raises(type(error)):
        generate("--prompt", "w1")


@pytest.mark.parametrize("command", ["generate", "doctor"])
def test_a_model_that_cannot_be_loaded_is_one_line(command, tmp_path, capfd):
    prompt = ["--prompt", "w1"] if command == "generate" else []
    for folder, message in [(tmp_path, "no config.json"), (tmp_path / "absent", "no such folder")]:
        code = run([command, "--model", str(folder), *prompt])
        assert message in refused(code, *capfd.readouterr())


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["doctor", "--help"]])
def test_help_has_an_example(arguments, capfd):
    assert run(arguments) == 0
    assert "Example: decoding" in capfd.readouterr().out


def test_version(capfd):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"contrastive-decoding \d+\.\d+\S*\n", capfd.readouterr().out)


def test_a_pipe_gets_text_alone(tiny, tmp_path):
    """As a process of its own: a fork of this one, which has imported torch already."""
    (tmp_path / "in").write_text("w1 w2")

    def process():
        for stream, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT), stream)
        with open(0) as sys.stdin, open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
            sys.argv = ["decoding", "generate", "--model", tiny, "--max-new-tokens", "3"]
            return main()

    assert forked(process) == 0
    assert (tmp_path / "err").read_text() == ""
    assert re.fullmatch(r"w1 w2( \S+){3}\n", (tmp_path / "out").read_text())


def test_a_process_ends_with_the_code():
    command = [sys.executable, "-m", "decoding.evals.cli", "generate", "--strategy", "gredy", "--prompt", "w1"]
    done = subprocess.run(command, capture_output=True, text=True)  # it is told before torch is imported
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("decoding: ")
    assert done.stderr.count("\n") == 1
