"""The contract of every strategy, on the embedded models. A strategy is tested here once the registry has its name.

One that needs another kind of model has a tiny one here, with the embedded tokenizer.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from degraded_oracle import tiny_mixture
from tiny_strategies import DISTINCT, OTHER_INPUTS, OTHER_MODELS
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

import decoding
from decoding import DecodingError, OptionError
from decoding.api import generate_with
from decoding.evals import miniature
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.named_readers import named_readers
from decoding.strategies.registry import (
    STRATEGIES,
    StrategySpec,
    example_of,
    exportable_strategies,
    parse_strategy,
    scorable_strategies,
)

# Those of this library and of other packages; the rest are transformers' own. Those of images, sound and sources have
# tests of the same things in tests/decoding/strategies/contrast/test_image_readers.py and test_encoder_readers.py.
OWN = [name for name in exportable_strategies() if name not in OTHER_INPUTS]
ON_TEXT = [name for name in STRATEGIES if name not in OTHER_INPUTS]
PROMPTS = ["The old clockmaker", "In the town of Varn there lives", "A river"]
PADDED = 2  # the shortest of them
NEW = 3
# What is a session's, and not a strategy's: strategies that only say which readers there are share that of others.
OF_EACH_SESSION = [name for name in ON_TEXT if name not in OWN or name in DISTINCT or name in OTHER_MODELS]


MIXTURE_NEEDED = ("expert-contrast",)


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    """The expert without an end token, and its tokenizer."""
    model, tokenizer = miniature.load("expert")
    model.generation_config.eos_token_id = None
    return model, tokenizer


@pytest.fixture(scope="module")
def mixture(embedded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random mixture of experts with the embedded tokenizer."""
    tokenizer = embedded[1]
    model = tiny_mixture("mixtral", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("mixture")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(name: str, request: pytest.FixtureRequest) -> Path:
    """The folder of the model that the strategy is tried on."""
    return request.getfixturevalue("mixture") if name in MIXTURE_NEEDED else miniature.folder("expert")


@pytest.fixture
def model(name: str, folder: Path, embedded: tuple[Any, Any]) -> Any:
    return _mixture(folder) if name in MIXTURE_NEEDED else embedded[0]


@functools.cache
def _mixture(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def tokenizer(embedded: tuple[Any, Any]) -> Any:
    return embedded[1]


@pytest.fixture(scope="module")
def specs() -> dict[str, StrategySpec]:
    """The strategies that were made, by name: a second model that one names is loaded and checked once."""
    return {}


@pytest.fixture
def spec(name: str, tokenizer: Any, specs: dict[str, StrategySpec]) -> StrategySpec:
    """The strategy with its defaults and the examples that it declares."""
    if name not in specs:
        specs[name] = parse_strategy(example_of(name)).with_tokenizer(tokenizer)
    return specs[name]


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> dict[str, Tensor]:
    """The prompts, padded on the left."""
    encoding = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    inputs = {name: encoding[name] for name in ("input_ids", "attention_mask")}
    assert not inputs["attention_mask"].all()
    return inputs


@pytest.fixture(scope="module")
def known() -> dict[str, Tensor]:
    """The texts of the batch that were written, by strategy."""
    return {}


@pytest.fixture
def expected(name: str, spec: StrategySpec, model: Any, batch: dict[str, Tensor], known: dict[str, Tensor]) -> Tensor:
    """(rows, tokens) the texts of the batch without draws, which several tests hold others to."""
    if name not in known:
        options = {**batch, "max_new_tokens": NEW}
        own = name in OWN
        known[name] = (
            decoding.generate(model, **options, strategy=spec.strategy)
            if own
            else generate_with(spec, model, **options)
        )
    return known[name]


def _alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    keep = batch["attention_mask"][row].bool()
    return {name: values[row : row + 1, keep] for name, values in batch.items()}


def _new(tokens: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_its_name_is_the_registrys_and_its_spec_round_trips(name: str, spec: StrategySpec, model: Any) -> None:
    assert spec.strategy.name == name == STRATEGIES.name_of(type(spec.strategy))
    again = parse_strategy(spec.spec)
    assert again.spec == spec.spec
    assert again == parse_strategy(example_of(name))
    assert spec.label.partition("(")[0] == name
    assert type(spec.strategy).__doc__
    if name in ON_TEXT:
        spec.check(model)


@pytest.mark.parametrize("name", ON_TEXT)
def test_rows_depend_neither_on_their_batch_nor_on_padding(
    spec: StrategySpec, model: Any, batch: dict[str, Tensor], request: pytest.FixtureRequest
) -> None:
    if spec.is_stochastic:
        pytest.skip("draws: the next test")
    together = _new(request.getfixturevalue("expected"), batch)
    alone = _alone(batch, PADDED)
    assert _new(generate_with(spec, model, **alone, max_new_tokens=NEW), alone) == [together[PADDED]]


@pytest.mark.parametrize("name", OF_EACH_SESSION)
def test_rows_with_seeds_draw_what_they_draw_alone(
    name: str, spec: StrategySpec, model: Any, batch: dict[str, Tensor]
) -> None:
    """A seed decides the sample, whichever way it comes: of a row, or of the call."""
    if name not in OWN and not spec.is_stochastic:
        with pytest.raises(OptionError, match="seeds: "):
            generate_with(spec, model, **batch, max_new_tokens=NEW, seeds=[3, 4, 5])
        return

    def drawn(inputs: dict[str, Tensor], **seeds: Any) -> Any:
        options = {**inputs, **seeds, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}
        if name not in OWN:
            return generate_with(spec, model, **options)
        # The scores of some strategies lie so far apart that only a high temperature draws.
        return decoding.generate(model, **options, strategy=spec.strategy, do_sample=True, temperature=50.0)

    together, alone = drawn(batch, seeds=[3, 4, 5]), _alone(batch, PADDED)
    for step, scores in enumerate(together.scores):
        tokens = together.sequences[:, batch["input_ids"].shape[1] + step, None]
        assert scores.gather(1, tokens).isfinite().all()
    written = []
    for seed in (5, 7):
        torch.manual_seed(seed)
        written.append(_new(drawn(alone).sequences, alone))
    written.append(_new(drawn(alone, seeds=[5]).sequences, alone))
    assert written[2] == [_new(together.sequences, batch)[PADDED]]
    assert written[0] == written[2] != written[1]


@pytest.mark.parametrize("name", OWN)
def test_the_three_ways_in_choose_the_same_tokens(
    spec: StrategySpec, model: Any, batch: dict[str, Tensor], expected: Tensor
) -> None:
    strategy, mask = spec.strategy, batch["attention_mask"]
    plugin = model.generate(**batch, custom_generate=strategy, max_new_tokens=NEW)
    processor = strategy.logits_processor(model, attention_mask=mask)
    processed = model.generate(**batch, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
    assert plugin.tolist() == processed.tolist() == expected.tolist()  # of the facade


def _processed(strategy: Any, model: Any, text: list[int], start: int) -> list[Tensor]:
    """(vocab,) the scores of a processor after each text from its first ``start`` tokens, the prompt, to all of it."""
    processor = strategy.logits_processor(model)
    ids = torch.tensor([text])
    log_probs = model(ids).logits[0].float().log_softmax(-1)
    return [processor(ids[:, :n], log_probs[n - 1 : n])[0] for n in range(start, len(text) + 1)]


# Rows follow the beams in a session.
@pytest.mark.parametrize("name", [name for name in OF_EACH_SESSION if name in OWN])
def test_beam_search_sums_its_scores(name: str, spec: StrategySpec, model: Any, batch: dict[str, Tensor]) -> None:
    """Against beam search written out, in which a new processor follows each hypothesis from the prompt on."""
    beams, steps, prompt = 2, 3, _alone(batch, 0)["input_ids"]

    def scores(text: list[int]) -> list[tuple[float, int]]:
        best = _processed(spec.strategy, model, text, prompt.shape[1])[-1].topk(beams)
        return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))

    hypotheses = [(0.0, prompt[0].tolist())]
    with torch.no_grad():
        for _ in range(steps):
            grown = [(total + gain, [*text, token]) for total, text in hypotheses for gain, token in scores(text)]
            hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    processor = spec.strategy.logits_processor(model)
    found = model.generate(prompt, logits_processor=[processor], num_beams=beams, max_new_tokens=steps, do_sample=False)
    assert found[0].tolist() == hypotheses[0][1]


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Any]:
    """Models of exported folders, by the folder of the model that was exported."""
    return {}


def _model_of(written: Path, spec: StrategySpec, folder: Path, loaded: dict[Path, Any]) -> Any:
    """The model of an exported folder.

    Folders of strategies that name no other model differ in their generation config alone: one is loaded and checked,
    and given the config of each.
    """
    shared = not named_readers(type(spec.strategy), spec.parameters)
    if shared and folder in loaded:
        model = loaded[folder]
    else:
        model = AutoModelForCausalLM.from_pretrained(written, trust_remote_code=True, dtype=torch.float32)
        if shared:
            loaded[folder] = model
    model.generation_config = GenerationConfig.from_pretrained(written)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("name", ON_TEXT)
def test_an_exported_model_decodes_so_or_the_export_is_refused(
    name: str, spec: StrategySpec, folder: Path, batch: dict[str, Tensor], tmp_path: Path, loaded: dict[Path, Any],
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    if name not in OWN:
        with pytest.raises(OptionError, match=f"strategy {name}: cannot be exported"):
            decoding.export(folder, spec.spec, tmp_path / "exported")
        return
    written = decoding.export(folder, spec.spec, tmp_path / "exported", link="sym", device="cpu")
    exported = _model_of(written, spec, folder, loaded)
    expected = request.getfixturevalue("expected")
    assert exported.generate(**batch, max_new_tokens=NEW).tolist() == expected.tolist()


@pytest.mark.parametrize("name", [name for name in OF_EACH_SESSION if name in OWN])
def test_captured_steps_choose_the_same_tokens_or_are_refused_in_one_line(
    spec: StrategySpec, model: Any, batch: dict[str, Tensor], expected: Tensor
) -> None:
    options = {**batch, "strategy": spec.strategy, "max_new_tokens": NEW}
    refusal = None
    try:
        captured = decoding.generate(model, **options, compile=True)
    except DecodingError as error:
        refusal = str(error)
    if refusal is None:
        assert captured.tolist() == expected.tolist()
    else:
        assert "\n" not in refusal
        assert "compile" in refusal


@pytest.mark.parametrize("name", STRATEGIES)
def test_texts_are_scored_alike_in_every_way_or_scoring_is_refused(
    name: str, spec: StrategySpec, model: Any, batch: dict[str, Tensor]
) -> None:
    assert (name in scorable_strategies()) == spec.strategy.scorable
    prompt, continuations = _alone(batch, 1)["input_ids"][0].tolist(), [[5, 9, 30], [12]]
    if not spec.strategy.scorable:
        with pytest.raises(OptionError, match=f"strategy={name}: gives no score to a given token"):
            decoding.score(model, prompt, continuations, spec.strategy)
        return
    scores = decoding.score(model, prompt, continuations, spec.strategy)
    assert [len(token_scores) for token_scores in scores] == [3, 1]
    for tokens, token_scores in zip(continuations, scores, strict=True):
        assert token_scores.isfinite().all()
        assert (token_scores <= 0).all()
        if name in OWN:
            chosen = torch.tensor(tokens)[:, None]
            stepwise = torch.stack(_processed(spec.strategy, model, [*prompt, *tokens[:-1]], len(prompt)))
            # One pass or several, in float32. The score of an implausible token is a number of its own.
            right = stepwise.log_softmax(-1).gather(1, chosen)[:, 0].clamp_min(-1000)
            torch.testing.assert_close(token_scores, right, atol=2e-4, rtol=1e-4)
    if name in OWN:
        _check_whole_text(model, [*prompt, *continuations[0]], spec.strategy)


def _check_whole_text(model: Any, text: list[int], strategy: Any) -> None:
    """A whole text is scored as what follows its first token, unless readers depend on where a prompt ends."""
    readers = strategy.readers(model, 1)
    if any(reader.from_last_token or reader.prompt is not None for reader in readers):
        with pytest.raises(OptionError, match="whole text has no prompt"):
            teacher_forced(model, torch.tensor([text]), strategy)
        return
    whole = teacher_forced(model, torch.tensor([text]), strategy)[0, :-1]
    (scores,) = decoding.score(model, text[:1], [text[1:]], strategy)
    torch.testing.assert_close(scores, whole.gather(1, torch.tensor(text[1:])[:, None])[:, 0], atol=2e-4, rtol=1e-4)
