"""Many texts behind one prefix in one forward pass, each shared beginning read once.

The texts form a forest: a token that several of them have in the same place, after the same tokens, is one node. Nodes
stand side by side as query tokens; a 4-D additive mask lets each see the prefix, its ancestors and itself, and its
position is its depth. It is the shared prefix of :mod:`decoding.stream.shared_prefix`, grown branches of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

__all__ = ["TokenTree"]


class TokenTree:
    """Texts, each beginning that several share held once.

    Args:
        texts: token ids; may be empty.

    Attributes:
        tokens: (nodes,) token ids; a node stands after its parent.
        depths: (nodes,) how many tokens of its text come before it.
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
        """(nodes, nodes) bool: which others each node looks at, itself included."""
        seen = torch.eye(len(self), dtype=torch.bool).numpy()
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.from_numpy(seen)
