"""Verdicts: the meaning of an analysis for contrastive search, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.evals.isotropy.results import Isotropy, Layer, Penalty

__all__ = ["AMPLE", "LITTLE", "Verdict", "published", "top_k_of", "verdict"]

# Su and Collier (2023), last layer. Contrastive search works without training on every model from 0.53 (Arabic) to 0.83
# (German), and does not work on gpt2 and gpt2-medium. Nothing is published in between.
AMPLE, LITTLE = 0.5, 0.25
LOWEST, HIGHEST = 0.53, 0.83  # of those that it works with
DIGITS = 2  # of the published figures, and so of what is compared with them
PUBLISHED = {
    "gpt2": 0.10, "gpt2-medium": 0.25, "gpt2-large": 0.70, "gpt2-xl": 0.72, "opt-125m": 0.75, "opt-350m": 0.69,
    "opt-1.3b": 0.75, "opt-2.7b": 0.74, "opt-6.7b": 0.70, "opt-13b": 0.66, "opt-30b": 0.68,
}  # fmt: skip
ALPHA = 0.6  # theirs for open-ended text in all languages
SMALL_ALPHA, SMALL = 0.4, 50_000_000  # below this size good candidates are few: the embedded expert breaks words at 0.6
LEAST_PUBLISHED = 100_000_000  # the smallest model of the paper has 124 million parameters
TOP_K = {
    **dict.fromkeys(("en", "eng", "ru", "rus", "de", "deu", "nl", "nld"), 4),
    **dict.fromkeys(("ja", "jpn"), 5),
    **dict.fromkeys(
        ("zh", "zho", "cmn", "ko", "kor", "fr", "fra", "es", "spa", "it", "ita", "pt", "por", "ar", "ara", "hi", "hin",
         "bn", "ben", "th", "tha", "id", "ind"), 3,
    ),
}  # fmt: skip
DEFAULT_TOP_K = 4
ENOUGH_TEXTS, ENOUGH_TOKENS = 100, 10_000
SHORT = 32  # tokens; the paper's texts fill up to 256
SPELLED = 1.3  # tokens a character: bytes, where one a character is what a character model needs


@dataclass(frozen=True)
class Verdict:
    """The headroom of contrastive search, and settings to start from.

    Attributes:
        headroom: "ample", "some", "little", or "unknown" where the last layer was not read or no text has two tokens.
        penalty_alpha: α to start from.
        top_k: k to start from.
        certainty: "high", "moderate" or "low".
        doubts: why it is not high.
        text: all of it in a few sentences.
    """

    headroom: str
    penalty_alpha: float
    top_k: int
    certainty: str
    doubts: tuple[str, ...]
    text: str


def verdict(result: Isotropy) -> Verdict:
    """The headroom that the last layer's isotropy leaves contrastive search, α and k to start from, and certainty."""
    alpha = SMALL_ALPHA if result.parameters < SMALL else ALPHA
    top_k = top_k_of(result.data)
    last = result.last
    if last is None or last.isotropy is None:
        why = "the last layer was left out" if last is None else "no text has two tokens"
        return Verdict("unknown", alpha, top_k, "low", (why,), f"Nothing can be said: {why}.")
    headroom = _headroom(last.isotropy.value)
    doubts = _doubts(result, last)
    certainty = {0: "high", 1: "moderate"}.get(len(doubts), "low")
    sentences = [
        _judged(headroom, last), _why(last), _reach(result.penalty, alpha), _start(headroom, alpha, top_k),
    ]  # fmt: skip
    because = f": {'; '.join(doubts)}" if doubts else ", as far as such figures go: quality must be seen in texts"
    sentences.append(f"Certainty is {certainty}{because}.")
    return Verdict(headroom, alpha, top_k, certainty, doubts, " ".join(filter(None, sentences)))


def top_k_of(data: str) -> int:
    """The paper's k for a language code; 4, its value for English, for any other name."""
    return TOP_K.get(data.lower(), DEFAULT_TOP_K)


def published(model: str) -> float | None:
    """The published isotropy of a model of this name, whatever organisation stands before it; None for others."""
    return PUBLISHED.get(model.rstrip("/").rpartition("/")[2].lower())


def _headroom(isotropy: float) -> str:
    isotropy = round(isotropy, DIGITS)  # as it is printed beside the published ones
    return "ample" if isotropy >= AMPLE else "some" if isotropy > LITTLE else "little"


def _judged(headroom: str, last: Layer) -> str:
    assert last.isotropy is not None
    figure = f"isotropy of the last layer {last.isotropy.value:.2f}"
    value = round(last.isotropy.value, DIGITS)
    if headroom == "ample":
        where = "as in" if LOWEST <= value <= HIGHEST else "higher than in" if value > HIGHEST else "a little below"
        return (
            f"Contrastive search has ample headroom here: {figure}, {where} the published models that it works with "
            f"untrained ({LOWEST}-{HIGHEST})."
        )
    if headroom == "some":
        return (
            f"Contrastive search has some headroom here: {figure}, between the models that it works with untrained "
            "(from 0.53) and those that it does not (gpt2 0.10, gpt2-medium 0.25)."
        )
    where = "as in" if value >= PUBLISHED["gpt2"] else "lower than in"
    return (
        f"Contrastive search has little headroom here: {figure}, {where} the models that it does not work with "
        "untrained (gpt2 0.10, gpt2-medium 0.25): all states are so similar that the penalty hardly tells candidates "
        "apart."
    )


def _why(last: Layer) -> str:
    """Causes of similar states, where states are similar."""
    if last.within.raw is None or last.within.raw < 0.5:
        return ""
    parts = []
    if last.rogue and last.rogue[0].share > 0.25:
        parts.append(f"dimension {last.rogue[0].dimension} alone makes {last.rogue[0].share:.0%} of it")
    if last.within.centred is not None and last.within.centred < 0.5 * last.within.raw:
        parts.append(
            f"without the mean state, the mean cosine of {last.within.raw:.2f} within a text falls to "
            f"{last.within.centred:.2f}, so most of it is an offset that all states share and contrastive search keeps"
        )
    return f"Of this similarity: {'; '.join(parts)}." if parts else ""


def _reach(penalty: Penalty | None, alpha: float) -> str:
    if penalty is None:
        return ""
    spread = penalty.high - penalty.low
    reach = min(1.0, alpha / (1 - alpha) * spread)
    return (
        f"The penalties of the texts' own tokens run from {penalty.low:.2f} to {penalty.high:.2f} (80% of them), so at "
        f"α = {alpha} a fresh candidate can pass a repeating one that is up to {reach:.2f} more probable."
    )


def _start(headroom: str, alpha: float, top_k: int) -> str:
    start = f"α = {alpha} and k = {top_k}"
    if headroom == "ample":
        return f"Start from {start}."
    if headroom == "some":
        return f"Start from {start} and compare with greedy search and sampling (decoding compare)."
    return f"Sampling is the safer start; to see for yourself, compare it with {start} (decoding compare)."


def _doubts(result: Isotropy, last: Layer) -> tuple[str, ...]:
    assert last.isotropy is not None
    counts, interval = result.counts, last.isotropy
    doubts = []
    if counts.texts < ENOUGH_TEXTS or counts.tokens < ENOUGH_TOKENS:
        doubts.append(f"few texts ({counts.texts}, {counts.tokens} tokens)")
    if _headroom(interval.low) != _headroom(interval.high):
        doubts.append(f"the 95% interval, {interval.low:.2f}-{interval.high:.2f}, reaches into another verdict")
    if counts.tokens < SHORT * counts.texts:
        doubts.append(f"short texts (on average {counts.tokens / counts.texts:.0f} tokens; the paper's have up to 256)")
    if counts.tokens_per_character > SPELLED:
        doubts.append(
            f"the tokenizer spends {counts.tokens_per_character:.1f} tokens on a character, so the model hardly knows "
            "the language"
        )
    if result.settings.skip_bos or result.settings.skip_special:
        doubts.append("tokens were left out that contrastive search compares with")
    if result.parameters < LEAST_PUBLISHED:
        doubts.append("the model is smaller than any that the published figures are of")
    return tuple(doubts)
