"""``decoding eval --engine vllm``: evaluations whose texts vLLM generates."""

from __future__ import annotations

import importlib.util
import json

import pytest

from decoding.evals import miniature
from decoding.evals.cli import main

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

STRATEGIES = [
    "greedy",
    "dola:layers=low",
    "lol:amateur=amateur,lower_layers=0.25",
    "contrastive-search",
    "sampling:top_p=0.8",
]
SMALL = ["enforce_eager=true", "block_size=32", "max_model_len=128", "distributed_executor_backend=uni"]


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Evaluate open-ended texts into a folder, and return its samples."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"text": f"{prompt} and went home to sleep until the morning."} for prompt in miniature.prompts()]
    (data / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def evaluate(output, *options):
        command = ["eval", "multilingual", "--data", str(data), "--prefix-length", "8", "--max-new-tokens", "12"]
        command += [word for strategy in STRATEGIES for word in ("--strategy", strategy)]
        assert main([*command, "--output", str(output), *options]) == 0
        lines = (output / "samples_open-ended-en.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return evaluate


def test_texts_are_those_of_the_library_and_a_run_continues(evaluate, tmp_path, monkeypatch):
    usual = evaluate(tmp_path / "here")
    on_vllm = ["--engine", "vllm", *(word for option in SMALL for word in ("--engine-option", option))]
    served = evaluate(tmp_path / "vllm", *on_vllm)
    assert len(served) == len(usual) == len(STRATEGIES) * len(miniature.prompts())
    for here, there in zip(usual, served, strict=True):
        assert here.pop("configuration") != there.pop("configuration")
        if not here["strategy"].startswith("sampling"):
            assert here == there
    results = json.loads(next((tmp_path / "vllm").glob("results_*.json")).read_text(encoding="utf-8"))
    assert '"engine": {"name": "vllm", "version": "' in json.dumps(results)

    lines = (tmp_path / "vllm" / "samples_open-ended-en.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = tmp_path / "again" / "samples_open-ended-en.jsonl"
    kept.parent.mkdir()
    kept.write_text("".join(lines), encoding="utf-8")
    monkeypatch.setattr("decoding.evals.engine.vllm_texts.load_llm", None)  # nothing is left to generate
    evaluate(kept.parent, *on_vllm)
    assert kept.read_text(encoding="utf-8") == "".join(lines)
