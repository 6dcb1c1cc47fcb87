"""Retrieval heads: a model whose copying head was made by hand, and scores that were counted one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from chat_tokenizers import KINDS, chat_tokenizer
from tiny_models import TOKENS, VOCAB, tiny_model, word_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel

from decoding import InputError, MaskedHeads, ModelError, OptionError, Self
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.heads import Needle, RetrievalHeads, Settings, read_needles, retrieval_heads
from decoding.evals.heads.contexts import Haystack, contexts
from decoding.evals.heads.needles import invented_needles
from decoding.evals.isotropy.texts import stories
from decoding.strategies.contrast.reader_kinds import as_kind
from decoding.transformers_private import attention_implementation

PLACES = 64
HAY = ["w30 w31 w32. w33 w34 w35 w36. w37 w38.", "w40 w41 w42 w43. w44 w45 w46."]
# The question ends in the word that stands before the answer in the needle, as the copying head needs it.
NEEDLES = [Needle("w5 w6 w7 w8", "w5", "w6 w7 w8"), Needle("w15 w16 w17", "w15", "w16 w17")]
BY_HAND = Settings(top=1, lengths=(24, 40), depths=3, needles=2, prompt=" {question}")


def words() -> Any:
    """A tokenizer of words that puts a bos token before a text."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    tokenizer.bos_token = "w1"
    return tokenizer


needs_embedded = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


def copying_model(loudness: float) -> GPT2LMHeadModel:
    """A GPT-2 that copies: head 0 of layer 0 attends to the token before, and writes it beside each token; head 1 of
    layer 1 attends to the token after the last one that was the same as the present token, and writes it.

    Args:
        loudness: how much louder the token that is copied is than the present token.
    """
    token, place, before = slice(0, VOCAB), slice(VOCAB, VOCAB + PLACES), slice(VOCAB + PLACES, 2 * VOCAB + PLACES)
    size, dim = 152, 304  # of a head, and of both
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=PLACES, n_embd=dim, n_head=2, n_layer=2, **TOKENS))

    def lifted(ones: int) -> tuple[float, float]:
        """What the norm makes of a 0, and how much more of a 1, where a state has so many ones."""
        mean = ones / dim
        deviation = (mean * (1 - mean) + 1e-5) ** 0.5
        return -mean / deviation, 1 / deviation

    def write(layer: int, head: int, query: slice, key: slice, to: slice, ones: int, loud: float, shift: int) -> None:
        attention, first = model.transformer.h[layer].attn, head * size
        width = query.stop - query.start
        # Conv1D: (inputs, outputs), whose outputs are queries, keys and values of all heads.
        for i in range(width - shift):
            attention.c_attn.weight[query.start + i + shift, first + i] = 30.0
            attention.c_attn.weight[key.start + i, dim + first + i] = 1.0
        zero, more = lifted(ones)
        for i in range(VOCAB):
            attention.c_attn.weight[token.start + i, 2 * dim + first + i] = 1.0
            attention.c_proj.weight[first + i, to.start + i] = loud / more
            attention.c_proj.bias[to.start + i] = -loud * zero / more

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.zero_()
        model.transformer.wte.weight[:, token] = torch.eye(VOCAB)
        model.transformer.wpe.weight[:, place] = torch.eye(PLACES)
        write(0, 0, place, place, before, 2, 1.0, shift=1)
        write(1, 1, token, before, token, 3, loudness, shift=0)
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="module")
def copying() -> GPT2LMHeadModel:
    return copying_model(5.0)


def test_the_head_that_copies_is_found(copying: GPT2LMHeadModel) -> None:
    done: list[tuple[int, int]] = []
    found = retrieval_heads(copying, words(), HAY, NEEDLES, BY_HAND, report=lambda *count: done.append(count))
    assert found.scores == ((0.0, 0.0), (0.0, 1.0))
    assert (found.copied, found.contexts, found.tokens, found.lengths) == (1.0, 12, 30, (24, 40))
    assert (found.text, dict(found.heads), found.retrieval) == ("1.1", {1: [1]}, 1)
    assert done[-1] == (48, 48)
    control = found.control
    assert control is not None
    assert (control.copied, control.without_best, control.tokens) == (1.0, 0.0, 30)
    # Without the head that finds the token before, nothing is copied either; the two others do nothing.
    assert control.without_drawn == (0.0 if control.drawn == "0.0" else 1.0)
    assert attention_implementation(copying) == "sdpa"


def test_what_the_model_does_not_say_is_not_copied() -> None:
    """The head attends to the needle as before; but the present token is louder than the one that it copies."""
    found = retrieval_heads(copying_model(0.5), words(), HAY, NEEDLES, BY_HAND)
    assert found.scores == ((0.0, 0.0), (0.0, 0.0))
    assert (found.copied, found.text, found.control) == (0.0, "", None)


def test_contexts_have_their_length_and_their_needle(copying: GPT2LMHeadModel) -> None:
    tokenizer = words()
    rows = list(contexts(tokenizer, Haystack(HAY, tokenizer, 99), NEEDLES, (24, 40), BY_HAND, "search"))
    assert rows == list(contexts(tokenizer, Haystack(HAY, tokenizer, 99), NEEDLES, (24, 40), BY_HAND, "search"))
    for length, row in zip((24, 40), rows, strict=True):
        starts = []
        for number, context in enumerate(row):
            answer = [[6, 7, 8], [16, 17]][number % 2]
            assert len(context.prompt) == length
            assert context.answer == answer
            assert context.prompt[context.start - 1 : context.start + len(answer)] == [answer[0] - 1, *answer]
            assert (context.prompt[0], context.prompt[-1]) == (1, answer[0] - 1)
            assert set(context.prompt) & set(answer) == set(answer)
            starts.append(context.start)
        assert starts[0] == starts[1] == 2  # at the beginning, after the bos token and the word before it
        assert starts[0] < starts[2] < starts[4]
        assert starts[4] + 3 + 1 == length  # at the end, before the question


def counted(model: Any, tokenizer: Any, settings: Settings) -> list[list[float]]:
    """The scores, head by head and token by token, from the weights of one pass over each whole text."""
    haystack = Haystack(stories(), tokenizer, 8 * max(settings.lengths or ()))
    rows = contexts(tokenizer, haystack, invented_needles(settings.seed), settings.lengths or (), settings, "search")
    texts = [context for row in rows for context in row]
    scores = [[0.0] * model.config.num_attention_heads for _ in range(model.config.num_hidden_layers)]
    model.set_attn_implementation("eager")
    for text in texts:
        ids = torch.tensor([text.prompt + text.answer])
        with torch.no_grad():
            output = model(input_ids=ids, output_attentions=True, use_cache=False)
        needle = range(text.start, text.start + len(text.answer))
        for layer, weights in enumerate(output.attentions):
            for head, by_query in enumerate(weights[0]):
                for step, token in enumerate(text.answer):
                    query = len(text.prompt) - 1 + step
                    most = int(by_query[query].argmax())
                    if int(output.logits[0, query].argmax()) == token == ids[0, most] and most in needle:
                        scores[layer][head] += 1 / len(text.answer) / len(texts)
    model.set_attn_implementation("sdpa")
    return scores


@needs_embedded
def test_scores_of_the_embedded_model_are_those_counted_one_by_one() -> None:
    model, tokenizer = miniature.load("expert")
    settings = Settings(lengths=(60, 90), depths=2, needles=2, batch_tokens=200, seed=1)
    found = retrieval_heads(model, tokenizer, settings=settings, control=False)
    wanted = counted(model, tokenizer, settings)
    assert [list(row) for row in found.scores] == [pytest.approx(row, abs=1e-9) for row in wanted]
    assert sum(score > 0 for row in wanted for score in row) > 3
    whole = retrieval_heads(model, tokenizer, settings=Settings(lengths=(60, 90), depths=2, needles=2, seed=1))
    assert [list(row) for row in whole.scores] == [pytest.approx(row, abs=1e-9) for row in wanted]
    assert whole.control is not None
    assert 0 <= whole.control.without_best <= 1


@needs_embedded
def test_the_command_writes_a_file_that_strategies_take(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["heads", "--model", "expert", "--top", "2", "--lengths", "60", "--depths", "2", "--seed", "1"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    file = tmp_path / "heads.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert f"--strategy masked-heads:heads={file}" in out
    assert record["settings"]["top"] == 2
    assert len(record["heads"].split("+")) == 2
    assert [len(row) for row in record["scores"]] == [6] * 4
    assert main([*arguments, "--no-control", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["scores"], printed["heads"], printed["control"]) == (record["scores"], record["heads"], None)
    assert MaskedHeads(str(file)) == MaskedHeads(record["heads"])
    best = sorted((-score, layer, head) for layer, row in enumerate(record["scores"]) for head, score in enumerate(row))
    wanted = {(layer, head) for _, layer, head in best[:3]}
    masked = Self(mask_heads=MaskedHeads(f"{file}:3").amateur(None).mask_heads)
    assert {(layer, head) for layer, heads in masked.mask_heads for head in heads} == wanted
    line = ["generate", "--prompt", "The old", "--max-new-tokens", "2", "--strategy"]
    assert main([*line, f"masked-heads:heads={file}:3"]) == 0
    assert main([*line, f"contrastive-decoding:amateur=self:mask_heads={file}"]) == 0


def test_a_file_of_needles(tmp_path: Any) -> None:
    file = tmp_path / "needles.csv"
    file.write_text(
        "needle,question,answer\nThe key is red.,What is red?,The key\nTom ran.,Who ran?,\n", encoding="utf-8"
    )
    assert read_needles(str(file)) == [
        Needle("The key is red.", "What is red?", "The key"),
        Needle("Tom ran.", "Who ran?"),
    ]
    file.write_text("needle,question,answer\nTom ran.,Who ran?,Ann\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"row 1 \(line 2\), column answer: 'Ann' is no part of the needle 'Tom ran.'"):
        read_needles(str(file))


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("mamba", {}, ModelError, "MambaForCausalLM: has no attention weights to read, so it has no retrieval heads"),
        ("t5", {}, ModelError, "T5ForConditionalGeneration is an encoder-decoder; must be a decoder-only model"),
        ("llama", {"needles": []}, InputError, "needles: none is given"),
        ("llama", {"texts": [" "]}, InputError, "the haystack has no text"),
        ("llama", {"settings": Settings(lengths=(4,), prompt=" {question}")}, OptionError, "lengths=4: the needle .*"),
        ("llama", {"settings": Settings(lengths=(126,), prompt=" {question}")}, OptionError,
         "lengths=126: with an answer of 3 tokens this is more than the model's context of 128; must be at most 125"),
        ("llama", {"settings": Settings(lengths=(24,), chat=True)}, OptionError, "--chat: the model's tokenizer has"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(name: str, given: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"texts": HAY, "needles": NEEDLES, "settings": BY_HAND, **given}
    with pytest.raises(error, match=message):
        retrieval_heads(tiny_model(name), word_tokenizer(), **options)


@pytest.mark.parametrize(
    ("content", "text", "message"),
    [
        (None, "absent.json", r"heads='absent.json': must be layers and heads such as 5.0\+5.3"),
        ("[1]", "heads.json", "heads='heads.json': the file is none that decoding heads wrote"),
        ('{"heads": "0.1", "scores": [[0.0, 0.5]]}', "heads.json:2", "the file has 1 heads with a score above 0"),
        ('{"heads": "", "scores": [[0.0, 0.0]]}', "heads.json", "the file names no head, since none had a score"),
    ],
)  # fmt: skip
def test_a_file_of_heads_that_cannot_be_used(
    content: str | None, text: str, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # messages shorten long paths
    if content is not None:
        (tmp_path / "heads.json").write_text(content, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        MaskedHeads(text)
    with pytest.raises(OptionError, match=message.replace("heads='", "mask_heads='")):
        as_kind(f"self:mask_heads={text}")


def test_results_of_settings_that_are_out_of_range() -> None:
    for given, message in (
        ({"top": 0}, "top=0: must be a whole number from 1"), ({"lengths": ()}, "lengths: none given"),
        ({"prompt": "What?"}, "prompt='What\\?': must have {question}"), ({"depths": 0.5}, "depths=0.5: must be"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=message):
            Settings(**given)
    assert RetrievalHeads("m", ((0.5, 0.0), ()), 1.0, 1, 1, (9,), Settings()).best == [(0, 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_continues_a_text(kind: str) -> None:
    tokenizer = chat_tokenizer(None, kind)
    needles = [Needle("The old bear eats fish on Mondays.", "What?", "fish on Mondays")]
    texts = ["The keeper wrote down every ship. Nobody asked."]
    ((context,),) = contexts(
        tokenizer, Haystack(texts, tokenizer, 99), needles, (60,), Settings(depths=1, needles=1), "search"
    )
    whole = tokenizer("A: fish on Mondays", add_special_tokens=False)["input_ids"]
    assert context.answer == whole[len(tokenizer("A:", add_special_tokens=False)["input_ids"]) :]
    assert context.prompt[context.start : context.start + len(context.answer)] == context.answer


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_are_the_users_message_of_a_chat(kind: str) -> None:
    tokenizer = chat_tokenizer("chatml", kind)
    settings = Settings(lengths=(60,), depths=2, needles=1, chat=True)
    needles = [Needle("The old bear eats fish.", "What does it eat?")]
    texts = ["The keeper wrote down every ship. Nobody asked."]
    ((first, last),) = contexts(tokenizer, Haystack(texts, tokenizer, 99), needles, (60,), settings, "search")
    for context in (first, last):
        text = tokenizer.decode(context.prompt).replace("> ", ">")  # sentencepiece marks a space after special tokens
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("What does it eat?<|im_end|>\n<|im_start|>assistant\n")
        assert tokenizer.decode(context.answer) == "The old bear eats fish."
        assert context.prompt[context.start : context.start + len(context.answer)] == context.answer
    assert first.start < last.start
