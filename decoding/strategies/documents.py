"""Dynamic contrastive decoding of several documents (DVD; Jin et al., EMNLP 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.errors import OptionError, shown
from decoding.kernels.contrast import weighted_contrast
from decoding.parameters import require_number
from decoding.strategies.contrast.amateurs import cut_to_shared, row_tokens, text_reader
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import check_text, texts_of

__all__ = ["Documents"]

ALL = "expert with all documents"


@dataclass(frozen=True)
class Documents(ContrastStrategy):
    """Dynamic contrastive decoding (DVD): of several documents the surest is amplified at each token.

    The score is (1 + β)·z_all - β·z_none + γ·(z_max - z_min): z are logits after all documents and the prompt, after
    the prompt alone, and after the one document and the prompt with which the model is most and least sure of its next
    token. Source: Jin et al., "DVD: Dynamic Contrastive Decoding for Knowledge Amplification in Multi-Document Question
    Answering", EMNLP 2024. Ours: sure is the difference of the two largest probabilities, and an empty line comes
    after each of several documents. All readers go through one forward pass a token; one document is
    :class:`decoding.ContextAware` at α = β.

    Args:
        documents: a sequence of texts or of token ids, each for all rows; none of them empty. In text, ";" does as
            well as ",".
        none_weight: β >= 0.
        document_weight: γ >= 0.
        tokenizer: for documents given as text.
        placement: see :class:`decoding.ContextAware`.

    Raises:
        OptionError: a value out of range, no document, or text without a tokenizer (when a call begins).
        InputError: documents that fill the model's context length (likewise).

    Example:
        >>> strategy = Documents(["Paris lies on the Seine. ", "Lyon lies on the Rhône. "], tokenizer=tokenizer)
        >>> decoding.generate(model, **question, strategy=strategy)
    """

    documents: Any = field(metadata={"example": "FIRST TEXT;SECOND TEXT"})
    none_weight: float = field(default=0.25, metadata={"grid": (0.25, 0.5)})
    document_weight: float = field(default=0.2, metadata={"grid": (0.1, 0.2)})
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = None
    name: ClassVar[str] = "documents"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.documents.split(";") if isinstance(self.documents, str) else self.documents
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
            raise OptionError(f"documents={shown(self.documents)}: must be a sequence of texts or of token ids")
        for number, document in enumerate(given, 1):
            _, by_row = texts_of(document, f"document {number}")
            if by_row:
                raise OptionError(f"document {number}: is a sequence of texts; each document is one for all rows")
        if len({isinstance(document, str) for document in given}) > 1:
            raise OptionError("documents: some are text and some token ids; give all in one form")
        object.__setattr__(self, "documents", tuple(given))
        require_number("none_weight", self.none_weight, 0.0)
        require_number("document_weight", self.document_weight, 0.0)
        require_placement(self.placement)

    def check(self, model: Any) -> None:
        """Raise OptionError where documents are text and there is no tokenizer."""
        for document in self.documents:
            check_text(document, self.tokenizer, "documents")

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model on the prompt, on all documents and the prompt, and on each document and the prompt."""
        documents: Sequence[Any] = self.documents
        if isinstance(documents[0], str):
            if len(documents) > 1:
                documents = [document.strip("\n") + "\n\n" for document in documents]
            joined: Any = "".join(documents)
        else:
            joined = list(itertools.chain.from_iterable(row_tokens(ids, None, 1, "document")[0] for ids in documents))
        roles = {ALL: joined}
        if self._amplifies:
            roles |= {_role(number): document for number, document in enumerate(documents)}
        others = [
            text_reader(role, text, self.tokenizer, rows, "documents", self.placement) for role, text in roles.items()
        ]
        return [Reader(EXPERT), *others]

    @property
    def _amplifies(self) -> bool:
        return len(self.documents) > 1 and self.document_weight > 0

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The logits with all documents, against those without, and the surest document's against the least sure's."""
        everything, nothing = cut_to_shared(logits[ALL].final, logits[EXPERT].final)
        readers, weights = [everything, nothing], [1 + self.none_weight, -self.none_weight]
        if self._amplifies:
            single = self._of_documents(logits)
            for chosen, weight in zip(_surest_and_least(single), (1, -1), strict=True):
                readers.append(single.take_along_dim(chosen[None, ..., None], dim=0)[0])
                weights.append(weight * self.document_weight)
        return Contrast(lambda _: weighted_contrast(readers, weights), lambda: everything, None)

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """The weights; of the documents the surest one's is γ and the least sure one's -γ."""
        weights = {EXPERT: ReaderWeights(-self.none_weight), ALL: ReaderWeights(1 + self.none_weight)}
        if self._amplifies:
            surest, least = _surest_and_least(self._of_documents(logits))
            for number in range(len(self.documents)):
                sign = (surest == number).float() - (least == number).float()
                weights[_role(number)] = ReaderWeights(self.document_weight * sign)
        return ContrastParts(weights)

    def _of_documents(self, logits: Mapping[str, ReaderLogits]) -> Tensor:
        """(documents, ..., vocab) the logits after each document."""
        return torch.stack([logits[_role(number)].final for number in range(len(self.documents))])


def _surest_and_least(single: Tensor) -> tuple[Tensor, Tensor]:
    """(...) the number of the document of (documents, ..., vocab) with which the model is most sure, and least."""
    best = single.float().softmax(-1).topk(2, dim=-1).values
    sureness = best[..., 0] - best[..., 1]  # (documents, ...)
    return sureness.argmax(0), sureness.argmin(0)


def _role(number: int) -> str:
    return f"expert with document {number + 1}"
