"""Retrieval heads: the attention heads that copy from the context, which ``masked-heads`` takes away.

from decoding.evals.heads import retrieval_heads

found = retrieval_heads(model, tokenizer)
strategy = decoding.MaskedHeads(found.heads)
"""

from typing import TYPE_CHECKING

from decoding.lazy import lazy_names

if TYPE_CHECKING:
    from decoding.evals.heads.needles import Needle, invented_needles, read_needles
    from decoding.evals.heads.results import Control, RetrievalHeads
    from decoding.evals.heads.search import retrieval_heads
    from decoding.evals.heads.settings import Settings

__all__ = [
    "Control",
    "Needle",
    "RetrievalHeads",
    "Settings",
    "invented_needles",
    "read_needles",
    "retrieval_heads",
]

_MODULES = {
    "needles": ("Needle", "invented_needles", "read_needles"),
    "results": ("Control", "RetrievalHeads"),
    "search": ("retrieval_heads",),
    "settings": ("Settings",),
}

__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
)
