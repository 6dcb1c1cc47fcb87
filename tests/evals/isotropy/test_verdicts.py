"""The verdict says what the figures say, and how sure that is."""

import re
from dataclasses import replace

import pytest

from decoding.evals.isotropy.results import Cosines, Counts, Interval, Isotropy, Layer, Penalty, Rogue
from decoding.evals.isotropy.settings import Settings
from decoding.evals.isotropy.verdicts import published, top_k_of, verdict

COUNTS = Counts(2000, 400_000, 0, 0, 32, 8192, 0.25)


def result(isotropy=0.7, half=0.01, **changed) -> Isotropy:
    cosines = Cosines(1 - isotropy, 0.05, 0.03)
    layer = Layer(
        layer=12, name="layer 12", isotropy=Interval(isotropy, isotropy - half, isotropy + half), within=cosines,
        across=cosines, isoscore=0.1, isoscore_star=0.1, partition_score=0.5, log_partition_score=-0.7,
        participation_ratio=20.0, first_component=0.2, spectrum=((1, 0.2), (768, 0.001)),
        intrinsic_dimension=Interval(9.0, 8.5, 9.5), rogue=(Rogue(138, 0.1, 0.1),), mean_norm=100.0,
    )  # fmt: skip
    made = Isotropy(
        model="m", data="texts", dim=768, depth=12, parameters=124_000_000, dtype="float32", settings=Settings(),
        counts=COUNTS, layers=(layer,), penalty=Penalty(0.3, 0.6, 0.8), heat_map=None, reference="the identity",
    )  # fmt: skip
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("isotropy", "headroom", "said"),
    [
        (0.95, "ample", "higher than in the published models"),
        (0.72, "ample", "as in the published models"),
        (0.52, "ample", "a little below the published models"),
        (0.40, "some", "compare with greedy search"),
        (0.10, "little", "Sampling is the safer start"),
    ],
)
def test_headroom_follows_the_published_models(isotropy, headroom, said):
    judged = verdict(result(isotropy))
    assert judged.headroom == headroom
    assert said in judged.text
    assert f"isotropy of the last layer {isotropy:.2f}" in judged.text
    assert judged.certainty == "high"
    assert f"α = {judged.penalty_alpha} and k = {judged.top_k}" in judged.text


def test_the_figure_that_is_printed_is_the_one_that_is_compared():
    for thousandths in range(1001):
        judged = verdict(result(thousandths / 1000, 0.0))
        printed = float(re.search(r"last layer ([\d.]+),", judged.text)[1])
        assert ("as in the published models" in judged.text) == (0.53 <= printed <= 0.83)
        assert ("a little below" in judged.text) == (0.5 <= printed < 0.53)
        assert ("higher than" in judged.text) == (printed > 0.83)
        assert ("between the models" in judged.text) == (0.25 < printed < 0.5)
        assert ("as in the models that it does not work with" in judged.text) == (0.1 <= printed <= 0.25)
        assert ("lower than" in judged.text) == (printed < 0.1)


def test_reach_is_what_the_penalty_can_outweigh():
    # (1 - α)Δp = αΔcos: 0.6/0.4 · (0.8 - 0.3)
    assert "up to 0.75 more probable" in verdict(result()).text
    assert "up to 1.00 more probable" in verdict(result(penalty=Penalty(0.0, 0.6, 0.9))).text
    assert "more probable" not in verdict(result(penalty=None)).text


def test_alpha_and_k_follow_size_and_language():
    assert (verdict(result()).penalty_alpha, verdict(result(parameters=2_000_000)).penalty_alpha) == (0.6, 0.4)
    expected = {"en": 4, "DE": 4, "nl": 4, "rus": 4, "ja": 5, "zh": 3, "hin": 3, "stories": 4}
    assert {language: top_k_of(language) for language in expected} == expected
    assert verdict(result(data="ja")).top_k == 5


def test_likeness_is_explained_where_there_is_much_of_it():
    layer = replace(result(0.1).layers[0], rogue=(Rogue(138, 0.6, 0.67),))
    text = verdict(result(layers=(layer,))).text
    assert "dimension 138 alone makes 67% of it" in text
    assert "0.90 within a text falls to 0.05" in text
    assert "Of this similarity" not in verdict(result(0.7)).text


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"counts": replace(COUNTS, texts=20)}, "few texts (20"),
        ({"counts": replace(COUNTS, tokens=20_000)}, "on average 10 tokens"),
        ({"counts": replace(COUNTS, tokens_per_character=2.7)}, "spends 2.7 tokens on a character"),
        ({"parameters": 90_000_000}, "smaller than any"),
        ({"settings": Settings(skip_bos=True)}, "left out"),
        ({"half": 0.3}, "0.40-1.00, reaches into another verdict"),
    ],
)
def test_each_doubt_lowers_certainty(changed, doubt):
    judged = verdict(result(**changed))
    assert judged.certainty == "moderate"
    assert len(judged.doubts) == 1
    assert doubt in judged.text
    assert verdict(result(**{"parameters": 90_000_000, "half": 0.3})).certainty == "low"


def test_nothing_is_said_without_the_last_layer_or_without_a_pair():
    assert verdict(result(depth=24)).headroom == "unknown"
    layer = replace(result().layers[0], isotropy=None)
    assert "no text has two tokens" in verdict(result(layers=(layer,))).text


def test_published_figures_are_found_by_the_models_name():
    assert published("openai-community/gpt2") == 0.10
    assert published("models/facebook/opt-125m/") == 0.75
    assert published("expert") is None
