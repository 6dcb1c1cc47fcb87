"""One model shared out among two processes of torchrun says what it says in one."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensor_parallel_rank import EVALUATE, GENERATE, OTHERS, said, work
from tiny_models import tiny_model
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from decoding.errors import ModelError, OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.models.device_options import check_shares
from decoding.models.loading import load

pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file() or not torch.distributed.is_gloo_available(),
    reason="the embedded expert or gloo is not here",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, alone: dict[str, Any]) -> Path:
    """What two ranks wrote that torchrun's own launcher started, as ``torchrun --standalone --nproc-per-node 2`` does.

    Launcher and ranks are forked once this process has said the same, and so has imported what they need: three
    processes that import torch and transformers take three times as long as what they are to do.
    """
    pytest.importorskip("peft", reason="the induced amateur is a LoRA adapter")
    path = tmp_path_factory.mktemp("ranks")
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="shared", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="fork",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        # The launcher takes over the signals of its process.
        launcher = multiprocessing.get_context("fork").Process(target=elastic_launch(config, work), args=(path,))
        launcher.start()
        launcher.join(180)
    assert launcher.exitcode == 0
    return path


@pytest.fixture(scope="module")
def of_ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return said(load("expert", "cpu", "float32")[0])


def test_tokens_and_beams_are_those_of_one_process(of_ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    names = [name for name in alone if name != "scores"]
    for shared in of_ranks:
        assert {name: shared[name] for name in names} == {name: alone[name] for name in names}


def test_scores_are_those_of_one_process(of_ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for shared in of_ranks:
        for one, other in zip(alone["scores"], shared["scores"], strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-4)  # sums over two halves are rounded differently


def test_ranks_that_draw_apart_go_on_with_the_same_tokens(of_ranks: list[dict[str, Any]]) -> None:
    assert of_ranks[0]["drawn"] == of_ranks[1]["drawn"]


def test_the_commands_print_and_write_once(
    folder: Path, of_ranks: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [(of_rank["generate"], of_rank["evaluate"]) for of_rank in of_ranks] == [(0, 0), (0, 0)]
    assert (folder / "generate1.txt").read_text() == (folder / "evaluate1.txt").read_text() == ""
    assert main([*GENERATE, "--device", "cpu"]) == 0
    assert (folder / "generate0.txt").read_text() == capsys.readouterr().out
    assert main([*EVALUATE, "--device", "cpu", "--output", str(tmp_path)]) == 0
    assert (folder / "evaluate0.txt").read_text() == capsys.readouterr().out
    ours, theirs = ([json.loads(line) for line in samples(path)] for path in (tmp_path, folder / "shared"))
    assert [(sample["document"], sample["configuration"]) for sample in ours] == [
        (sample["document"], sample["configuration"]) for sample in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert other["normalized"] == pytest.approx(one["normalized"], rel=1e-4)
    assert sorted(path.suffix for path in (folder / "shared").iterdir()) == [".json", ".jsonl"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands_print_once_as_well(name: str, folder: Path, of_ranks: list[dict[str, Any]]) -> None:
    assert [of_rank[name] for of_rank in of_ranks] == [0, 0]
    assert (folder / f"{name}1.txt").read_text() == ""
    assert json.loads((folder / f"{name}0.txt").read_text())


def samples(folder: Path) -> list[str]:
    (path,) = folder.glob("samples_*.jsonl")
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp_plan": "auto"}, "divides a model among the processes of torchrun, and this is not one of them"),
        ({"tp_plan": "colwise"}, "tp_plan='colwise': must be auto"),
        ({"device_map": "atuo"}, r"device_map='atuo'.*auto"),
        ({"device_map": "auto", "tp_plan": "auto"}, "device_map and tp_plan: each says where the model goes"),
        ({"device_map": "auto", "device": "cpu"}, "device and device_map: each says where the model goes"),
    ],
)
def test_what_cannot_be_placed_is_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load("expert", **given)


def test_a_number_of_processes_that_does_not_divide_the_heads_is_refused() -> None:
    model = SimpleNamespace(config=tiny_model("llama").config, tp_size=4)
    with pytest.raises(ModelError, match="its 2 key value heads cannot be divided among 4 processes"):
        check_shares("PATH", model)
    check_shares("PATH", SimpleNamespace(config=model.config, tp_size=2))
