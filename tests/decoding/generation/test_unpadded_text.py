"""Texts without their padding, wherever it is."""

from __future__ import annotations

import torch

from decoding.generation.unpadded_text import NO_TOKEN, UnpaddedText, last_prefixes


def test_padding_becomes_no_token_before_the_text() -> None:
    prompt = torch.tensor([[0, 0, 5, 6], [7, 0, 8, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
    text = UnpaddedText(prompt, mask)
    right = [[NO_TOKEN, NO_TOKEN, 5, 6], [NO_TOKEN, NO_TOKEN, 7, 8], [1, 2, 3, 4]]
    assert text(prompt).tolist() == right
    longer = torch.cat([prompt, torch.tensor([[9], [0], [9]])], dim=1)
    assert text(longer).tolist() == [[*row, token] for row, token in zip(right, (9, 0, 9), strict=True)]
    text.reorder(torch.tensor([1, 1, 0]))
    assert text(longer[[1, 1, 0]]).tolist() == [[*right[1], 0], [*right[1], 0], [*right[0], 9]]


def test_a_prompt_without_padding_is_the_text_itself() -> None:
    prompt = torch.tensor([[5, 6], [7, 8]])
    wide = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])  # of a cache that holds more than the prompt
    for mask in (None, torch.ones(2, 2), wide, torch.ones(2, 1, 2, 2), torch.ones(2, 1)):
        text = UnpaddedText(prompt, mask)
        assert text(prompt) is prompt
        text.reorder(torch.tensor([1, 0]))
    empty = torch.empty(2, 0, dtype=torch.long)  # of embeddings
    assert UnpaddedText(empty, torch.ones(2, 4))(empty) is empty


def test_the_last_prefixes_of_a_text_end_in_the_last_column() -> None:
    text = torch.tensor([4, 5, 6])
    assert last_prefixes(text, 1).tolist() == [[4, 5, 6]]
    assert last_prefixes(text, 3).tolist() == [[-1, -1, 4], [-1, 4, 5], [4, 5, 6]]
