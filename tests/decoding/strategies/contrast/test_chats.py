"""Contrasts of chats: the text of a second reader is the system message of its own chat, whatever the way in.

The oracle reads whole texts in float64, one row at a time, without a cache; its prompts are those that the chat
template makes of the messages with the text among them.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat_tokenizers import VOCAB, chat_tokenizer
from contrast_oracle import Reader, context_aware, contrastive_decoding, greedy_tokens, lol, per_token
from tiny_models import left_padded, tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, DecodingWarning, InputError, OptionError, Prompt, Scorer
from decoding.scoring.teacher_forcing import longest_text, teacher_forced
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT
from decoding.strategies.registry import StrategySpec
from decoding.text import continuations

Message = dict[str, str]

TEXT, AMATEUR_TEXT = "The bear eats fish. ", "Nobody asked you.\n\n"
NEW = 6
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Why?"}],
    [
        {"role": "system", "content": "You know the old bridge."},
        {"role": "user", "content": "What does the bear eat on Mondays?"},
        {"role": "assistant", "content": "It eats fish."},
        {"role": "user", "content": "Why?"},
    ],
    [{"role": "user", "content": "Le phare est loin; die Brücke ist alt."}],
]
PLAIN = "<s>The keeper of the lighthouse"  # a row that is no chat


@functools.cache
def model_of(name: str) -> Any:
    """A random model with the vocabulary of the chats' tokenizer."""
    config = copy.deepcopy(tiny_model(name).config)
    config.vocab_size = VOCAB
    # Windows of 8 tokens in 3 layers see nothing of a system message: the readers' difference would be rounding.
    for length, tokens_ in {"max_position_embeddings": 256, "n_positions": 256, "sliding_window": 40}.items():
        if getattr(config, length, None):
            setattr(config, length, tokens_)
    torch.manual_seed(0)
    model = type(tiny_model(name))(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in parameter_name:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = None
    return model


@functools.cache
def oracle_of(name: str) -> Reader:
    return Reader(model_of(name))


def tokens(tokenizer: Any, messages: list[Message]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def asked(tokenizer: Any, messages: list[Message], text: str) -> list[int]:
    """The tokens of messages with a text as system message."""
    text = text.strip()
    if messages[0]["role"] == "system":
        system = {"role": "system", "content": f"{text}\n\n{messages[0]['content']}"}
        return tokens(tokenizer, [system, *messages[1:]])
    return tokens(tokenizer, [{"role": "system", "content": text}, *messages])


def plain(tokenizer: Any, text: str) -> list[int]:
    """The tokens of the plain row after a text."""
    bos, *rest = tokenizer(PLAIN)["input_ids"]
    return [bos, *tokenizer(text)["input_ids"], *rest]


def strategies(tokenizer: Any) -> dict[str, ContrastStrategy]:
    prompt = Prompt(AMATEUR_TEXT)
    return {
        "context-aware": ContextAware(TEXT, tokenizer=tokenizer),
        "contrastive-decoding": ContrastiveDecoding(prompt, tokenizer=tokenizer),
        "lol": LOL(prompt, [1], guidance=TEXT, tokenizer=tokenizer),
    }


NAMES = list(strategies(None))


def scores_of(
    oracle: Reader, strategy: ContrastStrategy, prompt: list[int], with_text: list[int], amateur: list[int]
) -> Callable[[list[int]], Tensor]:
    """The function from a text to the strategy's (vocab,) scores, whose readers begin with prompts of their own."""

    def scores(text: list[int]) -> Tensor:
        new = text[len(prompt) :]
        expert, guided, other = (oracle.logits([*ids, *new])[-1] for ids in (prompt, with_text, amateur))
        if isinstance(strategy, ContextAware):
            return context_aware(guided, expert, strategy.alpha)
        if isinstance(strategy, ContrastiveDecoding):
            return contrastive_decoding(expert, other, strategy.alpha, strategy.beta, strategy.form)
        assert isinstance(strategy, LOL)
        early = [tuple(oracle.early([*ids, *new], 1, True)[-1] for ids in (prompt, amateur))]
        settings = ("amateur_weight", "lower_amateur_weight", "fusion_weight", "fusion", "refocus_weight", "alpha")
        return lol(expert, other, early, guided, {name: getattr(strategy, name) for name in settings})

    return scores


def rows_of(tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """By row the prompts of the expert, of the reader with the text and of the amateur; the last row is no chat."""
    chats = [
        (tokens(tokenizer, messages), asked(tokenizer, messages, TEXT), asked(tokenizer, messages, AMATEUR_TEXT))
        for messages in CONVERSATIONS
    ]
    return [*chats, (tokenizer(PLAIN)["input_ids"], plain(tokenizer, TEXT), plain(tokenizer, AMATEUR_TEXT))]


# LOL has the readers of the other two, and exits: it alone meets the other ways in, templates and models.
KINDS = [
    *(("llama", "chatml", "facade", name) for name in NAMES),
    *(("llama", "chatml", way, "lol") for way in ("custom", "processor")),
    ("llama", "instructions", "facade", "lol"), ("mistral-sliding", "default-system", "facade", "lol"),
    ("gpt2", "headers", "facade", "lol"), ("mamba", "merged", "facade", "lol"),
    ("mamba", "merged", "facade", "context-aware"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "template", "way", "name"), KINDS)
def test_left_padded_chats_against_recomputation(architecture: str, template: str, way: str, name: str) -> None:
    tokenizer = chat_tokenizer(template)
    strategy, model, rows = strategies(tokenizer)[name], model_of(architecture), rows_of(tokenizer)
    if template == "merged":  # whose system message is a part of the user's
        rows = [rows[0], *rows[2:]]
    batch = left_padded([prompt for prompt, *_ in rows])
    options = {"max_new_tokens": NEW, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DecodingWarning)
        if way == "facade":
            found = decoding.generate(model, **batch, strategy=strategy, **options)
        elif way == "custom":
            found = model.generate(**batch, custom_generate=strategy, **options)
        else:
            processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
            found = model.generate(**batch, logits_processor=[processor], **options)
    width = batch["input_ids"].shape[1]
    for row, (prompt, *others) in zip(found[:, width:].tolist(), rows, strict=True):
        scores = scores_of(oracle_of(architecture), strategy, prompt, *others)
        assert row == greedy_tokens(scores, prompt, NEW, row)[0]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        *(("chatml", name) for name in NAMES),
        *((template, "lol") for template in ("default-system", "instructions", "no-system")),
    ],
)
def test_scores_of_answers_to_a_chat(template: str, name: str) -> None:
    """The default system message of one template is longer than the text in its place."""
    tokenizer = chat_tokenizer(template)
    strategy, model = strategies(tokenizer)[name], model_of("llama")
    messages = CONVERSATIONS[2]
    prompt = tokens(tokenizer, messages)
    if template == "no-system":
        content = messages[0]["content"]
        others = [
            tokens(tokenizer, [{"role": "user", "content": f"{text.strip()}\n\n{content}"}])
            for text in (TEXT, AMATEUR_TEXT)
        ]
    else:
        others = [asked(tokenizer, messages, text) for text in (TEXT, AMATEUR_TEXT)]
    answers = [tokenizer(text)["input_ids"] for text in ("It eats fish", " on Mondays")]
    right = [
        per_token(scores_of(oracle_of("llama"), strategy, prompt, *others), prompt, answer, True) for answer in answers
    ]
    common = next(i for i, token in enumerate(prompt) if token == tokenizer(" loin")["input_ids"][0])
    with Scorer(model, prompt[:common], [None, strategy]) as scorer:
        shared = [scores.normalized for scores in scorer.score([(prompt[common:], answers)])[0][1]]
    whole = [
        teacher_forced(model, torch.tensor([[*prompt, *answer, 0, 0]]), strategy)[0, len(prompt) - 1 :][
            range(len(answer)), answer
        ]
        for answer in answers
    ]
    for scores in (decoding.score(model, prompt, answers, strategy), shared, whole):
        for one, other in zip(scores, right, strict=True):
            torch.testing.assert_close(one.double(), torch.tensor(other).double(), atol=2e-3, rtol=1e-4)


def test_a_text_fits_the_context_with_the_system_message() -> None:
    tokenizer, model = chat_tokenizer("chatml"), model_of("llama")
    strategy = ContextAware(TEXT, tokenizer=tokenizer)
    longest = longest_text(model, strategy)
    assert longest is not None
    ids = [*tokens(tokenizer, CONVERSATIONS[0]), *[7] * longest][:longest]
    teacher_forced(model, torch.tensor([ids]), strategy)


def test_a_text_a_row_goes_with_its_row() -> None:
    tokenizer, model = chat_tokenizer("chatml"), model_of("llama")
    texts = [TEXT, AMATEUR_TEXT, [9, 11]]
    prompts = [tokens(tokenizer, messages) for messages in CONVERSATIONS]
    strategy = ContextAware(texts, tokenizer=tokenizer)
    found = decoding.generate(model, **left_padded(prompts), strategy=strategy, max_new_tokens=NEW)
    width = max(map(len, prompts))
    for row, (messages, text) in enumerate(zip(CONVERSATIONS, texts, strict=True)):
        own = asked(tokenizer, messages, text) if isinstance(text, str) else [*text, *prompts[row]]
        scores = scores_of(oracle_of("llama"), strategy, prompts[row], own, own)
        new = found[row, width:].tolist()
        assert new == greedy_tokens(scores, prompts[row], NEW, new)[0]


def test_beams_of_chats_read_their_own_system_message() -> None:
    tokenizer, model = chat_tokenizer("instructions"), model_of("llama")
    strategy = ContextAware(TEXT, tokenizer=tokenizer)
    prompts = [tokens(tokenizer, messages) for messages in CONVERSATIONS[::2]]
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    batch = left_padded(prompts)
    processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
    found = model.generate(**batch, logits_processor=[processor], **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), logits_processor=[strategy.logits_processor(model)], **options)
        assert found[row, batch["input_ids"].shape[1] :].tolist() == alone[0, len(prompt) :].tolist()


# --- placements ------------------------------------------------------------------------------------------------------


def own_prompt(strategy: ContrastStrategy, prompt: list[int]) -> list[int]:
    """What the reader with a text reads of a prompt."""
    from decoding.strategies.contrast.readers import prompt_read

    model = model_of("llama")
    reader = next(reader for reader in strategy.readers(model, 1) if reader.role != EXPERT)
    return prompt_read(reader, prompt, 0, model)


def test_prefix_puts_the_text_before_the_chat() -> None:
    tokenizer = chat_tokenizer("headers")
    prompt = tokens(tokenizer, CONVERSATIONS[0])
    own = own_prompt(ContextAware(TEXT, tokenizer=tokenizer, placement="prefix"), prompt)
    assert own == [prompt[0], *tokenizer(TEXT)["input_ids"], *prompt[1:]]


def test_token_ids_come_before_the_chat() -> None:
    tokenizer = chat_tokenizer("chatml")
    prompt = tokens(tokenizer, CONVERSATIONS[0])
    assert own_prompt(ContextAware([7, 8], tokenizer=tokenizer), prompt) == [7, 8, *prompt]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (lambda tokenizer: ContextAware([7], tokenizer=tokenizer, placement="system"), "context is token ids"),
        (
            lambda tokenizer: LOL(Prompt([7]), [1], tokenizer=tokenizer, placement="system"),
            "the amateur's prompt is token ids",
        ),
        (lambda tokenizer: ContextAware(TEXT, placement="middle"), "placement='middle': must be system or prefix"),
        (lambda tokenizer: ContextAware(TEXT, placement=["system"]), r"placement=\['system'\]: must be"),
        (
            lambda tokenizer: ContrastiveDecoding(Prompt(TEXT), amateur_context="last_token", placement="system"),
            "the amateur reads no chat",
        ),
        (
            lambda tokenizer: ContextAware(TEXT, tokenizer=chat_tokenizer(None), placement="system"),
            "context: cannot be a system message, since the tokenizer has no chat template",
        ),
    ],
)
def test_placements_that_cannot_be(strategy: Callable[[Any], ContrastStrategy], message: str) -> None:
    tokenizer = chat_tokenizer("chatml")
    with pytest.raises(OptionError, match=message) as refusal:
        own_prompt(strategy(tokenizer), tokens(tokenizer, CONVERSATIONS[0]))
    assert "\n" not in str(refusal.value)


def test_system_refuses_a_row_that_is_no_chat() -> None:
    tokenizer, model = chat_tokenizer("chatml"), model_of("llama")
    batch = left_padded([tokens(tokenizer, CONVERSATIONS[0]), tokenizer(PLAIN)["input_ids"]])
    strategy = ContextAware(TEXT, tokenizer=tokenizer, placement="system")
    with pytest.raises(InputError, match="context: row 1 does not begin as the tokenizer's chat template does"):
        decoding.generate(model, **batch, strategy=strategy, max_new_tokens=2)


def test_a_chat_with_another_beginning_is_warned_of() -> None:
    tokenizer = chat_tokenizer("chatml")
    prompt = tokens(tokenizer, [{"role": "assistant", "content": "It eats fish."}, *CONVERSATIONS[0]])
    strategy = ContextAware(TEXT, tokenizer=tokenizer)
    with pytest.warns(DecodingWarning, match="context: row 0 has turns of a chat but does not begin as"):
        own = own_prompt(strategy, prompt)
    assert own == [*tokenizer(TEXT)["input_ids"], *prompt]


def test_a_template_that_shows_nothing_needs_the_word_of_the_caller() -> None:
    tokenizer = chat_tokenizer(None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    prompt = tokens(tokenizer, CONVERSATIONS[0])
    with pytest.warns(DecodingWarning, match="chat template writes nothing before the first message"):
        assert own_prompt(ContextAware(TEXT, tokenizer=tokenizer), prompt) == [*tokenizer(TEXT)["input_ids"], *prompt]
    own = own_prompt(ContextAware(TEXT, tokenizer=tokenizer, placement="system"), prompt)
    assert own == asked(tokenizer, CONVERSATIONS[0], TEXT)


def test_an_amateur_of_the_last_token_reads_no_chat() -> None:
    tokenizer = chat_tokenizer("chatml")
    prompt = tokens(tokenizer, CONVERSATIONS[0])
    strategy = ContrastiveDecoding(Prompt(TEXT), amateur_context="last_token", tokenizer=tokenizer)
    assert own_prompt(strategy, prompt) == [*tokenizer(TEXT)["input_ids"], prompt[-1]]


# --- prompts as text -------------------------------------------------------------------------------------------------


def test_a_prompt_as_text_in_a_chat() -> None:
    tokenizer, model = chat_tokenizer("chatml"), model_of("llama")
    strategy = ContextAware(TEXT)
    spec = StrategySpec(strategy.name, strategy)
    (made,) = continuations(model, tokenizer, spec, "Why?", max_new_tokens=NEW, chat=True)
    prompt, own = tokens(tokenizer, CONVERSATIONS[0]), asked(tokenizer, CONVERSATIONS[0], TEXT)
    scores = scores_of(oracle_of("llama"), strategy, prompt, own, own)
    right = greedy_tokens(scores, prompt, NEW, made.token_ids[len(prompt) :])[0]
    assert made.token_ids == (*prompt, *right)
