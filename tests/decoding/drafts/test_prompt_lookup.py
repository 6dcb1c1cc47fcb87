"""Drafts by lookup, against a search written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.drafts.prompt_lookup import AMBIGUOUS, LONGEST, RATES, PromptLookup

CPU = torch.device("cpu")


def _sought(sources: Sequence[Sequence[int]], text: Sequence[int], n: int) -> tuple[list[int], int]:
    """What follows the last occurrence of the longest end of the text that stands before, the text's own last, which
    goes on with what was copied; and its kind. One token must always have been followed by the same.
    """
    for size in range(min(LONGEST, len(text)), 0, -1):
        end = list(text[-size:])
        found = None
        followers = set()
        for source in [*sources, text]:
            for i in range(size, len(source)):
                if list(source[i - size : i]) == end:
                    followers.add(source[i])
                    found = list(source[i : i + n])
                    while source is text and len(found) < n:
                        found.append([*text, *found][i + len(found)])
        if found is not None and (size > 1 or len(followers) == 1):
            return found, size if len(followers) == 1 else AMBIGUOUS
    return [], AMBIGUOUS


tokens = st.lists(st.integers(0, 2), max_size=14)


@settings(max_examples=150, deadline=None)
@given(st.lists(tokens, max_size=2), tokens, st.lists(tokens, max_size=4), st.integers(0, 8))
def test_what_followed_the_longest_match(
    sources: list[list[int]], text: list[int], additions: list[list[int]], n: int
) -> None:
    lookup = PromptLookup([sources], CPU)
    for addition in [[], *additions]:
        text = [*text, *addition]
        drafts = lookup.propose([text], [n])
        expected, kind = _sought(sources, text, n)
        assert drafts.tokens[0, : drafts.counts[0]].tolist() == expected
        assert drafts.kind(0) == (kind if expected else AMBIGUOUS)
        assert kind < len(RATES)
        assert drafts.probabilities is None


def test_rows_have_sources_and_numbers_of_their_own() -> None:
    lookup = PromptLookup([[[1, 2, 3, 4, 5]], []], CPU)
    drafts = lookup.propose([[9, 1, 2], [1, 2, 7, 1, 2]], [3, 1])
    assert drafts.counts == [3, 1]
    assert drafts.tokens.tolist() == [[3, 4, 5], [7, 0, 0]]
    assert lookup.propose([[9, 1, 2, 3], [1, 2, 7, 1, 2, 8]], [0, 0]).tokens.shape == (2, 0)
    # A row that asked for nothing in a round has what it read then.
    assert lookup.propose([[9, 1, 2, 3], [1, 2, 7, 1, 2, 8, 7, 1, 2]], [0, 2]).tokens.tolist() == [[0, 0], [8, 7]]


def test_a_text_that_repeats_itself_is_foretold_beyond_its_end() -> None:
    lookup = PromptLookup([[]], CPU)
    assert lookup.propose([[5, 1, 2, 3, 1, 2]], [7]).tokens.tolist() == [[3, 1, 2, 3, 1, 2, 3]]
    behind = lookup.propose_behind([[5, 1, 2, 3, 1, 2]], [[3, 1]], [5])
    assert behind.tokens.tolist() == [[2, 3, 1, 2, 3]]


def test_one_token_is_a_match_where_the_same_token_always_followed() -> None:
    lookup = PromptLookup([[[1, 2, 3, 8, 1, 2, 4]]], CPU)
    drafts = lookup.propose([[9, 1]], [3])
    assert drafts.tokens.tolist() == [[2, 4]]
    assert drafts.kind(0) == 1
    ambiguous = lookup.propose([[9, 1, 2]], [3])
    assert ambiguous.tokens.tolist() == [[4]]
    assert ambiguous.kind(0) == AMBIGUOUS
    assert lookup.propose([[9, 1, 7, 2]], [3]).tokens.shape == (1, 0)  # 3 and 4 have followed
