"""What an analysis gives: dataclasses that JSON, tables, plots and the report are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from decoding.errors import OptionError
from decoding.evals.engine.statistics import Interval

__all__ = ["PAPER", "Cosines", "Counts", "HeatMap", "Interval", "Isotropy", "Layer", "Penalty", "Rogue", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of an analysis.

    Attributes:
        layers: which states: 0 is what the first decoder layer is given, n what layer n gives, and the last one is what
            the head reads, after the final norm; negative numbers count from the end; None is all.
        max_length: tokens read of a text; fewer where the model's context is shorter.
        max_texts: texts read; None is all.
        batch_tokens: tokens of a forward pass, padding included. Decides memory and speed, not the numbers.
        skip_bos: leave out each text's first token, the BOS token where the tokenizer puts one: the attention sink.
        skip_special: leave out all special tokens. Padding never counts.
        sample_tokens: tokens of the sample of whole texts that centred and standardised cosines, the partition score
            and the intrinsic dimension come from; exact where all texts fit.
        neighbours: tokens of the sample that TwoNN looks at.
        zeta: ζ of IsoScore*.
        rogue: how many dimensions are named.
        seed: of the sample and of the bootstrap.

    Raises:
        OptionError: a number out of range.
    """

    layers: tuple[int, ...] | None = None
    max_length: int = 256
    max_texts: int | None = None
    batch_tokens: int = 4096
    skip_bos: bool = False
    skip_special: bool = False
    sample_tokens: int = 8192
    neighbours: int = 2048
    zeta: float = 0.2
    rogue: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "max_length": 2, "max_texts": 1, "batch_tokens": 1, "sample_tokens": self.max_length, "neighbours": 3,
            "rogue": 1, "seed": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                longest = " (max_length)" if name == "sample_tokens" else ""
                raise OptionError(f"{name}={value}: accepted are whole numbers from {low}{longest}")
        if not 0 <= self.zeta <= 1:
            raise OptionError(f"zeta={self.zeta}: accepted are numbers from 0 to 1")
        if self.layers is not None and not self.layers:
            raise OptionError("layers: none given; accepted are numbers of layers, or None for all")


PAPER = Settings(layers=(-1,), max_length=256, max_texts=2000)
"""Su and Collier (2023): last layer, first 2000 texts, at most 256 tokens, pairs within a text, nothing centred."""


@dataclass(frozen=True)
class Cosines:
    """Mean cosines between the states of two tokens; None where there is no such pair.

    Attributes:
        raw: of the states as they are, over all pairs of all texts.
        centred: less the mean state, over the pairs of the sample.
        standardised: less the mean and over the deviation of each dimension, likewise.
    """

    raw: float | None
    centred: float | None
    standardised: float | None


@dataclass(frozen=True)
class Rogue:
    """A dimension, what it adds to the mean cosine across texts, and its share of that mean."""

    dimension: int
    contribution: float
    share: float


@dataclass(frozen=True)
class Layer:
    """One layer's states.

    Attributes:
        layer: its number, as in :class:`Settings`.
        name: in words.
        isotropy: 1 - mean raw cosine within a text, pooled over all pairs: the paper's measure; None without a pair.
        within: mean cosines within a text (Su and Collier's pairs).
        across: mean cosines across texts (Ethayarajh's pairs).
        isoscore: of the covariance of all tokens.
        isoscore_star: of that covariance shrunk by ζ towards that of all data sets of the analysis together, or
            towards the identity where there is one data set.
        partition_score: min Z / max Z over the eigenvectors of the second moment, Z from the sample; 1 is isotropic.
        log_partition_score: its natural logarithm, for states so long that the score itself comes to 0.
        participation_ratio: how many directions share the variance.
        first_component: share of the variance in the first direction, 0 to 1.
        spectrum: (rank, share of the variance) at ranks spaced evenly on a logarithmic scale.
        intrinsic_dimension: TwoNN with a bootstrap interval; None where fewer than three states differ.
        rogue: the dimensions that add most to the mean cosine across texts; none where there is one text.
        mean_norm: mean length of a state, over the sample.
    """

    layer: int
    name: str
    isotropy: Interval | None
    within: Cosines
    across: Cosines
    isoscore: float
    isoscore_star: float
    partition_score: float
    log_partition_score: float
    participation_ratio: float
    first_component: float
    spectrum: tuple[tuple[int, float], ...]
    intrinsic_dimension: Interval | None
    rogue: tuple[Rogue, ...]
    mean_norm: float


@dataclass(frozen=True)
class Penalty:
    """Degeneration penalties, max over j < i of cos(h_i, h_j), of the sample's own tokens in the last layer.

    Attributes:
        low: tenth percentile.
        median: the middle one.
        high: ninetieth percentile.
    """

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class HeatMap:
    """Cosines (n, n) between the tokens of one text in one layer, and the piece of text that each token stands for."""

    layer: int
    text: str
    tokens: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Counts:
    """How much was read.

    Attributes:
        texts: that gave a token.
        tokens: that counted.
        skipped: texts of fewer than two characters, or of which no token was left.
        cut: texts longer than ``max_length``.
        sample_texts: in the sample.
        sample_tokens: likewise.
        tokens_per_character: of whole texts, before any cut.
    """

    texts: int
    tokens: int
    skipped: int
    cut: int
    sample_texts: int
    sample_tokens: int
    tokens_per_character: float


@dataclass(frozen=True)
class Isotropy:
    """One model on one data set.

    Attributes:
        model: its name.
        data: the data set's name; a language code gives the language's own k in the verdict.
        dim: width of the states.
        depth: number of decoder layers, so that the last states are those of layer ``depth``.
        parameters: of the model.
        dtype: of the model.
        settings: of the analysis.
        counts: how much was read.
        layers: one entry a layer, ascending.
        penalty: of the last layer; None where it was left out or no text has two tokens.
        heat_map: of the first text of some length; None where there is none.
        reference: what IsoScore* was shrunk towards.
    """

    model: str
    data: str
    dim: int
    depth: int
    parameters: int
    dtype: str
    settings: Settings
    counts: Counts
    layers: tuple[Layer, ...]
    penalty: Penalty | None
    heat_map: HeatMap | None
    reference: str

    @property
    def last(self) -> Layer | None:
        """The states that contrastive search compares; None where the analysis left them out."""
        return self.layers[-1] if self.layers[-1].layer == self.depth else None

    def as_dict(self) -> dict[str, Any]:
        """As in a results file."""
        return asdict(self)
