"""How isotropic a model's hidden states are, and whether that leaves contrastive search room.

from decoding.evals import isotropy

result = isotropy.analyse(model, tokenizer, texts)
print(isotropy.verdict(result).text)
isotropy.plot_layers([result])
"""

from decoding.evals.isotropy.analysis import analyse, analyse_each
from decoding.evals.isotropy.plots import plot_comparison, plot_layers, plot_rogue, plot_spectrum
from decoding.evals.isotropy.report import html_report
from decoding.evals.isotropy.results import PAPER, Isotropy, Settings
from decoding.evals.isotropy.texts import TextFile, stories
from decoding.evals.isotropy.verdict import Verdict, verdict

__all__ = [
    "PAPER",
    "Isotropy",
    "Settings",
    "TextFile",
    "Verdict",
    "analyse",
    "analyse_each",
    "html_report",
    "plot_comparison",
    "plot_layers",
    "plot_rogue",
    "plot_spectrum",
    "stories",
    "verdict",
]
