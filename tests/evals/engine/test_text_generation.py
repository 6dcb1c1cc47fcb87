"""Continuations in batches, with stops, from seeds of their own."""

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.engine.text_generation import TextGenerator
from decoding.strategies.registry import parse_strategy

PROMPTS = ["The old clockmaker", "Once upon a time there was a", "Tom"]
pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)


@pytest.fixture(scope="module")
def generator():
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    return TextGenerator(model.eval(), tokenizer, 12)


@pytest.mark.parametrize("spec", ["greedy", "beam:num_beams=2", "contrastive-search", "nucleus", "typical", "top-k"])
def test_a_text_does_not_depend_on_its_neighbours(generator, spec):
    choice = parse_strategy(spec)
    together = generator.generate(choice, PROMPTS, [1, 2, 3])
    assert together == [generator.generate(choice, [prompt], [i])[0] for i, prompt in enumerate(PROMPTS, 1)]
    assert all(made.text for made in together)
    assert all(1 <= made.tokens <= 12 for made in together)


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
    stopped = TextGenerator(generator.model, generator.tokenizer, 12, ("no such text", stop))
    (cut,) = stopped.generate(parse_strategy(spec), PROMPTS[:1], [3])
    assert stop not in cut.text
    assert cut.tokens <= free.tokens
    if not spec.startswith("beam"):  # whose other beams go on
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.tokens < free.tokens


@pytest.mark.parametrize("spec", ["greedy", "beam:num_beams=2", "contrastive-search"])
def test_tokens_after_a_stop_do_not_count_whatever_the_neighbours_do(generator, spec):
    choice = parse_strategy(spec)
    free = generator.generate(choice, PROMPTS, [0, 0, 0])
    stop = free[0].text.split()[1]
    stopped = TextGenerator(generator.model, generator.tokenizer, 12, (stop,))
    together = stopped.generate(choice, PROMPTS, [0, 0, 0])
    assert together == [stopped.generate(choice, [prompt], [0])[0] for prompt in PROMPTS]
    if not spec.startswith("beam"):  # whose other beams go on
        assert together[0].tokens < max(text.tokens for text in together)


def test_a_prompt_without_room_is_refused(generator):
    for prompt in ("the town " * 3000, ""):
        if prompt or not generator.tokenizer("")["input_ids"]:
            with pytest.raises(InputError, match=r"the prompt has \d+ tokens"):
                generator.generate(parse_strategy("greedy"), [prompt], [0])


def test_encoder_decoders_write_too():
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    generator = TextGenerator(tiny_model("t5"), tokenizer, 5)
    together = generator.generate(parse_strategy("greedy"), ["w5 w6 w7", "w9"], [0, 0])
    assert together == [generator.generate(parse_strategy("greedy"), [prompt], [0])[0] for prompt in ("w5 w6 w7", "w9")]
    assert together[0].tokens == 5
    assert together[0].text.startswith("w")
