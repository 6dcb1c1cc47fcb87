"""The terms of a weighted contrast, ``1.5*expert - 0.5*instead:TEXT``: readers with their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decoding.errors import OptionError, shown
from decoding.parameters import plain_number
from decoding.strategies.contrast.reader_kinds import EXPERT, as_kind
from decoding.strategies.contrast.terms_text import role_of_term, terms_in_text

__all__ = ["Term", "Terms", "as_terms", "change_readers"]


EXPECTED = "must be readers with weights, such as [('expert', 1.5), (Self(skip_layers=[8, 9]), -0.5)], or as text "
EXPECTED += "'1.5*expert - 0.5*self:skip_layers=8-9'"


@dataclass(frozen=True)
class Term:
    """A reader, its weight and its role in the strategy.

    Attributes:
        reader: what :func:`decoding.strategies.contrast.amateurs.second_reader` takes; "expert" for the generating
            model on the prompt as it is.
        weight: of its scores.
        role: its name.
    """

    reader: Any
    weight: float
    role: str


@dataclass(frozen=True)
class Terms:
    """Readers with weights."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        """Write them as a command line would."""
        text = ""
        for term in self.terms:
            sign = ("-" if term.weight < 0 else "") if not text else (" - " if term.weight < 0 else " + ")
            text += f"{sign}{_number(abs(term.weight))}*{_name(term.reader)}"
        return text


def as_terms(given: Any) -> Terms:
    """The terms that are given as text, or as a sequence of (reader, weight) or (reader, weight, role).

    Raises:
        OptionError: something else, a weight that is no number, or a role or the expert twice.
    """
    if isinstance(given, Terms):
        return given
    pairs = terms_in_text(given, EXPECTED) if isinstance(given, str) else given
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)) or not pairs:
        raise OptionError(f"terms={shown(given)}: {EXPECTED}")
    terms = [_term(number, pair) for number, pair in enumerate(pairs, 1)]
    roles = [term.role for term in terms]
    twice = next((role for role in roles if roles.count(role) > 1), None)
    if twice is not None:
        raise OptionError(f"terms: {twice!r} is there twice; give each reader one weight and a role of its own")
    return Terms(tuple(terms))


def _term(number: int, pair: Any) -> Term:
    if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) not in (2, 3):
        raise OptionError(f"terms: {shown(pair)} is no pair of a reader and a weight; terms {EXPECTED}")
    reader, weight, role = as_kind(pair[0]), plain_number(pair[1]), pair[2] if len(pair) == 3 else None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise OptionError(f"terms: the weight of reader {number} is {shown(pair[1])}; must be a finite number")
    if str(reader) in (EXPERT, "self"):
        reader, role = EXPERT, EXPERT
    role = role_of_term(number) if role is None else role
    if not isinstance(role, str) or not role.strip():
        raise OptionError(f"terms: the role of reader {number} is {shown(role)}; must be a name")
    return Term(reader, float(weight), role)


def change_readers(name: str, given: Any, change: Callable[[Any, str], Any]) -> Terms:
    """The terms with other readers in place of those beside the expert; see
    :func:`decoding.strategies.named_readers.change_named_readers`.

    Args:
        name: of the parameter.
        given: see :func:`as_terms`.
        change: from a reader and its place, ``terms-2``, to the reader in its stead.
    """
    return Terms(
        tuple(
            term if term.role == EXPERT else replace(term, reader=change(term.reader, f"{name}-{number}"))
            for number, term in enumerate(as_terms(given).terms, 1)
        )
    )


def _number(weight: float) -> str:
    return f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)


def _name(reader: Any) -> str:
    named = hasattr(reader, "get_output_embeddings")
    return str(getattr(reader, "name_or_path", "") or type(reader).__name__) if named else str(reader)
