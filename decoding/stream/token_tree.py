"""A tree of tokens: many texts after one prefix, each beginning that several share held once.

A token that several texts have in the same place, after the same tokens, is one node. A forward pass reads the nodes
side by side as query tokens (tree attention): each attends to the prefix, its ancestors and itself, and its position is
its depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TokenTree"]


class TokenTree:
    """Texts, each beginning that several share held once.

    Args:
        texts: token ids; may be empty.

    Attributes:
        tokens: (nodes,) token ids; a node stands after its parent.
        depths: (nodes,) number of tokens of its text before it.
        paths: for each text the nodes of its tokens.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []
        self._parents: list[int] = []
        nodes: dict[tuple[int, int], int] = {}
        for text in texts:
            node, path = -1, []
            for depth, token in enumerate(text):
                parent, node = node, nodes.setdefault((node, token), len(self.tokens))
                if node == len(self.tokens):
                    self.tokens.append(token)
                    self.depths.append(depth)
                    self._parents.append(parent)
                path.append(node)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.tokens)

    def visible(self) -> Tensor:
        """(nodes, nodes) bool, True for each node's ancestors and itself."""
        visible = torch.eye(len(self), dtype=torch.bool).numpy()
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                visible[node] |= visible[parent]
        return torch.from_numpy(visible)
