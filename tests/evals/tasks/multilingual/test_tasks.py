"""Figures of the tasks against the metrics' own functions, and what their prompts say."""

import json
from pathlib import Path

import pytest
import torch

from decoding.errors import InputError, OptionError
from decoding.evals import miniature
from decoding.evals.engine.configurations import Configuration, configured
from decoding.evals.engine.runner import run
from decoding.evals.engine.text_generation import GeneratedText, TextGenerator
from decoding.evals.metrics.distribution import mauve
from decoding.evals.metrics.likelihood import coherence
from decoding.evals.metrics.overlap import bleu, chrf, rouge
from decoding.evals.metrics.repetition import diversity, repetition
from decoding.evals.sandbox import Limits, isolation, run_program
from decoding.evals.tasks.multilingual.data import Passage, Problem, problems
from decoding.evals.tasks.multilingual.languages import LANGUAGES
from decoding.evals.tasks.multilingual.programs import Code
from decoding.evals.tasks.multilingual.tasks import OpenEnded, Summarization, Translation
from decoding.rows import read_rows
from decoding.strategies.registry import parse_strategy

EXPERT = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)
HUMAN_EVAL = Path(__file__).resolve().parents[5] / "shared" / "data" / "code" / "HumanEval.jsonl.gz"
TEXTS = ["a b a b a b", "", "c d e f g c d e f", "h i h i"]
PASSAGES = [Passage(f"prefix {i}", f" reference {i}") for i in range(4)]


def configuration(spec):
    return Configuration(parse_strategy(spec), {"strategy": spec, "parameters": {}, "model": {}})


class Reciting:
    """A text generator that returns given texts, one after the other."""

    max_new_tokens, stop, model = 8, (), None

    def __init__(self, texts, tokenizer=None):
        self.texts, self.tokenizer, self.prompts, self.seeds, self.batches = iter(texts), tokenizer, [], [], []

    def generate(self, choice, prompts, seeds, generation_config):
        self.prompts += prompts
        self.seeds += seeds
        self.batches.append(len(prompts))
        return [GeneratedText(next(self.texts), 3) for _ in prompts]


def figures(task, spec="greedy", **more):
    (entry,) = run(task, [configuration(spec)], **more)["configurations"]
    return {name: figure["value"] for name, figure in entry["metrics"].items()}


@EXPERT
def test_a_run_goes_on_with_the_same_texts_in_batches_of_another_size(tmp_path):
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    passages = [
        Passage(prompt, "") for prompt in ("The old clockmaker", "A river", "Once upon a time there was", "Tom")
    ]
    specs = [parse_strategy(spec) for spec in ("greedy", "nucleus", "sampling:temperature=1.5")]

    def written(output, batch_size):
        task = OpenEnded("t", TextGenerator(model, tokenizer, 6), passages, {}, batch_size=batch_size)
        made = configured(specs, model, tokenizer, "expert", task=task.settings)
        run(task, made, output=output)
        return sorted((output / "samples_t.jsonl").read_text().splitlines())

    whole = written(tmp_path / "whole", 2)
    assert len(set(whole)) == len(passages) * len(specs)
    cut = (tmp_path / "whole" / "samples_t.jsonl").read_text().splitlines()[:6]  # the first batch
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "samples_t.jsonl").write_text("\n".join(cut) + "\n")
    assert written(tmp_path / "cut", 3) == whole


@pytest.mark.parametrize("units", ["whitespace", "characters"])
def test_open_ended_figures_are_pooled_over_the_documents(units):
    found = figures(OpenEnded("t", Reciting(TEXTS), PASSAGES, {}, batch_size=3, units=units))
    assert found["diversity"] == pytest.approx(diversity(TEXTS, units))
    assert [found[f"rep-{n}"] for n in (2, 3, 4)] == [repetition(TEXTS, n, units) for n in (2, 3, 4)]
    assert found["tokens"] == 3


@EXPERT
def test_coherence_is_the_judges_over_texts_that_are_not_empty():
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    texts = [" had a small house", "", " was tired", " a b"]
    task = OpenEnded("t", Reciting(texts), PASSAGES, {}, judge=(model, tokenizer))
    direct = coherence([passage.text for passage in PASSAGES], texts, model, tokenizer)
    assert figures(task)["coherence"] == pytest.approx(direct.mean, abs=1e-5)


@EXPERT
def test_mauve_compares_with_what_people_wrote_and_has_no_interval():
    pytest.importorskip("mauve")
    pair = miniature.load("expert", dtype=torch.float32)
    texts = ["the town lies", "the sea", "", "a cat in a town"]
    (entry,) = run(OpenEnded("t", Reciting(texts), PASSAGES, {}, featurizer=pair), [configuration("greedy")])[
        "configurations"
    ]
    direct = mauve(texts, [passage.reference for passage in PASSAGES], *pair, same_length=True)
    assert entry["metrics"]["MAUVE"] == {"value": pytest.approx(direct.score), "low": None, "high": None}
    assert entry["metrics"]["diversity"]["low"] is not None
    with pytest.raises(InputError, match="fewer than 2 of the data's texts have"):
        OpenEnded("t", Reciting(texts), [Passage("a", " b"), Passage("c", "")], {}, featurizer=pair)


@EXPERT
def test_a_prefix_of_tokens_ends_with_a_whole_character():
    _, tokenizer = miniature.load("expert", dtype=torch.float32)
    passages = [Passage("ไทย", " ไทย"), Passage("the town lies by", " the sea"), Passage("", "ab")]
    generator = Reciting(TEXTS, tokenizer)
    task = OpenEnded("t", generator, passages, {}, prefix_length=4)
    figures(task)
    thai, english, short = generator.prompts
    assert thai == "ไท"  # three bytes a character, perhaps with one token in front
    assert english in "the town lies by the sea"
    assert len(tokenizer(english, add_special_tokens=False)["input_ids"]) == 4
    assert short == "ab"


def test_bleu_and_chrf_of_translations_are_sacrebleus_of_all_sentences():
    texts = [" the cat sat on the mat", " a dog ran fast over the hill", "", " so it goes"]
    rows = [
        Passage(f"{i}", reference)
        for i, reference in enumerate(["the cat sat on a mat", "the dog ran fast over the hill", "x", "so it goes on"])
    ]
    pair = (LANGUAGES["de"], LANGUAGES["en"])
    generator = Reciting(texts)
    task = Translation("t", generator, rows, {}, examples=[Passage("Haus", "house")], languages=pair)
    found = figures(task)
    written, references = [text.strip() for text in texts], [row.reference for row in rows]
    assert found["BLEU"] == pytest.approx(bleu(written, references).score)
    assert found["chrF"] == pytest.approx(chrf(written, references).score)
    sentences = [chrf([text], [reference]).score for text, reference in zip(written, references, strict=True)]
    assert found["sentence chrF"] == pytest.approx(sum(sentences) / 4)
    assert generator.prompts[1] == "German: Haus\nEnglish: house\n\nGerman: 1\nEnglish:"


def test_a_summary_has_the_rouge_of_rouge_score():
    texts = [" A cat sat.", " Nothing", " Dogs ran fast", ""]
    rows = [Passage(f"\n\nArticle:\n{i}\n\nSummarization: ", "A cat sat down. Dogs ran") for i in range(4)]
    generator = Reciting(texts)
    found = figures(Summarization("t", generator, rows, {}, examples=[Passage("Long: ", " Short.")], units=None))
    direct = rouge([text.strip() for text in texts], [row.reference for row in rows])
    assert {name: found[name] for name in ("rouge1", "rouge2", "rougeL")} == {
        name: pytest.approx(direct[name]) for name in ("rouge1", "rouge2", "rougeL")
    }
    assert generator.prompts[0] == "Long: Short.\n\nArticle:\n0\n\nSummarization:"


PROBLEMS = [
    Problem(f"T/{i}", "def double(x):\n", "double", "def check(f):\n    assert f(2) == 4\n    assert f(3) == 6\n")
    for i in range(2)
]
RIGHT, WRONG, LOOPING = "    return 2 * x\n", "    return x + 2\n", "    while True: pass\n"


@pytest.fixture
def code():
    try:
        isolation()
    except OptionError as error:
        pytest.skip(f"this kernel cannot isolate programs: {error}")

    def made(texts, samples=1, k=(1,), **more):
        limits = Limits(seconds=1)
        return Code("t", Reciting(texts), PROBLEMS, {}, samples=samples, k=k, limits=limits, weak=False, **more)

    return made


def test_programs_pass_if_their_tests_do(code):
    assert figures(code([RIGHT, WRONG]))["pass@1"] == 0.5


@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason="HumanEval is not part of the repository")
def test_published_solutions_pass_their_tests(code):
    rows = read_rows(HUMAN_EVAL)[:4]
    for problem, row in zip(problems(HUMAN_EVAL)[0], rows, strict=False):
        assert run_program(problem.program(row.text("canonical_solution"))).reason == "passed"
        assert not run_program(problem.program("    return None\n")).passed


def test_pass_at_k_of_several_samples(code, tmp_path):
    task = code([RIGHT, WRONG, LOOPING, WRONG, WRONG, WRONG], samples=3, k=(1, 2))
    found = figures(task, "nucleus", output=tmp_path)
    assert found["pass@1"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["pass@2"] == pytest.approx((2 / 3 + 0) / 2)  # of three pairs, two have the right one
    assert len(set(task.generator.seeds)) == 6
    (first, _) = [json.loads(line) for line in (tmp_path / "samples_t.jsonl").read_text().splitlines()]
    assert first["outcomes"] == ["passed", "AssertionError", "timed out after 1 s"]
    assert first["texts"] == [RIGHT, WRONG, LOOPING]


def test_many_samples_are_written_a_batch_at_a_time(code):
    texts = [RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT]
    task = code(texts, samples=3, k=(1, 3), batch_size=4)
    assert figures(task, "nucleus")["pass@1"] == pytest.approx((1 / 3 + 1) / 2)
    assert task.generator.batches == [4, 2]
    assert len(set(task.generator.seeds)) == 6


def test_one_program_stands_for_all_where_nothing_is_drawn(code):
    task = code([RIGHT, WRONG], samples=5, k=(1, 5))
    found = figures(task)
    assert (found["pass@1"], found["pass@5"]) == (0.5, 0.5)
    assert len(task.generator.prompts) == 2


def test_k_above_the_samples_is_refused():
    with pytest.raises(OptionError, match="--k 2: there are 1 samples"):
        Code("t", Reciting([]), PROBLEMS, {}, samples=1, k=(1, 2), limits=Limits(), weak=False)


def test_other_documents_or_lengths_are_other_settings():
    def settings(passages, generator=None):
        return OpenEnded("t", generator or Reciting([]), passages, {}).settings

    longer = Reciting([])
    longer.max_new_tokens = 9
    assert settings(PASSAGES) == settings(list(PASSAGES))
    assert settings(PASSAGES) != settings(PASSAGES[1:])
    assert settings(PASSAGES) != settings(PASSAGES, longer)
