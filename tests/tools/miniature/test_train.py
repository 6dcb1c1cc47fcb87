"""The training command, on a tiny corpus for a few steps."""

import functools
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from decoding.tools.miniature.corpus import Size, make_corpus
from decoding.tools.miniature.tokenizer import fast_tokenizer, train_sentencepiece
from decoding.tools.miniature.train import app
from decoding.tools.miniature.training import Recipe, Shape, mean_loss, new_model, tokenize, train

TINY = Shape(width=32, layers=1, heads=2, feed_forward=64)


@pytest.fixture(scope="module")
def material():  # type: ignore[no-untyped-def]
    texts = [document.text for document in make_corpus(Size(volumes=1, stories=20))]
    tokenizer = fast_tokenizer(train_sentencepiece(texts, 1024))
    return tokenizer, *tokenize(tokenizer, texts)


def test_a_stream_holds_every_text_between_its_marks(material) -> None:  # type: ignore[no-untyped-def]
    tokenizer, stream, starts = material
    assert (stream[starts] == tokenizer.bos_token_id).all()
    assert (stream[starts[1:] - 1] == tokenizer.eos_token_id).all()
    assert stream[-1] == tokenizer.eos_token_id


def test_loss_falls_and_the_same_seed_gives_the_same_model(material) -> None:  # type: ignore[no-untyped-def]
    tokenizer, stream, starts = material
    recipe = Recipe(steps=25, batch=4, window=64)
    before = mean_loss(new_model(TINY, tokenizer, seed=5), stream[:4096])
    trained = []
    for _ in range(2):
        model = new_model(TINY, tokenizer, seed=5)
        outcome = train(model, stream, starts, stream[:4096], recipe, seed=5)
        trained.append(model)
    assert outcome.held_out_loss < before - 0.4
    assert outcome.tokens == 25 * 4 * 64
    first, second = (model.state_dict() for model in trained)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_ends_when_its_minutes_are_over(material) -> None:  # type: ignore[no-untyped-def]
    tokenizer, stream, starts = material
    model = new_model(TINY, tokenizer, seed=0)
    recipe = Recipe(steps=10**6, batch=1, window=16)
    outcome = train(model, stream, starts, stream[:1024], recipe, seed=0, minutes=0.01)
    assert 0 < outcome.steps < 10**6


def test_the_command_writes_folders_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Models of their own shapes, for one step of few tokens, and few texts for the held-out loss.
    monkeypatch.setattr("decoding.tools.miniature.train.HELD_OUT", 2)
    monkeypatch.setattr("decoding.tools.miniature.train.Recipe", functools.partial(Recipe, batch=1, window=16))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = "--steps 1 --amateur-steps 1 --volumes 1 --stories 5 --no-measure --threads 1"
    result = CliRunner().invoke(app, ["--output", str(tmp_path), *options.split()])
    assert result.exit_code == 0, result.output
    for name in ("expert", "amateur"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name, local_files_only=True)
        assert model.dtype == torch.bfloat16
        assert model.config.vocab_size == len(tokenizer)
        assert (tmp_path / name / "generation_config.json").exists()


def test_bad_options_end_with_one_line_and_code_2(tmp_path: Path) -> None:
    for options in (["--steps", "0"], ["--minutes", "-1"]):
        result = CliRunner().invoke(app, ["--output", str(tmp_path), *options])
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_help_has_an_example() -> None:
    assert "Example" in CliRunner().invoke(app, ["--help"]).output
