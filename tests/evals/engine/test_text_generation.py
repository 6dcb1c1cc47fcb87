"""Continuations in batches, with stops, from seeds of their own."""

from dataclasses import replace

import pytest
import torch
from opened_drafts import opened_drafts
from tiny_models import VOCAB, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import FSMTConfig, FSMTForConditionalGeneration, PreTrainedTokenizerFast

import decoding
from decoding.drafts.options import DraftOptions
from decoding.errors import InputError, ModelError
from decoding.evals import miniature
from decoding.evals.engine.text_generation import TextGenerator, generate_texts
from decoding.strategies.registry import parse_strategy

NEW = 9
PROMPTS = ["The old clockmaker", "Once upon a time there was a", "Tom"]
pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)


@pytest.fixture(scope="module")
def generator():
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    return TextGenerator(model.eval(), tokenizer, NEW)


@pytest.mark.parametrize("spec", ["greedy", "beam:num_beams=2", "contrastive-search", "nucleus"])
def test_a_text_does_not_depend_on_its_neighbours(generator, spec):
    choice = parse_strategy(spec)
    together = generator.generate(choice, PROMPTS, [1, 2, 3])
    assert together == [generator.generate(choice, [prompt], [i])[0] for i, prompt in enumerate(PROMPTS, 1)]
    assert all(made.text for made in together)
    assert all(1 <= made.tokens <= NEW for made in together)


def test_texts_are_drawn_in_one_batch_and_are_those_of_torchs_seeds(generator, monkeypatch):
    sampling, model, tokenizer = (
        parse_strategy("sampling:temperature=1.3,top_p=1"),
        generator.model,
        generator.tokenizer,
    )
    expected = []
    for prompt, seed in zip(PROMPTS, (5, 6, 7), strict=True):
        torch.manual_seed(seed)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        tokens = model.generate(ids, do_sample=True, temperature=1.3, top_k=0, max_new_tokens=NEW)[0]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True)[len(prompt) :])
    generate, rows = model.generate, []

    def counted(*arguments, **options):
        rows.append(len(options["input_ids"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(model, "generate", counted)
    assert [made.text for made in generator.generate(sampling, PROMPTS, [5, 6, 7])] == expected
    assert rows == [3]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_p": 0.05, "eta_cutoff": 0.001},
        {"top_h": 0.6},
        {"guidance_scale": 5.0},
    ],
    ids=lambda options: ",".join(options),
)
def test_options_act_on_texts_that_are_drawn_together(generator, options):
    sampling = parse_strategy("sampling:temperature=1.5,top_p=1")
    together = generator.generate(sampling, PROMPTS, [1, 2, 3], options)
    alone = [generator.generate(sampling, [prompt], [i], options)[0] for i, prompt in enumerate(PROMPTS, 1)]
    assert together == alone
    assert together != generator.generate(sampling, PROMPTS, [1, 2, 3])


@pytest.mark.parametrize(
    ("spec", "stop"),
    [
        ("greedy", ()), ("greedy", (" of ", ".")), ("contrastive-search", (" of ", ".")), ("sampling:top_p=1", ()),
        ("beam:num_beams=2", ()),
    ],
)  # fmt: skip
def test_texts_with_drafts_are_those_without(generator, spec, stop):
    choice, stopping = parse_strategy(spec), replace(generator, stop=stop)
    with opened_drafts() as opened:
        made = stopping.generate(choice, PROMPTS, [1, 2, 3], {"drafts": "exit:2", "draft_tokens": 3})
    assert opened == ([] if "beam" in spec else [DraftOptions("exit:2", 3)])
    assert made == stopping.generate(choice, PROMPTS, [1, 2, 3])


def test_a_model_that_only_its_own_generate_decodes_draws_one_text_after_the_other():
    model = tiny_fsmt()
    prompts, seeds = [[5, 6, 7, 2], [9, 2], [11, 12, 2]], [1, 2, 3]
    with pytest.raises(ModelError):
        decoding.generate(model, torch.tensor(prompts[:1]), do_sample=True, num_beams=1, seeds=[1], max_new_tokens=5)
    sampling = parse_strategy("sampling:top_p=1")
    together = generate_texts(sampling, model, words(), prompts, seeds, max_new_tokens=5)
    for prompt, seed, made in zip(prompts, seeds, together, strict=True):
        torch.manual_seed(seed)
        tokens = model.generate(
            torch.tensor([prompt]), do_sample=True, num_beams=1, max_new_tokens=5, top_k=0, eos_token_id=None
        )
        assert made.text == words().decode(tokens[0, 1:], skip_special_tokens=True)


def test_draws_come_from_the_seed_alone(generator):
    sampling = parse_strategy("sampling:top_p=1")
    first = generator.generate(sampling, PROMPTS[:1] * 3, [7, 8, 7])
    torch.manual_seed(99)
    assert generator.generate(sampling, PROMPTS[:1] * 3, [7, 8, 7]) == first
    assert first[0] == first[2] != first[1]


@pytest.mark.parametrize("spec", ["greedy", "beam:num_beams=2", "contrastive-search", "nucleus"])
def test_texts_end_before_the_first_stop(generator, spec):
    (free,) = generator.generate(parse_strategy(spec), PROMPTS[:1], [3])
    stop = free.text.split()[2]
    stopped = TextGenerator(generator.model, generator.tokenizer, NEW, ("no such text", stop))
    (cut,) = stopped.generate(parse_strategy(spec), PROMPTS[:1], [3])
    assert stop not in cut.text
    assert cut.tokens <= free.tokens
    if not spec.startswith("beam"):  # whose other beams go on
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.tokens < free.tokens


@pytest.mark.parametrize("spec", ["greedy", "beam:num_beams=2", "contrastive-search", "sampling"])
def test_tokens_after_a_stop_do_not_count_whatever_the_neighbours_do(generator, spec):
    choice = parse_strategy(spec)
    free = generator.generate(choice, PROMPTS, [0, 0, 0])
    stop = free[0].text.split()[1]
    stopped = TextGenerator(generator.model, generator.tokenizer, NEW, (stop,))
    together = stopped.generate(choice, PROMPTS, [0, 0, 0])
    assert together == [stopped.generate(choice, [prompt], [0])[0] for prompt in PROMPTS]
    if not spec.startswith("beam"):  # whose other beams go on
        assert together[0].tokens < max(text.tokens for text in together)


def test_a_prompt_without_room_is_refused(generator):
    for prompt in ("the town " * 3000, ""):
        if prompt or not generator.tokenizer("")["input_ids"]:
            with pytest.raises(InputError, match=r"the prompt has \d+ tokens"):
                generator.generate(parse_strategy("greedy"), [prompt], [0])


def words():
    """A tokenizer with one word a token: w3 w4 ..."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_fsmt():
    """A translator whose hidden states are not found."""
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return FSMTForConditionalGeneration(config).eval()


@pytest.mark.parametrize("spec", ["greedy", "sampling:temperature=2.0"])
def test_encoder_decoders_write_too(spec):
    choice, generator = parse_strategy(spec), TextGenerator(tiny_model("t5"), words(), 5)
    prompts = ["w5 w6 w7", "w9", "w3 w8 w4 w11", "w8 w8", "w20"]
    together = generator.generate(choice, prompts, [0, 1, 2, 3, 4])
    assert together == [generator.generate(choice, [prompt], [seed])[0] for seed, prompt in enumerate(prompts)]
    assert together[0].tokens == 5
    assert together[0].text.startswith("w")
