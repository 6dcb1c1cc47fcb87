"""Placeholders in the parameters of strategies."""

from __future__ import annotations

import pytest

from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.placeholders import filled, placeholders_of
from decoding.strategies.registry import parse_strategy

VALUES = {"context": "Lima lies in Peru.\n\n", "documents": ["One.\n\n", "Two.\n\n"], "question": "Where is Lima?"}


@pytest.mark.parametrize(
    ("spec", "named", "expected"),
    [
        ("context-aware:context={context},alpha=1", {"context"}, ("context", "Lima lies in Peru.\n\n")),
        ("adaptive-context:context=Read: {context}", {"context"}, ("context", "Read: Lima lies in Peru.\n\n")),
        ("documents:documents={documents}", {"documents"}, ("documents", ("One.\n\n", "Two.\n\n"))),
        ("documents:documents=Zero.;{documents}", {"documents"}, ("documents", ("Zero.", "One.\n\n", "Two.\n\n"))),
        ("context-aware:context=All: {documents}.", {"documents"}, ("context", "All: One.\n\nTwo..")),
        (
            "lol:amateur=induced,lower_layers=0.5,guidance={question} {unknown}",
            {"question"},
            ("guidance", "Where is Lima? {unknown}"),
        ),
        ("contrastive-decoding:amateur=prompt:{context}", {"context"}, ("amateur", "prompt:Lima lies in Peru.\n\n")),
    ],
)
def test_a_parameter_is_filled(spec: str, named: set[str], expected: tuple[str, object]) -> None:
    configuration = Configuration(parse_strategy(spec), {"strategy": spec})
    assert placeholders_of(configuration.spec, VALUES) == named
    new = filled(configuration, VALUES)
    name, value = expected
    found = getattr(new.spec.strategy, name)
    assert (found if isinstance(found, (str, tuple)) else str(found)) == value
    assert new.hash == configuration.hash
    assert not placeholders_of(new.spec, VALUES)


def test_the_texts_of_readers_among_terms_are_filled() -> None:
    spec = parse_strategy("weighted-contrast:terms=1.5*prompt:{context} - 0.5*instead:{question},plausible=reader 1")
    assert placeholders_of(spec, VALUES) == {"context", "question"}
    terms = filled(Configuration(spec, {}), VALUES).spec.strategy.terms.terms
    assert [(term.reader.text, term.weight) for term in terms] == [
        ("Lima lies in Peru.\n\n", 1.5),
        ("Where is Lima?", -0.5),
    ]


@pytest.mark.parametrize("spec", ["greedy", "dola", "context-aware:context={contex}"])
def test_a_strategy_without_placeholders_stays(spec: str) -> None:
    configuration = Configuration(parse_strategy(spec), {})
    assert placeholders_of(configuration.spec, VALUES) == set()
    assert filled(configuration, VALUES) is configuration
