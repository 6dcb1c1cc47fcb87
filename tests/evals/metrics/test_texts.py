"""One text is one text in every metric, never a list of its letters; what is no text is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
import pytest

from decoding.errors import InputError, OptionError
from decoding.evals import metrics, miniature
from decoding.evals.metrics.distribution import mauve
from decoding.evals.metrics.likelihood import coherence, perplexity
from decoding.evals.metrics.overlap import bleu, chrf, rouge, self_bleu
from decoding.evals.metrics.repetition import distinct, diversity, repetition
from decoding.evals.metrics.texts import as_texts

TEXT = "the sea the sea the sea the town"

OF_TEXTS: dict[str, Callable[[Any], Any]] = {
    "diversity": diversity,
    "rep-n": lambda texts: repetition(texts, 2),
    "distinct": lambda texts: distinct(texts, 2),
    "perplexity": lambda texts: perplexity(texts, *miniature.load("amateur")),
}
OF_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "coherence": lambda texts, prefixes: coherence(prefixes, texts, *miniature.load("amateur")),
}
OF_SEVERAL: dict[str, Callable[[Any], Any]] = {
    "self-bleu": self_bleu,
    "mauve": lambda texts: mauve(texts, ["a b", "c d"], *miniature.load("amateur")),
}
NO_TEXTS = [None, 3, 2.5, b"the sea", [TEXT, 3], [None], [[TEXT]], {"text": TEXT}, np.array(3)]


@pytest.mark.parametrize("name", OF_TEXTS)
def test_one_text_is_a_list_of_one(name: str) -> None:
    """diversity("the sea the sea") was 100, that of its letters."""
    assert OF_TEXTS[name](TEXT) == OF_TEXTS[name]([TEXT]) == OF_TEXTS[name](np.array([TEXT]))
    assert OF_TEXTS[name](TEXT) == OF_TEXTS[name](iter([TEXT]))


@pytest.mark.parametrize("name", OF_PAIRS)
def test_one_text_and_its_reference_are_a_pair(name: str) -> None:
    reference = "the sea was calm"
    figure = OF_PAIRS[name]([TEXT], [reference])
    assert figure == OF_PAIRS[name](TEXT, reference) == OF_PAIRS[name](TEXT, [reference])
    assert figure == OF_PAIRS[name]([TEXT], reference)
    with pytest.raises(InputError, match="2 "):
        OF_PAIRS[name]([TEXT, TEXT], reference)


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_one_text_is_too_few_for_a_figure_of_several(name: str) -> None:
    with pytest.raises(InputError, match="at least 2"):
        OF_SEVERAL[name](TEXT)


@pytest.mark.parametrize("given", NO_TEXTS, ids=str)
def test_what_is_no_text_is_refused(given: Any) -> None:
    for figure in [*OF_TEXTS.values(), *OF_SEVERAL.values()]:
        with pytest.raises(InputError, match=r"texts: (expected a list of texts|number \d is)"):
            figure(given)
    for pair in OF_PAIRS.values():
        for sides in ((given, [TEXT]), ([TEXT], given if given != [[TEXT]] else [[3]])):
            with pytest.raises(InputError):
                pair(*sides)


def test_texts_of_a_list_stay_as_they_are() -> None:
    assert as_texts([TEXT, ""]) == [TEXT, ""]
    assert as_texts([]) == []


@pytest.mark.parametrize("n", ["2", 0, 2.0, None, True])
def test_orders_that_are_no_counts_are_refused(n: Any) -> None:
    for figure in (lambda: repetition(TEXT, n), lambda: distinct(TEXT, n), lambda: self_bleu([TEXT, TEXT], order=n)):
        with pytest.raises(OptionError, match="must be a whole number"):
            figure()
    assert repetition(TEXT, np.int64(2)) == repetition(TEXT, 2)


@pytest.mark.parametrize("units", [3, None, b"characters", ["whitespace"]])
def test_units_that_are_no_name_are_refused(units: Any) -> None:
    with pytest.raises(OptionError, match="units="):
        diversity(TEXT, units)


def test_modules_of_evaluate_take_one_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True, raising=False)
    module = evaluate.load(f"{metrics.__path__[0]}/rep_n", cache_dir=str(tmp_path))
    assert module.compute(predictions=TEXT) == module.compute(predictions=[TEXT])
    bleu_module = evaluate.load(f"{metrics.__path__[0]}/bleu", cache_dir=str(tmp_path))
    assert bleu_module.compute(predictions=TEXT, references=TEXT)["bleu"] == pytest.approx(100)
