"""Values of strategies are chosen on some documents, and the results are of the others."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_results import refused

from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.cli import main
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.tables import shell_word
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.engine.tuning import Criterion, Part, Tuned, split, tune
from decoding.strategies.registry import STRATEGIES, candidates_of, parse_strategy

pytestmark = pytest.mark.usefixtures("models_loaded_once")
FORK = multiprocessing.get_context("fork")


class Toy(Task):
    """A document is a number; a strategy's figure on it is drawn, but higher with its ``top_k`` on even documents."""

    name = "toy"
    criterion = ("share",)

    def __init__(self, count: int = 40, seconds: float = 0.0, bad: Sequence[int] = (), own: Sequence[str] = ()) -> None:
        self.count, self.seconds, self.bad, self.validation_ids = count, seconds, bad, own
        self.seen: list[tuple[str, str]] = []

    def documents(self) -> list[Document]:
        return [Document(f"d{i}", i) for i in range(self.count)]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[Record]:
        time.sleep(self.seconds)
        if document.content in self.bad:
            raise InputError("its answer is too long")
        self.seen += [(document.id, configuration.label) for configuration in configurations]
        return [{"metrics": {"share": self.figure(document.content, item), "flat": 0.5}} for item in configurations]

    def figure(self, number: int, configuration: Configuration) -> float:
        drawn = random.Random(configuration.seed(str(number))).random() / 100
        return drawn + getattr(configuration.spec.strategy, "top_k", 0) / (10 if number % 2 == 0 else 20)

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        return {"worst": min(record["metrics"]["share"] for record in records)}


def candidates(*given: str) -> list[tuple[str, list[Configuration]]]:
    return [
        (
            text,
            [
                Configuration(parse_strategy(one), {"strategy": text.partition(":")[0], "parameters": {"text": one}})
                for one in candidates_of(text)
            ],
        )
        for text in given
    ]


GIVEN = ("greedy", "contrastive-search:penalty_alpha=0.6,top_k=4|8|6")


def tuned(task: Task, **options: Any) -> dict[str, Any]:
    ended = tune(task, candidates(*GIVEN), options.pop("validation", 10), **options)
    assert isinstance(ended, Tuned)
    assert ended.results is not None
    return {name: value for name, value in ended.results.items() if name != "times"}


def test_the_best_on_some_documents_is_evaluated_on_the_others() -> None:
    task = Toy()
    results = tuned(task)
    first = results["tuning"]["documents"]
    assert len(first) == 10
    assert results["counts"]["documents"] == 30
    greedy, search = results["tuning"]["strategies"]
    assert (greedy["given"], greedy["chosen"], len(greedy["tried"])) == ("greedy", "greedy", 1)
    assert search["chosen"] == "contrastive-search:top_k=8"
    labels = [entry["label"] for entry in results["configurations"]]
    assert labels == ["greedy", parse_strategy(search["chosen"]).label]
    on_first = {label for document, label in task.seen if document in first}
    on_others = {label for document, label in task.seen if document not in first}
    assert len(on_first) == 4
    assert on_others == set(labels)
    for entry in search["tried"]:  # the figures are those of the first documents alone
        (configuration,) = (item for item in candidates(GIVEN[1])[0][1] if item.spec.spec == entry["strategy"])
        figures = [task.figure(int(document[1:]), configuration) for document in first]
        assert entry["metrics"]["share"] == pytest.approx(sum(figures) / len(figures))
        assert entry["metrics"]["worst"] == min(figures)
    reported = results["configurations"][1]["metrics"]["share"]["value"]
    figures = [task.figure(i, candidates(GIVEN[1])[0][1][1]) for i in range(40) if f"d{i}" not in first]
    assert reported == pytest.approx(sum(figures) / len(figures))


def test_a_run_that_is_killed_ends_like_one_left_alone(tmp_path: Path) -> None:
    alone = tuned(Toy(), output=tmp_path / "alone")
    killed, generator = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        child = FORK.Process(target=lambda: tuned(Toy(seconds=0.01), output=killed))
        child.start()
        while not any(path.stat().st_size for path in killed.glob("*.jsonl")):  # a busy machine may be slow to start
            time.sleep(0.001)
        time.sleep(0.1 * generator.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    task = Toy()
    assert tuned(task, output=killed) == alone
    assert 0 < len(task.seen) < 10 * 4 + 30 * 2
    task = Toy()
    assert tuned(task, output=killed) == alone
    assert task.seen == []


def test_the_split_hangs_on_the_ids_and_the_seed_alone() -> None:
    task, documents = Toy(), Toy().documents()
    first, others = split(task, documents, 10, 0)
    assert sorted([*first, *others], key=lambda item: item.content) == documents
    assert [item.content for item in others] == sorted(item.content for item in others)
    backwards, _ = split(task, documents[::-1], 10, 0)
    assert {item.id for item in backwards} == {item.id for item in first}
    assert {item.id for item in split(task, documents, 10, 1)[0]} != {item.id for item in first}


def test_data_with_a_split_of_their_own_keep_it() -> None:
    own = [f"d{i}" for i in range(0, 40, 3)]
    results = tuned(Toy(own=own), validation=1)
    assert results["tuning"]["documents"] == own
    assert results["counts"]["documents"] == 40 - len(own)
    limited = tuned(Toy(own=own), limit=5)
    assert limited["tuning"]["documents"] == own[:5]
    assert limited["counts"]["documents"] == 5


@pytest.mark.parametrize("validation", [40, 41, 1000])
def test_some_documents_must_be_left(validation: int) -> None:
    with pytest.raises(OptionError, match=f"--validation {validation}: toy has 40 documents"):
        tuned(Toy(), validation=validation)


def test_the_limit_comes_before_the_split() -> None:
    results = tuned(Toy(), limit=12, validation=4)
    assert results["counts"]["documents"] == 8
    assert all(int(name[1:]) < 12 for name in results["tuning"]["documents"])


def test_bad_documents_are_left_out_and_counted_where_they_are() -> None:
    with pytest.raises(InputError, match="its answer is too long"):
        tuned(Toy(bad=range(40)))
    bad = [3, 4, 5]
    results = tuned(Toy(bad=bad), skip_bad=True)
    on_first = sum(f"d{i}" in results["tuning"]["documents"] for i in bad)
    assert results["tuning"]["evaluated"] == 10 - on_first
    assert results["counts"]["skipped"] == len(bad) - on_first


def test_the_first_of_equals_and_the_metric_after_it() -> None:
    figures = [{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 3.0}, {"a": 2.0, "b": 3.0}]
    assert Criterion(["a"]).best(figures) == 1
    assert Criterion(["a", "b"]).best(figures) == 2
    assert Criterion(["b"], {"a": 1.5}).best(figures) == 2
    assert Criterion(["b"], {"a": 1.0}).best(figures[:2]) == 0
    assert Criterion(["b"], {"a": 9.0, "b": 9.0}).best(figures) == 2  # misses them by 7 and 6, together the least


def test_where_nothing_reaches_the_bound_the_nearest_is_taken_and_said() -> None:
    with pytest.warns(DecodingWarning, match="no candidate has the share of 9; the nearest") as caught:
        results = tuned(Toy(), at_least={"share": 9.0})
    assert len(caught) == 2  # of greedy too
    assert results["tuning"]["strategies"][1]["chosen"] == "contrastive-search:top_k=8"
    assert results["tuning"]["at_least"] == {"share": 9.0}


def test_the_task_has_bounds_of_its_own_unless_told() -> None:
    class Bounded(Toy):
        def bounds(self, documents: Sequence[Document]) -> Mapping[str, float]:
            assert len(documents) == 10
            return {"worst": 0.0}

    assert tuned(Bounded())["tuning"]["at_least"] == {"worst": 0.0}
    assert tuned(Bounded(), by=["flat"])["tuning"]["at_least"] == {}
    assert tuned(Bounded(), at_least={"share": 0.0})["tuning"]["at_least"] == {"share": 0.0}


@pytest.mark.parametrize("options", [{"by": ["shape"]}, {"at_least": {"shape": 1.0}}])
def test_an_unknown_metric_is_named_before_much_is_evaluated(options: dict[str, Any]) -> None:
    task = Toy()
    with pytest.raises(OptionError, match=r"toy has no metric 'shape'; did you mean share\?"):
        tuned(task, **options)
    assert len(task.seen) == 1
    assert tuned(task, by=["worst"])["tuning"]["by"] == ["worst"]  # one of all documents together


def test_a_task_without_a_metric_of_its_own_must_be_told() -> None:
    class Untold(Toy):
        criterion = ()

    with pytest.raises(OptionError, match="give --by METRIC"):
        tuned(Untold())
    assert tuned(Untold(), by=["flat"])["tuning"]["strategies"][1]["chosen"] == "contrastive-search"


def test_a_part_is_the_task_but_for_name_and_documents() -> None:
    task = Toy()
    task.group_size, task.chance, task.skipped, task.corpus_resamples = 3, {"share": 0.5}, ("row 7",), 11
    part = Part(task, task.documents()[:2], "report")
    assert part.name == "toy_report"
    assert [item.id for item in part.documents()] == ["d0", "d1"]
    for field in ("group_size", "chance", "skipped", "corpus_resamples", "model"):
        assert getattr(part, field) == getattr(task, field)


def test_alternatives_make_every_combination() -> None:
    texts = candidates_of("dola:layers=low|1,2,alpha=0|0.1,final_norm=true")
    assert texts == [
        f"dola:layers={layers},alpha={alpha},final_norm=true" for layers in ("low", "1,2") for alpha in ("0", "0.1")
    ]
    assert candidates_of("dola:layers=low,final_norm=true") == ["dola:layers=low,final_norm=true"]
    assert candidates_of("greedy") == ["greedy"]


def test_what_is_not_given_has_the_grid_of_its_field() -> None:
    specs = [parse_strategy(text).strategy for text in candidates_of("dola")]
    assert {(strategy.layers, strategy.final_norm) for strategy in specs} == set(
        itertools.product(("low", "high"), (False, True))
    )
    plain = candidates_of("lol:amateur=amateur,lower_layers=0.5")
    guided = candidates_of("lol:amateur=amateur,lower_layers=0.5,guidance=default")
    assert len(guided) == 3 * len(plain)  # the weight of a guidance that is not there would change nothing


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_grid_is_of_values_that_its_strategy_takes_and_has_the_default(name: str) -> None:
    fields = dataclasses.fields(STRATEGIES[name])
    for field in fields:
        if "grid" in field.metadata and field.default is not dataclasses.MISSING:
            assert field.default in field.metadata["grid"]
    given = ",".join(f"{item.name}={item.metadata['example']}" for item in fields if "example" in item.metadata)
    texts = candidates_of(f"{name}:{given}" if given else name)
    labels = [parse_strategy(text).label for text in texts]
    assert len(set(labels)) == len(labels)


def test_a_word_of_the_shell_is_read_as_it_was() -> None:
    for text in ("greedy", "context-aware:context=It's so.", "context-aware:context=It's \\ so.\n\n,alpha=1.0"):
        word = shell_word(text)
        assert "\n" not in word
        told = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout
        assert told == text


def test_open_ended_texts_must_be_as_diverse_as_their_references(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from decoding.evals.metrics.repetition import diversity

    texts = [f"The clockmaker {verb} in the town and {verb} again, as he {verb} in the town." for verb in "abcdefgh"]
    rows = [{"prefix_text": text[:20], "reference_text": text[20:]} for text in texts]
    path = tmp_path / "en.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", "multilingual", "--data", f"en={path}", "--max-new-tokens", "6", "--validation", "4", "--json",
               "--strategy", "greedy", "--strategy", "contrastive-search:penalty_alpha=0.6,top_k=4|6"]  # fmt: skip
    assert main(command) == 2
    assert "open-ended-en: has no metric to choose by unless it is told: give --by METRIC" in capfd.readouterr().err
    assert main([*command, "--coherence-model", "amateur"]) == 0
    tuning = json.loads(capfd.readouterr().out)["languages"]["en"]["tuning"]
    assert tuning["by"] == ["coherence"]
    chosen = [rows[int(name)]["reference_text"] for name in tuning["documents"]]
    assert tuning["at_least"] == {"diversity": pytest.approx(0.95 * diversity(chosen))}
    assert [len(entry["tried"]) for entry in tuning["strategies"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation", "0"], "--validation"),
        (["--at-least", "MC1"], "--at-least 'MC1': expected name=value, for instance diversity=90"),
        (["--at-least", "MC1=many"], "--at-least MC1='many': must be a number"),
        (["--by", "MC9"], "truthfulqa_miniature has no metric 'MC9'; did you mean MC3 or MC2?"),
        (["--strategy", "dola:layers=low|up"], "layers='up': must be low, high, or layer numbers"),
        (["--strategy", "dola:layers=low|low"], "given twice"),
        (
            ["--strategy", "dola", "--strategy", "dola:layers=high,final_norm=true"],
            "--strategy dola and --strategy dola:layers=high,final_norm=true both stand for dola(layers=high, ",
        ),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    given = [] if "--strategy" in arguments else ["--strategy", "greedy"]  # instead of the grids of all
    assert message in refused(
        main(["tune", "truthfulqa", "--miniature", "--limit", "2", *given, *arguments]), *capfd.readouterr()
    )


def test_only_tune_has_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "truthfulqa", "--miniature", "--validation", "10"]) == 2
    assert "--validation" in capfd.readouterr().err
