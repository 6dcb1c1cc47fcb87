"""Results of an analysis: dataclasses for JSON, tables, plots and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from decoding.evals.engine.statistics import Interval
from decoding.evals.isotropy.settings import Settings

__all__ = ["Cosines", "Counts", "HeatMap", "Interval", "Isotropy", "Layer", "Penalty", "Rogue"]


@dataclass(frozen=True)
class Cosines:
    """Mean cosines between the states of two tokens; None where there is no such pair.

    Attributes:
        raw: of the unchanged states, over all pairs of all texts.
        centred: after subtracting the mean state, over the pairs of the sample.
        standardised: after subtracting the mean and dividing by the deviation of each dimension, over the same pairs.
    """

    raw: float | None
    centred: float | None
    standardised: float | None


@dataclass(frozen=True)
class Rogue:
    """A dimension, its contribution to the mean cosine across texts, and its share of that mean."""

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
        log_partition_score: its natural logarithm, for states so long that the score itself is 0 in a float.
        participation_ratio: the number of directions that share the variance.
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
    """Cosines (n, n) between the tokens of one text in one layer, and the piece of text of each token."""

    layer: int
    text: str
    tokens: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Counts:
    """Numbers of texts and tokens.

    Attributes:
        texts: texts with a token.
        tokens: tokens that counted.
        skipped: texts of fewer than two characters, or without a token that counts.
        cut: texts longer than ``max_length``.
        sample_texts: texts in the sample.
        sample_tokens: tokens in the sample.
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
        counts: numbers of texts and tokens.
        layers: one entry a layer, ascending.
        penalty: of the last layer; None where it was left out or no text has two tokens.
        heat_map: of the first text of some length; None where there is none.
        reference: the covariance that IsoScore* was shrunk towards.
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
        """The analysis as in a results file."""
        return asdict(self)
