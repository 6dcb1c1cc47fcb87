"""The program and the command that a page shows below a text write that text."""

from __future__ import annotations

import contextlib
import io
import json
import shlex

import pytest
from playground_texts import NEW, PROMPT, SPECS, needs_the_expert, request, written

from decoding.evals.cli import main
from decoding.play.code import as_command, as_python
from decoding.play.playground import Playground
from decoding.play.requests import TextRequest
from decoding.strategies.registry import parse_strategy

pytestmark = needs_the_expert


def printed(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "<page>", "exec"), {})
    return out.getvalue().removesuffix("\n")


# A strategy of the package with readers by name and in numbers, one that is imported from its module, one with a text,
# and each kind of baseline.
@pytest.mark.parametrize("spec", [*SPECS[1:6], SPECS[-1], "beam:num_beams=2"])
def test_the_python_of_a_text_prints_it(spec: str, playground: Playground) -> None:
    (text,) = written(playground, request(spec, seed=5, prompt='A "quoted"\nline'))
    assert printed(as_python(text.request)) == 'A "quoted"\nline' + text.text


def test_the_python_of_a_branch_prints_it(playground: Playground) -> None:
    (text,) = written(playground, request())
    assert text.explanation is not None
    step = text.explanation.steps[3]
    (branch,) = written(playground, text.branch(step.position, step.rejected[0].token))
    assert printed(as_python(branch.request)) == PROMPT + branch.text
    command = shlex.split(as_command([branch]))
    assert command[command.index("--prompt") + 1] == PROMPT + "".join(branch.explanation.texts[branch.start :][:4])  # type: ignore[union-attr,index]
    assert command[command.index("--max-new-tokens") + 1] == str(NEW - 4)


def test_the_command_line_of_texts_prints_them(playground: Playground, capsys: pytest.CaptureFixture[str]) -> None:
    specs = ("contrastive-decoding:amateur=amateur,beta=1.0", "nucleus:top_p=0.8")
    texts = written(playground, *(request(spec, seed=7, prompt="It's $HOME\nagain") for spec in specs))
    words = shlex.split(as_command(texts))
    assert words[:2] == ["decoding", "compare"]
    assert main([*words[1:], "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["strategies"]
    assert [found["continuations"][0]["continuation"] for found in compared] == [text.text for text in texts]
    # A text with a comma and an equals sign cannot stand within --strategy.
    (text,) = written(playground, _with_context("late, x=1"))
    words = shlex.split(as_command([text]))
    assert words[:2] == ["decoding", "generate"]
    assert main([*words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["continuation"] == text.text


def _with_context(context: str) -> TextRequest:
    spec = parse_strategy("context-aware", {"context": context})
    return TextRequest("expert", spec, PROMPT, max_new_tokens=NEW)
