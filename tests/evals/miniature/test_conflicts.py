"""Questions of the world whose documents contradict it, and their controls."""

from __future__ import annotations

import pytest

from decoding.evals.miniature.conflicts import MOST_DOCUMENTS, ConflictQuestion, conflicts
from decoding.evals.miniature.world import make_world


def stating(item: ConflictQuestion, documents: tuple[str, ...], forms: tuple[str, ...]) -> list[str]:
    return [document for document in documents if any(form in document for form in forms)]


@pytest.mark.parametrize("documents", [1, 3])
def test_one_document_has_the_answer_and_one_of_the_controls_the_truth(documents: int) -> None:
    facts = {fact.id: fact for fact in make_world().facts}
    places = set()
    for item in conflicts("test", documents=documents):
        fact = facts[item.id]
        assert fact.popular is None  # the world has one opinion only
        assert fact.truth in item.memory[0]
        assert not set(item.answers) & {*item.memory, *item.others}
        assert len(item.conflicting) == len(item.agreeing) == documents
        (conflicting,) = stating(item, item.conflicting, item.answers)
        (agreeing,) = stating(item, item.agreeing, item.memory)
        assert not stating(item, item.conflicting, (*item.memory, *item.others))
        assert not stating(item, item.agreeing, (*item.answers, *item.others))
        others = [document for document in item.conflicting if document != conflicting]
        assert [document for document in item.agreeing if document != agreeing] == others
        assert not any(fact.entity.name.lower() in document.lower() for document in others)
        places.add(item.conflicting.index(conflicting))
    assert places == set(range(documents))


def test_contradicting_documents_stand_beside_the_true_one() -> None:
    for item in conflicts("validation", documents=3, contradicting=True):
        assert len(stating(item, item.agreeing, item.memory)) == 1
        assert len(stating(item, item.agreeing, item.others)) == 2
        assert not stating(item, item.agreeing, item.answers)


def test_questions_are_the_same_from_call_to_call_and_splits_share_none() -> None:
    assert conflicts("test") == conflicts("test")
    ids = {split: {item.id for item in conflicts(split)} for split in ("validation", "test")}
    assert not ids["validation"] & ids["test"]


def test_another_split_or_number_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'train'"):
        conflicts("train")
    for documents in (0, MOST_DOCUMENTS + 1):
        with pytest.raises(ValueError, match=f"documents={documents}: must be 1 to {MOST_DOCUMENTS}"):
            conflicts("test", documents=documents)
