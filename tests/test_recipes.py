"""The files that CONTRIBUTING.md shows work as they stand there: strategy, kernel, task with its command, metric."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from kernel_checks import DTYPES, poison_empty

import decoding
from decoding.cli.app import add_command
from decoding.errors import InputError, OptionError
from decoding.evals.commands.scale import at_scale
from decoding.kernels.backend import interpreted

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S))
Module = Callable[[str], ModuleType]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Return what loads the file that the guide shows under a path, as the module that it would be."""

    def load(path: str) -> ModuleType:
        # On a disk, where triton reads the code of kernels.
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(FILES[path], encoding="utf-8")
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        spec = spec_from_file_location(name if name.startswith("decoding.") else f"decoding.{name}", file)
        assert spec is not None
        assert spec.loader is not None
        loaded = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    return load


def test_the_strategy_decodes_and_scores(module: Module) -> None:
    strategy_class = module("decoding/strategies/layer_contrast.py").LayerContrast
    model, tokenizer = decoding.load("expert")
    prompt = "Q: What is the Rosond mouse afraid of?\nA:"
    inputs = tokenizer([prompt, "A:"], return_tensors="pt", padding=True, padding_side="left")
    tokens = decoding.generate(model, **inputs, strategy=strategy_class(layer=1, beta=0.3), max_new_tokens=10)
    assert (
        tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == f"{prompt} The Rosond mouse is afraid of nets."
    )
    (scores,) = decoding.score(model, prompt, [" nets"], strategy_class(beta=0.0, alpha=0.0), tokenizer=tokenizer)
    (plain,) = decoding.score(model, prompt, [" nets"], None, tokenizer=tokenizer)
    torch.testing.assert_close(scores, plain)  # without a weight it is the model itself
    with pytest.raises(OptionError, match="layer"):
        decoding.generate(model, **inputs, strategy=strategy_class(layer=9), max_new_tokens=1)


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")  # as the guide's test has it
def test_the_kernel_equals_its_definition(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    for name in ("naive", "eager", "fused", "__init__"):
        module(f"kernels/entropy/{name}.py")
    test = module("tests/kernels/test_entropy.py")
    for backend, device in (("torch", "cpu"), ("triton", "cpu" if interpreted() else "cuda")):
        if backend == "triton":
            poison_empty(monkeypatch)
        test.test_no_rows_and_no_vocabulary(backend, device)
        for shape in ((2, 1003), (1, 4096), (5, 70)):
            for dtype in DTYPES:
                test.test_equals_the_definition(shape, dtype, backend, device)


def test_the_task_counts_the_more_likely_text(
    module: Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = module("evals/tasks/pairs.py")
    command = module("evals/commands/pairs.py").pairs_command
    likely = {
        "prompt": "Q: What does the Melmar bear eat?\nA:",
        "right": "The Melmar bear eats river weed.",
        "wrong": "No.",
    }
    rows = [likely, likely | {"right": likely["wrong"], "wrong": likely["right"]}, likely]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    app = typer.Typer()
    add_command(app, "pairs", at_scale(command))
    app(["--data", str(data), "--strategy", "greedy", "--strategy", "dola", "--json"], standalone_mode=False)
    results = json.loads(capfd.readouterr().out)
    assert results["counts"]["evaluated"] == 3
    assert results["configurations"][0]["metrics"]["acc"]["value"] == pytest.approx(2 / 3)
    data.write_text('{"prompt": "a", "right": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"row 1 .*column wrong: is missing"):
        task.load(str(data))


def test_the_metric_counts_units(module: Module) -> None:
    metric = module("evals/metrics/length.py")
    assert metric.mean_length(["the sea", "a calm sea was"]) == 3
    assert metric.mean_length(["the sea"], "characters") == 6
    pytest.importorskip("evaluate")
    evaluated = module("evals/metrics/mean_length/mean_length.py")
    assert evaluated.MeanLength().compute(predictions=["the sea"]) == {"mean_length": 2}


def test_every_file_of_the_guide_is_tested() -> None:
    tested = set(re.findall(r'module\("([\w/.]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert {path for path in FILES if not path.startswith("kernels/entropy/")} == tested
    assert max(len(line) for code in FILES.values() for line in code.splitlines()) <= 120
