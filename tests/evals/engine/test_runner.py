"""Runs that are shared out, cut off and resumed end as if nothing had happened."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.engine import runner as runner_module
from decoding.evals.engine import samples as samples_module
from decoding.evals.engine.configurations import Configuration, configured
from decoding.evals.engine.runner import run
from decoding.evals.engine.samples import SampleFile
from decoding.evals.engine.task import Document, Shard, Task
from decoding.models.identity import fingerprint
from decoding.strategies.registry import parse_strategy

FORK = multiprocessing.get_context("fork")  # a child that need not import torch again


class Toy(Task):
    """Figures made of numbers, a millisecond or so each."""

    name = "toy"

    def __init__(self, documents: int = 60, seconds: float = 0.0, group_size: int = 1, bad: Sequence[int] = ()) -> None:
        self.count, self.seconds, self.group_size, self.bad = documents, seconds, group_size, bad
        self.seen: list[str] = []

    def documents(self) -> list[Document]:
        return [Document(f"d{i}", i) for i in range(self.count)]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
        self.seen.append(document.id)
        time.sleep(self.seconds)
        if document.content in self.bad:
            raise InputError("its answer is too long")
        records = []
        for configuration in configurations:
            drawn = random.Random(configuration.seed(document.id) + len(configuration.label)).random()
            records.append({"metrics": {"right": float(drawn < 0.4), "share": drawn}, "text": f"été {drawn}"})
        return records


def toys(*names: str) -> list[Configuration]:
    return [
        Configuration(parse_strategy(name), {"strategy": name, "parameters": {}})
        for name in names or ("greedy", "dola")
    ]


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "times"}


def results_in(folder: Path) -> list[dict[str, Any]]:
    return [without_times(json.loads(path.read_text())) for path in sorted(folder.glob("results_*.json"))]


def in_a_child(call: Callable[[], Any]) -> Any:
    child = FORK.Process(target=call)
    child.start()
    return child


@pytest.mark.parametrize("group_size", [1, 3])
def test_a_run_killed_again_and_again_ends_like_one_left_alone(tmp_path: Path, group_size: int) -> None:
    alone = run(Toy(group_size=group_size), toys(), output=tmp_path / "alone")
    generator, kills, killed = random.Random(group_size), 0, tmp_path / "killed"
    samples = killed / "samples_toy.jsonl"
    while kills < 5:
        # 60 documents take 0.5 s, five runs of at most 40 ms never as long
        child = in_a_child(lambda: run(Toy(seconds=0.008, group_size=group_size), toys(), output=killed))
        while not (samples.exists() and samples.stat().st_size):  # a busy machine may be slow to start
            time.sleep(0.001)
        time.sleep(0.04 * generator.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        assert child.exitcode == -signal.SIGKILL
        assert not list(killed.glob("results_*"))
    before = len(samples.read_bytes().splitlines())
    assert 0 < before < 120
    rest = Toy(group_size=group_size)
    results = run(rest, toys(), output=killed)
    assert without_times(results) == without_times(alone) == results_in(killed)[0]
    assert samples.read_bytes() == (tmp_path / "alone/samples_toy.jsonl").read_bytes()
    assert len(rest.seen) == 60 - before // 2  # nothing that was kept is evaluated again


@pytest.mark.filterwarnings("ignore::decoding.errors.DecodingWarning")
@pytest.mark.parametrize("end", range(-240, 0, 29))
def test_a_file_cut_anywhere_is_repaired_and_gives_the_same_results(tmp_path: Path, end: int) -> None:
    alone = run(Toy(9, group_size=2), toys(), output=tmp_path)
    path = tmp_path / "samples_toy.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:end])
    assert without_times(run(Toy(9, group_size=2), toys(), output=tmp_path)) == without_times(alone)
    assert path.read_bytes() == whole


def test_a_repair_is_told(tmp_path: Path) -> None:
    run(Toy(5), toys(), output=tmp_path)
    path = tmp_path / "samples_toy.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(DecodingWarning, match=r"samples_toy.jsonl: its last line was cut short \(\d+ bytes"):
        run(Toy(5), toys(), output=tmp_path)


def test_two_processes_share_the_documents_and_one_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(Toy(23, group_size=2), toys(), output=tmp_path / "alone")

    def rank(number: int) -> None:
        os.environ.update(RANK=str(number), WORLD_SIZE="2")
        run(Toy(23, seconds=0.001, group_size=2), toys(), output=tmp_path / "two")

    children = [in_a_child(lambda number=number: rank(number)) for number in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert results_in(tmp_path / "two") == [without_times(alone)]
    assert sorted(path.suffix for path in (tmp_path / "two").iterdir()) == [".json", ".jsonl"]
    merged, single = (tmp_path / folder / "samples_toy.jsonl" for folder in ("two", "alone"))
    assert merged.read_bytes() == single.read_bytes()


def test_work_of_ranks_that_died_is_taken_up_by_another_number_of_them(tmp_path: Path) -> None:
    alone = run(Toy(20), toys(), output=tmp_path / "alone")
    folder = tmp_path / "shared"
    assert run(Toy(20), toys(), output=folder, shard=Shard(1, 3)) is None
    whole = [run(task := Toy(20), toys(), output=folder, shard=Shard(i, 2)) for i in range(2)]
    assert [without_times(results) if results else None for results in whole] == [None, without_times(alone)]
    assert len(task.seen) < 10  # the dead rank's documents are known
    again = Toy(20)
    assert without_times(run(again, toys(), output=folder)) == without_times(alone)
    assert again.seen == []


def test_a_rank_that_needs_all_results_waits_for_them_and_says_for_what_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(Toy(6), toys(), output=tmp_path / "alone")
    child = in_a_child(lambda: run(Toy(6, seconds=0.1), toys(), output=tmp_path / "two", shard=Shard(1, 2)))
    results = run(Toy(6), toys(), output=tmp_path / "two", shard=Shard(0, 2), everywhere=True)
    child.join()
    assert without_times(results) == without_times(alone) == results_in(tmp_path / "two")[0]
    monkeypatch.setattr(runner_module, "PATIENCE", 0)
    with pytest.raises(OptionError, match=r"toy: waited 0 minutes for the other ranks.*evaluate 3 of 6 documents"):
        run(Toy(6), toys(), output=tmp_path / "one", shard=Shard(0, 2), everywhere=True)


def test_the_environment_says_which_part_is_ours() -> None:
    assert Shard.of_environment({}) == Shard(0, 1)
    assert Shard.of_environment({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0"}) == Shard(1, 4)
    assert Shard.of_environment({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}) == Shard(2, 3)
    assert Shard.of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}) == Shard(0, 1)  # a batch script: no srun
    for rank, world in (("4", "4"), ("x", "2"), ("-1", "2")):
        with pytest.raises(OptionError, match=r"RANK=.*ranks must be from 0"):
            Shard.of_environment({"RANK": rank, "WORLD_SIZE": world})
    with pytest.raises(OptionError, match="2 processes share the documents: they need --output"):
        run(Toy(), toys(), shard=Shard(0, 2))


def test_a_limit_takes_the_first_documents_and_can_be_lifted(tmp_path: Path) -> None:
    task = Toy(10)
    results = run(task, toys(), output=tmp_path, limit=4)
    assert task.seen == ["d0", "d1", "d2", "d3"]
    assert results is not None
    assert (results["limit"], results["counts"]["documents"]) == (4, 4)
    rest = Toy(10)
    run(rest, toys(), output=tmp_path)
    assert rest.seen == ["d4", "d5", "d6", "d7", "d8", "d9"]


def test_a_strategy_added_later_is_all_that_is_evaluated(tmp_path: Path) -> None:
    run(Toy(6), toys("greedy"), output=tmp_path)
    both = run(Toy(6), toys("greedy", "dola"), output=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "samples_toy.jsonl").read_text().splitlines()]
    greedy, dola = toys()
    assert [line["configuration"] for line in lines] == [greedy.hash] * 6 + [dola.hash] * 6
    assert without_times(both) == without_times(run(Toy(6), toys()))


def test_results_hold_figures_intervals_and_paired_tests() -> None:
    results = run(Toy(), toys(), seed=3, extra={"tuning": {"split": "validation"}})
    assert results is not None
    first, second = results["configurations"]
    (comparison,) = results["comparisons"]
    right = second["metrics"]["right"]
    assert right["low"] < right["value"] < right["high"]
    assert comparison["metrics"]["right"]["value"] == pytest.approx(right["value"] - first["metrics"]["right"]["value"])
    assert comparison["metrics"]["right"]["mcnemar_p"] is not None
    assert comparison["metrics"]["share"]["mcnemar_p"] is None
    assert results["tuning"] == {"split": "validation"}
    assert {"torch", "transformers", "contrastive-decoding"} <= set(results["versions"])
    assert results["kernel_backend"]


def test_a_bad_document_is_named_or_left_out_of_every_figure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy, document d7: its answer is too long \(--skip-bad"):
        run(Toy(10, bad=[7, 8], group_size=3), toys(), output=tmp_path)
    results = run(Toy(10, bad=[7, 8], group_size=3), toys(), output=tmp_path, skip_bad=True)
    assert results is not None
    assert results["counts"] == {"documents": 10, "evaluated": 8, "skipped": 2, "left_out_of_the_data": 0}
    assert [skipped["document"] for skipped in results["skipped"]] == ["d7", "d8"]
    assert without_times(run(Toy(10), toys(), output=tmp_path)) == without_times(results)  # and stays left out
    with pytest.raises(InputError, match="every document was skipped"):
        run(Toy(2, bad=[0, 1]), toys(), skip_bad=True)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def full(file: int, content: bytes) -> int:
        if len(written) == 4:
            write(file, content[:10])  # some of it still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(content)
        return write(file, content)

    monkeypatch.setattr(samples_module.os, "write", full)
    with pytest.raises(OptionError, match=r"No space left on device.*the 8 samples before are safe"):
        run(Toy(10), toys(), output=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "samples_toy.jsonl").read_bytes() == b"".join(written)
    rest = Toy(10)
    assert without_times(run(rest, toys(), output=tmp_path)) == without_times(run(Toy(10), toys()))
    assert len(rest.seen) == 6


def test_an_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    class Interrupted(Toy):
        def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
            if document.content == 3:
                raise KeyboardInterrupt
            return super().evaluate(document, configurations)

    with pytest.warns(DecodingWarning, match="keeps 6 samples: run the same command"), pytest.raises(KeyboardInterrupt):
        run(Interrupted(8), toys(), output=tmp_path)
    rest = Toy(8)
    run(rest, toys(), output=tmp_path)
    assert rest.seen[0] == "d3"


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with SampleFile(tmp_path, "toy"), pytest.raises(OptionError, match="another run is writing it"):
        run(Toy(2), toys(), output=tmp_path)
    run(Toy(2), toys(), output=tmp_path)


def test_what_is_no_sample_is_named_by_its_line(tmp_path: Path) -> None:
    run(Toy(2), toys(), output=tmp_path)
    path = tmp_path / "samples_toy.jsonl"
    for wrong in ("{broken", '{"task": "toy"}', "[]"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], wrong, *lines[2:]]) + "\n")
        with pytest.raises(InputError, match=r"samples_toy.jsonl, line 2: is no sample"):
            run(Toy(2), toys(), output=tmp_path)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    class Twice(Toy):
        def documents(self) -> list[Document]:
            return [Document("d", 1), Document("d", 2)]

    class Endless(Toy):
        def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
            return [{"metrics": {"x": float("nan")}} for _ in configurations]

    with pytest.raises(InputError, match="two documents have the id 'd'"):
        run(Twice(), toys())
    with pytest.raises(InputError, match="document d0: its record holds a number that is not finite"):
        run(Endless(), toys())
    with pytest.raises(InputError, match="there is no document"):
        run(Toy(0), toys())
    with pytest.raises(OptionError, match="no strategy"):
        run(Toy(2), [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"--output .*file: cannot be written"):
        run(Toy(2), toys(), output=tmp_path / "file")


def test_figures_that_are_no_means_have_intervals_too() -> None:
    class Pooled(Toy):
        corpus_resamples = 200
        calls = 0

        def corpus_metrics(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
            self.calls += 1
            shares = [record["metrics"]["share"] for record in records]
            return {"highest": max(shares), "spread": max(shares) - min(shares)}

    task = Pooled(30)
    results = run(task, toys("greedy"))
    assert results is not None
    highest = results["configurations"][0]["metrics"]["highest"]
    assert highest["low"] < highest["high"] == highest["value"]
    assert task.calls <= 202  # both figures come from one call a resample


def test_a_configuration_is_known_by_its_weights_and_parameters() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    settings = {"task": {"style": "none"}, "seed": 0}

    def hashes(model: Any, *specs: str, **changed: Any) -> list[str]:
        given = {**settings, **changed}
        return [
            configuration.hash
            for configuration in configured([parse_strategy(spec) for spec in specs], model, None, "tiny", **given)
        ]

    first = hashes(model, "greedy", "dola:layers=1", "dola:layers=2", "sampling")
    assert len(set(first)) == 4
    assert hashes(model, "greedy") == first[:1]
    assert hashes(other, "greedy") != first[:1]
    assert hashes(model, "greedy", task={"style": "dola"}) != first[:1]
    reseeded = hashes(model, "greedy", "sampling", seed=1)
    assert (reseeded[0], reseeded[1] == first[3]) == (first[0], False)  # a seed is nothing to one that does not draw
    with pytest.raises(OptionError, match="given twice"):
        hashes(model, "greedy", "greedy")


def test_the_weights_of_an_amateur_are_told_apart_and_a_model_is_itself_with_an_adapter_on() -> None:
    peft = pytest.importorskip("peft")
    from decoding import ContrastiveDecoding
    from decoding.strategies.registry import StrategySpec

    model = tiny_model("llama")
    alone = fingerprint(model)
    one, other = (
        configured([StrategySpec("contrastive-decoding", ContrastiveDecoding(amateur))], model, None, "m", task={})[0]
        for amateur in (tiny_model("llama", 3), tiny_model("llama", 4))
    )
    assert one.settings["parameters"] == other.settings["parameters"]
    assert one.hash != other.hash
    peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules="all-linear", init_lora_weights=False), model, adapter_name="liar"
    )
    assert fingerprint(model) == alone
    assert fingerprint(model, "liar") != alone
