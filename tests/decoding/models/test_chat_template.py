"""A system message put into a prompt's tokens: those that the chat template makes of the messages with it."""

from __future__ import annotations

from typing import Any

import pytest
from chat_tokenizers import KINDS, TEMPLATES, chat_tokenizer

from decoding.errors import OptionError
from decoding.models.chat_template import SEPARATOR, read_chat_template

TEXT = "Answer with what is true only."
EXISTING = "You know the old bridge.\nAnswer in a line."
CONTENTS = {
    "sentence": "What does the bear eat?",
    "word": "Fish",
    "line-ends": "\n\nWhat does\n\nit eat?\n",
    "space": "  Mondays",
    "no-spaces": "熊吃什么东西",
    "half-characters": "🐻🐻 eats",
    "marks": "[INST] (1984)!\n",
}

Message = dict[str, str]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def tokens(tokenizer: Any, messages: list[Message], generate: bool = True) -> list[int]:
    encoding = tokenizer.apply_chat_template(messages, add_generation_prompt=generate, return_dict=True)
    return list(encoding["input_ids"])


def with_text(template: str, messages: list[Message], text: str = TEXT) -> list[Message]:
    """The messages with a text as the template takes it."""
    has_system = TEMPLATES[template][1]
    first = messages[0]
    if first["role"] == "system":
        return [{"role": "system", "content": f"{text}{SEPARATOR}{first['content']}"}, *messages[1:]]
    if has_system:
        return [{"role": "system", "content": text}, *messages]
    return [user(f"{text}{SEPARATOR}{first['content']}"), *messages[1:]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("turns", [1, 3])
def test_the_tokens_are_those_of_the_template(template: str, kind: str, content: str, turns: int) -> None:
    tokenizer = chat_tokenizer(template, kind)
    messages = [user(CONTENTS[content]), {"role": "assistant", "content": "It eats fish."}, user("Why?")][:turns]
    # These trim a message, whose spaces would stand after the text: the message begins without them.
    trims = template in ("merged", "no-system") and CONTENTS[content][:1].isspace()
    whole = with_text(template, [user(CONTENTS[content].strip()), *messages[1:]] if trims else messages)
    for text in (TEXT, f"\n{TEXT}  \n\n"):
        placed = read_chat_template(tokenizer).with_system(tokens(tokenizer, messages), text)
        assert placed == tokens(tokenizer, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [name for name, (_, has_system) in TEMPLATES.items() if has_system])
@pytest.mark.parametrize("existing", [EXISTING, "Careful"], ids=["lines", "word"])
def test_a_system_message_that_is_there_follows_the_text(template: str, kind: str, existing: str) -> None:
    tokenizer = chat_tokenizer(template, kind)
    messages = [{"role": "system", "content": existing}, user("What does the bear eat?")]
    placed = read_chat_template(tokenizer).with_system(tokens(tokenizer, messages), TEXT)
    assert placed == tokens(tokenizer, with_text(template, messages))


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tail_is_the_prompts_own_tokens_even_where_no_tokenizer_makes_them(template: str) -> None:
    """Tokens that a model wrote, half a character at the end, padding after a whole text."""
    tokenizer = chat_tokenizer(template)
    prompt = tokens(tokenizer, [user("What does the bear eat?")])
    half = tokenizer("🐻", add_special_tokens=False)["input_ids"][:-1]
    odd = [*tokenizer.convert_tokens_to_ids(["e", "a", "t"]), 0, 0, *half]
    placed = read_chat_template(tokenizer).with_system([*prompt, *odd], TEXT)
    assert placed == [*tokens(tokenizer, with_text(template, [user("What does the bear eat?")])), *odd]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_beginning_that_many_prompts_share(template: str, kind: str) -> None:
    tokenizer = chat_tokenizer(template, kind)
    read = read_chat_template(tokenizer)
    ours, theirs = (tokens(tokenizer, [user(f"What does the {animal} eat?")]) for animal in ("bear", "mouse"))
    shared = [one for i, one in enumerate(ours) if ours[: i + 1] == theirs[: i + 1]]
    placed = read.with_system(shared, TEXT)
    assert placed is not None
    assert [*placed, *ours[len(shared) :]] == read.with_system(ours, TEXT)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_second_bos_token_stays_in_front(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    prompt, read = tokens(tokenizer, [user("Why?")]), read_chat_template(tokenizer)
    placed = read.with_system([tokenizer.bos_token_id, *prompt], TEXT)
    assert placed == [tokenizer.bos_token_id, *read.with_system(prompt, TEXT)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_empty_text_changes_nothing(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    prompt = tokens(tokenizer, [user("Why?")])
    assert read_chat_template(tokenizer).with_system(prompt, " \n") == prompt


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_that_is_no_chat_is_left_alone(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    read = read_chat_template(tokenizer)
    assert read.is_recognisable
    for text in ("Why?", "user\nWhy?", "<s>Why?", ""):
        plain = tokenizer(text)["input_ids"]
        assert read.with_system(plain, TEXT) is None
        assert not read.occurs_in(plain)


def test_turns_after_another_beginning_are_seen() -> None:
    tokenizer = chat_tokenizer("chatml")
    read = read_chat_template(tokenizer)
    prompt = tokens(tokenizer, [{"role": "assistant", "content": "It eats fish."}])
    assert read.with_system(prompt, TEXT) is None
    assert read.occurs_in(prompt)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('no chats today') }}", r"the chat template fails \(no chats today\)"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not write a user's message as it is"),
    ],
)
def test_templates_that_cannot_be_read(template: str | None, message: str) -> None:
    tokenizer = chat_tokenizer(None)
    tokenizer.chat_template = template
    with pytest.raises(OptionError, match=message):
        read_chat_template(tokenizer)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ bos_token + messages[0].content }}"])
def test_a_template_that_marks_nothing_is_not_recognisable(template: str) -> None:
    tokenizer = chat_tokenizer(None)
    tokenizer.chat_template = template + "{% for m in messages[1:] %}{{ '\n' + m.content }}{% endfor %}"
    read = read_chat_template(tokenizer)
    assert not read.is_recognisable
    assert read.with_system(tokens(tokenizer, [user("Why?")]), TEXT) is not None
