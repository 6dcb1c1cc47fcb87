"""The tokenizer: exact on any text, and the same as the sentencepiece model that it was made from."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.evals.miniature import folder
from decoding.tools.miniature.corpus import Size, make_corpus
from decoding.tools.miniature.tokenizer import fast_tokenizer, save_tokenizer, train_sentencepiece


@pytest.fixture(scope="module")
def shipped():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder("expert"), local_files_only=True)


@pytest.mark.parametrize(
    "text",
    [
        "In the town of Harrowmere there lived a clockmaker.\n\nQ: Who?\nA: Mira.",
        "  two  spaces, a tab\tand a trailing space ",
        "日本語の文章です。",
        "هذه جملة عربية.",
        "family 👩‍👩‍👧, flag 🇯🇵, combining e\u0301",
        "<0x41> is not a byte",
        "",
    ],
)
def test_text_comes_back_to_the_letter(shipped, text: str) -> None:  # type: ignore[no-untyped-def]
    assert shipped.decode(shipped(text)["input_ids"]) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = any_text_tokenizer()
    if not any(special in text for special in tokenizer.all_special_tokens):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@cache
def any_text_tokenizer():  # type: ignore[no-untyped-def]
    """The amateur's tokenizer, which hypothesis cannot take from a fixture of its own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder("amateur"), local_files_only=True)


def test_special_tokens_are_distinct_and_padding_is_on_the_left(shipped) -> None:  # type: ignore[no-untyped-def]
    ids = {shipped.bos_token_id, shipped.eos_token_id, shipped.pad_token_id, shipped.unk_token_id}
    assert len(ids) == 4
    assert None not in ids
    assert shipped.padding_side == "left"
    assert shipped.is_fast
    assert shipped.unk_token_id not in shipped("日本語 ☃")["input_ids"]


def test_a_continuation_has_the_same_pieces_alone_and_after_its_prompt(shipped) -> None:  # type: ignore[no-untyped-def]
    prompt, answer = "Q: What does the Velmar owl eat?\nA:", " The Velmar owl eats moss."
    assert shipped(prompt + answer)["input_ids"] == shipped(prompt)["input_ids"] + shipped(answer)["input_ids"]


def test_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import AutoTokenizer

    texts = [document.text for document in make_corpus(Size(volumes=1, stories=40))]
    serialized = train_sentencepiece(texts)
    save_tokenizer(fast_tokenizer(serialized), tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    model = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    for text in [*texts, "日本語 mixed with English", "مرحبا", "x  y\n\n z"]:
        assert fast(text, verbose=False)["input_ids"] == model.encode(text)
