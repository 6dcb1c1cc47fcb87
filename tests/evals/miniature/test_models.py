"""The shipped models: they load, are small, know the truth a little, and fall into loops."""

import pytest
import torch
from safetensors import safe_open

import decoding
from decoding.evals.metrics import diversity
from decoding.evals.miniature import ADAPTERS, GUIDANCE, NAMES, folder, load, prompts, questions
from decoding.tools.miniature.accuracy import accuracy
from decoding.tools.miniature.card import greedy, token_similarity

MEGABYTE = 1_000_000
NEW = 72  # tokens of a text, enough for several loops


@pytest.fixture(scope="module")
def expert():  # type: ignore[no-untyped-def]
    return load("expert")


@pytest.mark.parametrize("name", NAMES)
def test_models_load_ready_for_use(name: str) -> None:
    model, tokenizer = load(name)
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings >= 512
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert load(name, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_bfloat16_on_disk(name: str) -> None:
    with safe_open(folder(name) / "model.safetensors", framework="pt") as weights:
        keys = list(weights.keys())
        assert {weights.get_tensor(key).dtype for key in keys} == {torch.bfloat16}
    assert "lm_head.weight" not in keys, "tied to the embedding, so stored once"


def test_all_that_is_shipped_stays_small() -> None:
    sizes = [file.stat().st_size for name in NAMES + ADAPTERS for file in folder(name).iterdir()]
    assert sum(sizes) <= 6 * MEGABYTE
    assert (folder("induced") / "adapter_model.safetensors").stat().st_size < 0.5 * MEGABYTE


def test_the_amateur_is_about_a_tenth_of_the_expert(expert) -> None:  # type: ignore[no-untyped-def]
    amateur, _ = load("amateur")
    assert 0.05 < amateur.num_parameters() / expert[0].num_parameters() < 0.15


@pytest.mark.parametrize("name", NAMES + ADAPTERS)
def test_model_cards_are_complete(name: str) -> None:
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    for part in ("license: apache-2.0", "Data", "Training", "Limits", "MC1"):
        assert part in card
    assert "nan" not in card


def test_an_unknown_name_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="expert, amateur") as error:
        load("experts")
    assert "\n" not in str(error.value)


def test_prompts_are_short_beginnings() -> None:
    assert 6 <= len(prompts()) <= 8
    assert all(8 <= len(prompt.split()) <= 20 for prompt in prompts())


def continued(expert, **options) -> list[str]:  # type: ignore[no-untyped-def]
    """Texts of the prompts in one batch."""
    model, tokenizer = expert
    inputs = tokenizer(prompts(), return_tensors="pt", padding=True)
    tokens = decoding.generate(model, **inputs, max_new_tokens=NEW, **options)
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_text_is_long_and_loops(expert) -> None:  # type: ignore[no-untyped-def]
    texts = continued(expert, decoding_strategy=None, do_sample=False)
    assert texts[0] == greedy(*expert, prompts()[0], NEW)
    assert all(len(text.split()) > 33 for text in texts), "it should not end early"
    assert diversity(texts) < 45


def test_contrastive_search_gets_it_out_of_its_loops(expert) -> None:  # type: ignore[no-untyped-def]
    texts = continued(expert, penalty_alpha=0.4, top_k=4)
    assert diversity(texts) > 70


def test_hidden_states_are_spread_enough_for_contrastive_search(expert) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = expert
    text = " ".join(prompts())
    assert token_similarity(model, tokenizer, text) < 0.6


def test_the_expert_is_misled_less_with_guidance_and_less_than_the_amateur(expert) -> None:  # type: ignore[no-untyped-def]
    asked = questions("validation")[::5]
    plain, guided = accuracy(*expert, asked), accuracy(*expert, asked, guidance=GUIDANCE)
    amateur = accuracy(*load("amateur"), asked)
    assert amateur.mc1 < plain.mc1 < 0.6
    assert guided.mc1 > plain.mc1 + 0.15
    assert guided.misled < plain.misled
