"""The analysis as a whole against looking at every pair of tokens, in four scripts, and what must not change it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from isotropy_oracle import (
    contributions,
    log_partition_score,
    mean_cosines,
    published_isoscore,
    published_isotropy,
    states_of,
)
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from decoding.errors import InputError, ModelError, OptionError
from decoding.evals import miniature
from decoding.evals.isotropy import PAPER, Settings, analyse, analyse_each
from decoding.evals.isotropy.texts import stories

SHARED = Path(__file__).resolve().parents[4] / "shared"
EMBEDDED = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


@pytest.fixture(scope="module")
def loaded():
    """Models by name, each loaded once."""
    known = {}

    def load(name):
        if name not in known:
            if name in miniature.NAMES:
                if not (miniature.folder(name) / "config.json").is_file():
                    pytest.skip("the embedded models have not been trained here")
                known[name] = miniature.load(name)
            else:
                folder = SHARED / "models" / name
                if not folder.is_dir():
                    pytest.skip(f"{name} is not here: trained test models are not part of the repository")
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
                known[name] = model, AutoTokenizer.from_pretrained(folder)
        return known[name]

    return load


def sentences(texts: str, count: int) -> list[str]:
    path = SHARED / "data" / "parallel" / f"tatoeba.{texts}"
    if not path.is_file():
        pytest.skip("the parallel texts are not here: they are not part of the repository")
    return path.read_text(encoding="utf-8").splitlines()[:count]


@pytest.fixture(scope="module")
def expert():
    if not (miniature.folder("expert") / "config.json").is_file():
        pytest.skip("the embedded models have not been trained here")
    return miniature.load("expert")


def check_against_every_pair(result, layers):
    """Compare all that is exact; ``layers`` are the oracle's states by layer and text."""
    for found, texts in zip(result.layers, layers, strict=True):
        # Batches round differently from single texts, and states are float32: 1e-5 is what the sums must keep to.
        within, across = mean_cosines(texts)
        assert found.within.raw == pytest.approx(within, abs=1e-5)
        assert found.isotropy.value == pytest.approx(1 - within, abs=1e-5)
        assert found.across.raw == pytest.approx(across, abs=1e-5)
        every = np.concatenate(texts)
        mean, deviation = every.mean(0), every.std(0)
        within, across = mean_cosines([text - mean for text in texts])
        assert (found.within.centred, found.across.centred) == pytest.approx((within, across), abs=1e-5)
        within, across = mean_cosines([(text - mean) / deviation for text in texts])
        assert (found.within.standardised, found.across.standardised) == pytest.approx((within, across), abs=1e-5)
        variances = np.linalg.eigvalsh(np.cov(every.T, bias=True))[::-1]
        assert found.isoscore == pytest.approx(published_isoscore(variances), abs=1e-5)
        assert found.first_component == pytest.approx(variances[0] / variances.sum(), abs=1e-5)
        assert found.participation_ratio == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-4)
        expected = contributions(texts)
        assert [entry.dimension for entry in found.rogue][:2] == np.argsort(-expected)[:2].tolist()
        assert found.rogue[0].contribution == pytest.approx(expected.max(), abs=1e-5)
        assert found.rogue[0].share == pytest.approx(expected.max() / expected.sum(), rel=1e-3)
        assert found.log_partition_score == pytest.approx(log_partition_score(every), rel=1e-3, abs=1e-4)
        assert found.mean_norm == pytest.approx(np.linalg.norm(every, axis=1).mean(), rel=1e-5)


# Of a script the analysis sees tokens alone: whole words, a few characters, or bytes. Each model reads both kinds.
@pytest.mark.parametrize(
    ("parallel", "name"),
    [
        ("deu-eng.deu", "stories3M"),
        ("cmn-eng.cmn", "expert"),
        ("ara-eng.ara", "stories3M"),
        ("ind-eng.ind", "expert"),
    ],
)
def test_it_equals_looking_at_every_pair(loaded, name, parallel):
    model, tokenizer = loaded(name)
    texts = sentences(parallel, 4)
    result = analyse(model, tokenizer, texts, Settings(batch_tokens=256))
    assert result.counts.texts == 4
    check_against_every_pair(result, states_of(model, [tokenizer(text)["input_ids"] for text in texts]))


@pytest.mark.parametrize("name", ["amateur", "stories260K"])
def test_it_equals_looking_at_every_pair_with_other_models(loaded, name):
    model, tokenizer = loaded(name)
    texts = stories(4)
    result = analyse(model, tokenizer, texts, Settings(max_length=64))
    assert result.counts.cut == 4
    check_against_every_pair(result, states_of(model, [tokenizer(text)["input_ids"][:64] for text in texts]))


class Numbers:
    """A tokenizer of texts such as "5 17 3", for random models."""

    all_special_ids: tuple[int, ...] = ()
    bos_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [int(word) for word in text.split()]}

    def convert_ids_to_tokens(self, ids):
        return list(map(str, ids))

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("architecture", ["mistral-sliding", "qwen2", "gemma2", "gpt2", "opt", "bloom", "mamba"])
def test_layers_are_those_of_output_hidden_states(architecture):
    model = tiny_model(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 90, (length,), generator=generator).tolist() for length in (17, 9, 4, 30)]
    result = analyse(model, Numbers(), [" ".join(map(str, text)) for text in ids])
    layers = states_of(model, ids)
    if architecture == "mamba":  # transformers leaves out its embeddings and gives the last layer twice, the norm apart
        embeddings = [model.backbone.embeddings(torch.tensor(text)).detach().double().numpy() for text in ids]
        layers = [embeddings, *layers[:-2], layers[-1]]
    assert [layer.layer for layer in result.layers] == list(range(len(layers)))
    for found, texts in zip(result.layers, layers, strict=True):
        within, across = mean_cosines(texts)
        assert (found.within.raw, found.across.raw) == pytest.approx((within, across), abs=1e-5)


@EMBEDDED
def test_batches_and_order_do_not_matter(expert):
    texts = [*stories(6), "A short one.", "Another, a little longer than that one.", "Two words"]
    settings = Settings(layers=(0, -1), max_length=100, sample_tokens=400, neighbours=200)
    one, many = (analyse(*expert, texts, replace(settings, batch_tokens=size)) for size in (1, 4096))
    assert one.counts == many.counts
    assert one.counts.sample_tokens <= 400 < one.counts.tokens
    backwards = analyse(*expert, texts[::-1], replace(settings, sample_tokens=8192))
    forwards = analyse(*expert, texts, replace(settings, sample_tokens=8192))
    for pair, exact in (((one, many), True), ((forwards, backwards), False)):
        for left, right in zip(pair[0].layers, pair[1].layers, strict=True):
            for kind in ("within", "across"):
                for form in ("raw", "centred", "standardised"):
                    values = [getattr(getattr(layer, kind), form) for layer in (left, right)]
                    assert values[0] == pytest.approx(values[1], abs=1e-5)
            assert left.isoscore == pytest.approx(right.isoscore, abs=1e-5)
            assert left.isotropy.low == pytest.approx(right.isotropy.low, abs=1e-5)
            if exact:  # TwoNN draws tokens by their place
                assert left.intrinsic_dimension.value == pytest.approx(right.intrinsic_dimension.value, rel=1e-3)


@EMBEDDED
def test_a_sample_comes_near_the_whole(expert):
    texts = stories(60)
    settings = Settings(layers=(-1,), max_length=64)
    whole = analyse(*expert, texts, settings).last
    part = analyse(*expert, texts, replace(settings, sample_tokens=1600)).last
    # 25 of 60 texts; a text's mean cosine scatters by about 0.02
    assert part.within.centred == pytest.approx(whole.within.centred, abs=0.02)
    assert part.within.raw == pytest.approx(whole.within.raw, abs=1e-7)
    assert part.log_partition_score == pytest.approx(whole.log_partition_score, rel=0.3)


@EMBEDDED
def test_the_paper_mode_is_the_published_definition(expert):
    model, tokenizer = expert
    texts = stories(4)
    ids = [tokenizer(text)["input_ids"][:256] for text in texts]
    result = analyse(model, tokenizer, texts, PAPER)
    assert [layer.layer for layer in result.layers] == [model.config.num_hidden_layers]
    published = published_isotropy(model, ids)
    assert result.last.isotropy.value == pytest.approx(published, abs=1e-5)
    assert round(result.last.isotropy.value, 2) == round(published, 2)


@EMBEDDED
def test_the_paper_mode_reads_the_first_2000_texts_of_two_characters(expert):
    texts = ["x", *(f"Tom {number}" for number in range(40))]
    counts = analyse(*expert, texts, replace(PAPER, max_texts=20)).counts
    assert (counts.texts, counts.skipped) == (20, 1)
    assert PAPER.max_texts == 2000


@pytest.mark.parametrize("name", ["stories3M"])
def test_bos_and_special_tokens_can_be_left_out(loaded, name):
    model, tokenizer = loaded(name)
    texts = ["Once upon a time there was a dog.", "The cat sat down</s> and slept."]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert tokenizer.eos_token_id in ids[1]
    special = set(tokenizer.all_special_ids)
    layers = states_of(model, ids)
    for settings, kept in (
        (Settings(), [[True] * len(text) for text in ids]),
        (Settings(skip_bos=True), [[False] + [True] * (len(text) - 1) for text in ids]),
        (Settings(skip_special=True), [[token not in special for token in text] for text in ids]),
    ):
        result = analyse(model, tokenizer, texts, settings)
        assert result.counts.tokens == sum(map(sum, kept))
        left = [[text[mask] for text, mask in zip(texts_, kept, strict=True)] for texts_ in layers]
        check_against_every_pair(result, left)
        assert ("<s>" in result.heat_map.tokens) == (settings == Settings())


@EMBEDDED
def test_chosen_layers_are_those_of_the_whole_analysis(expert):
    texts = stories(3)
    whole = analyse(*expert, texts, Settings(max_length=32)).layers
    for chosen, expected in (((0, -1), (0, 4)), ((2,), (2,)), ((-1,), (4,)), ((3, 1, 3), (1, 3))):
        result = analyse(*expert, texts, Settings(max_length=32, layers=chosen))
        assert tuple(layer.layer for layer in result.layers) == expected
        assert result.layers == tuple(whole[layer] for layer in expected)
        assert (result.last is None) == (4 not in expected)
        assert (result.penalty is None) == (4 not in expected)


@EMBEDDED
def test_several_data_sets_share_the_reference_of_isoscore_star(expert):
    data = {"one": stories(4), "two": ["A much shorter text.", "And one more of that kind."]}
    settings = Settings(max_length=48, layers=(-1,), zeta=0.3)
    results = analyse_each(*expert, data, settings)
    assert [result.data for result in results] == ["one", "two"]
    model, tokenizer = expert
    states = [
        np.concatenate(states_of(model, [tokenizer(text)["input_ids"][:48] for text in texts])[-1])
        for texts in data.values()
    ]
    together = np.cov(np.concatenate(states).T, bias=True)
    for result, own in zip(results, states, strict=True):
        shrunk = 0.7 * np.cov(own.T, bias=True) + 0.3 * together
        assert result.last.isoscore_star == pytest.approx(published_isoscore(np.linalg.svd(shrunk)[1]), abs=1e-5)
        assert result.reference == "all data sets together"
    assert analyse(*expert, data["two"], settings).reference == "the identity"


@EMBEDDED
def test_texts_may_be_a_generator_and_progress_is_told(expert):
    counts = []
    result = analyse(
        *expert, (text for text in stories(7)), Settings(max_length=32, batch_tokens=64), report=counts.append
    )
    assert counts == [2, 4, 6, 7]
    assert result.counts.texts == 7


@EMBEDDED
def test_a_single_text_has_no_pairs_across_and_one_token_none_at_all(expert):
    result = analyse(*expert, ["The old clockmaker smiled."])
    assert result.last.across.raw is None
    assert result.last.rogue == ()
    assert (result.last.isotropy.low, result.last.isotropy.high) == (0.0, 2.0)  # nothing is known of other texts
    result = analyse(*expert, ["the"], Settings(max_length=2, skip_bos=True))
    assert result.last.isotropy is None
    assert result.last.intrinsic_dimension is None
    assert result.penalty is None
    assert result.heat_map is None


@EMBEDDED
def test_what_is_not_accepted(expert):
    model, tokenizer = expert
    with pytest.raises(InputError, match="no text has a token"):
        analyse(model, tokenizer, ["", " x "])
    with pytest.raises(InputError, match="text 1 is of type int"):
        analyse(model, tokenizer, ["one text", 2])
    with pytest.raises(OptionError, match=r"must be 0 .* to 4"):
        analyse(model, tokenizer, ["one text"], Settings(layers=(5,)))
    with pytest.raises(ModelError, match="encoder-decoder"):
        analyse(tiny_model("t5"), tokenizer, ["one text"])


@pytest.mark.parametrize("wrong", [{"max_length": 1}, {"zeta": 1.5}, {"sample_tokens": 100}, {"layers": ()}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=r"must be|expected"):
        Settings(**wrong)


def test_states_that_are_not_finite_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(1e38)
    with pytest.raises(ModelError, match=r"layer 2 are not finite in torch\.float32"):
        analyse(model, Numbers(), ["5 6 7 8", "9 10 11"])


@EMBEDDED
def test_half_precision_comes_near(expert):
    model, tokenizer = miniature.load("expert", dtype=torch.bfloat16)
    texts = stories(5)
    half = analyse(model, tokenizer, texts, Settings(max_length=64))
    full = analyse(*expert, texts, Settings(max_length=64))
    assert half.dtype == "bfloat16"
    for left, right in zip(half.layers, full.layers, strict=True):
        assert left.within.raw == pytest.approx(right.within.raw, abs=0.01)
        assert left.isoscore == pytest.approx(right.isoscore, abs=0.01)
        assert left.intrinsic_dimension.value == pytest.approx(right.intrinsic_dimension.value, rel=0.3)
