"""Isotropy of a model's hidden states, and the headroom that it leaves contrastive search.

from decoding.evals import isotropy

result = isotropy.analyse(model, tokenizer, texts)
print(isotropy.verdict(result).text)
isotropy.plot_layers([result])
"""

from typing import TYPE_CHECKING

from decoding.lazy import lazy_names

if TYPE_CHECKING:
    from decoding.evals.isotropy.analysis import analyse, analyse_each
    from decoding.evals.isotropy.plots import plot_comparison, plot_layers, plot_rogue, plot_spectrum
    from decoding.evals.isotropy.report import html_report
    from decoding.evals.isotropy.results import Isotropy
    from decoding.evals.isotropy.settings import PAPER, Settings
    from decoding.evals.isotropy.texts import TextFile, stories
    from decoding.evals.isotropy.verdicts import Verdict, verdict

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

_MODULES = {
    "analysis": ("analyse", "analyse_each"),
    "plots": ("plot_comparison", "plot_layers", "plot_rogue", "plot_spectrum"),
    "report": ("html_report",),
    "results": ("Isotropy",),
    "settings": ("PAPER", "Settings"),
    "texts": ("TextFile", "stories"),
    "verdicts": ("Verdict", "verdict"),
}

__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
)
