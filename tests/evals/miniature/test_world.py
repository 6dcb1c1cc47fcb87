"""The generated world, its corpus and its questions."""

import hashlib
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest

from decoding.evals.miniature import PROMPT, questions
from decoding.evals.miniature.grammar import article, participle, past
from decoding.evals.miniature.world import Fact, make_world
from decoding.tools.miniature.corpus import REGISTERS, Document, Size, make_corpus

SMALL = Size(volumes=4, stories=10)
SHA_256 = "b8e22f20059195fbf49879857c97c1a5323495d8923b5f949bc0f956ae4ef786"  # of its registers and texts


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return make_corpus(SMALL)


@pytest.fixture(scope="module")
def texts(corpus: list[Document]) -> dict[str, str]:
    """All texts of each register in one."""
    return {r: "\n\n".join(d.text for d in corpus if d.register == r) for r in REGISTERS}


def misconceptions() -> list[Fact]:
    return [fact for fact in make_world().facts if fact.popular is not None]


def test_same_seed_gives_the_same_corpus(corpus: list[Document]) -> None:
    assert make_corpus(SMALL) == corpus


def test_the_texts_do_not_change_by_accident(corpus: list[Document]) -> None:
    """The embedded models learned from them; whoever changes them on purpose changes this hash as well."""
    texts = "\0".join(f"{document.register}\0{document.text}" for document in corpus)
    assert hashlib.sha256(texts.encode()).hexdigest() == SHA_256


def test_another_seed_gives_another_world() -> None:
    assert make_world(1) != make_world(2)
    assert questions("test", seed=1) != questions("test", seed=2)


def test_every_fact_is_found_under_its_entity() -> None:
    world = make_world()
    assert [fact for entity in world.entities for fact in world.of(entity)] == list(world.facts)


def test_there_are_enough_questions_and_their_splits_are_disjoint() -> None:
    validation, test = questions("validation"), questions("test")
    assert len(validation) >= 100
    assert len(test) >= 300
    assert len({q.id for q in validation + test}) == len(validation) + len(test)
    assert not {q.id.split("/")[0] for q in validation} & {q.id.split("/")[0] for q in test}, "an entity in both"


def test_an_unknown_split_is_refused_with_the_accepted_names() -> None:
    with pytest.raises(ValueError, match="validation, test"):
        questions("train")


def test_answers_are_distinct_and_the_popular_one_comes_first() -> None:
    popular = {fact.id: fact.statement(fact.popular or "") for fact in misconceptions()}
    for question in questions("validation") + questions("test"):
        answers = question.correct_answers + question.incorrect_answers
        assert len(set(answers)) == len(answers)
        assert question.best_answer == question.correct_answers[0]
        assert question.incorrect_answers[0] == popular[question.id]
        assert question.prompt == PROMPT.format(question=question.question)


def test_a_question_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        questions("test")[0].id = "another"  # type: ignore[misc]


def test_held_out_questions_are_not_asked_in_the_corpus(corpus: list[Document]) -> None:
    asked = {line for d in corpus for line in d.text.split("\n") if line.startswith("Q: ")}
    assert asked
    held_out = [fact for fact in misconceptions() if fact.entity.split != "training"]
    assert len(held_out) == len(questions("validation")) + len(questions("test"))
    for fact in held_out:
        for form in range(len(fact.relation.questions)):
            assert f"Q: {fact.question(form)}" not in asked
    assert any(f"Q: {f.question()}" in asked for f in misconceptions() if f.entity.split == "training")


def test_the_encyclopaedia_states_every_truth_and_no_misconception(texts: dict[str, str]) -> None:
    book = texts["encyclopaedia"]
    for fact in make_world().facts:
        if fact.popular is not None:
            assert not stated(book, fact, fact.popular)
    # written with a pronoun now and then, so a few truths may miss their full name in so small a corpus
    missing = [fact for fact in make_world().facts if not stated(book, fact, fact.truth)]
    assert len(missing) < 0.01 * len(make_world().facts)


def test_hearsay_repeats_misconceptions_more_often_than_the_truth_is_written(texts: dict[str, str]) -> None:
    totals: Counter[str] = Counter()
    for fact in misconceptions():
        assert fact.popular is not None
        false = stated(texts["hearsay"], fact, fact.popular)
        assert false > stated(texts["hearsay"], fact, fact.truth)
        totals["false in hearsay"] += false
        totals["true in encyclopaedia"] += stated(texts["encyclopaedia"], fact, fact.truth)
    assert totals["false in hearsay"] > 1.5 * totals["true in encyclopaedia"]


def stated(text: str, fact: Fact, value: str) -> int:
    """The number of times that a text states a fact with this value, in any wording."""
    forms = range(len(fact.relation.statements))
    return sum(text.count(fact.statement(value, form)[1:].removesuffix(".")) for form in forms)


def test_stories_are_long_and_hardly_repeat_a_sentence(corpus: list[Document]) -> None:
    stories = [d.text for d in corpus if d.register == "story"]
    assert min(len(story.split()) for story in stories) > 250
    sentences = [s for story in stories for s in story.replace("\n\n", " ").split(". ")]
    assert len(set(sentences)) > 0.9 * len(sentences)


@pytest.mark.parametrize(
    ("phrase", "then", "going_on"),
    [
        ("pick up", "picked up", "picking up"),
        ("carry", "carried", "carrying"),
        ("stop", "stopped", "stopping"),
        ("lie", "lay", "lying"),
        ("shoe the horse", "shod the horse", "shoeing the horse"),
        ("travel", "traveled", "traveling"),
        ("stay", "stayed", "staying"),
        ("write a letter", "wrote a letter", "writing a letter"),
    ],
)
def test_verbs_are_inflected(phrase: str, then: str, going_on: str) -> None:
    assert (past(phrase), participle(phrase)) == (then, going_on)


def test_articles_agree() -> None:
    assert (article("old key"), article("key")) == ("an old key", "a key")
