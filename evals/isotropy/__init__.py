"""How isotropic a model's hidden states are, and whether that leaves contrastive search room.

    from decoding.evals import isotropy

    result = isotropy.analyse(model, tokenizer, texts)
    print(isotropy.verdict(result).text)
"""

from decoding.evals.isotropy.analysis import analyse, analyse_each
from decoding.evals.isotropy.results import PAPER, Isotropy, Settings

__all__ = ["PAPER", "Isotropy", "Settings", "analyse", "analyse_each"]
