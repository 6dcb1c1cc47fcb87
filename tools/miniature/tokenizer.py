"""The tokenizer: a sentencepiece BPE model, and the same as a fast tokenizer that needs no sentencepiece
to run.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PIECES = 2048
UNKNOWN, BEGINNING, END, PADDING = "<unk>", "<s>", "</s>", "<pad>"
CONTEXT = 512  # positions


def train_sentencepiece(texts: Sequence[str], pieces: int = PIECES) -> bytes:
    """A serialized sentencepiece BPE model of these texts.

    Nothing is normalised and no space is put in front, so that decoding gives back the text to the letter
    and the pieces of a continuation are the same whether it is read alone or after its prompt. Newlines
    are pieces of their own; characters that the texts do not have fall back to bytes. A small corpus can
    give fewer pieces.
    """
    import sentencepiece  # only training needs it

    model = io.BytesIO()
    lines = [line for text in texts for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        max_sentence_length=1 << 16,
        num_threads=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece=UNKNOWN,
        bos_piece=BEGINNING,
        eos_piece=END,
        pad_piece=PADDING,
        minloglevel=2,
    )
    return model.getvalue()


def fast_tokenizer(sentencepiece_model: bytes) -> PreTrainedTokenizerFast:
    """The fast tokenizer that gives the same ids as the sentencepiece model."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    ordinary = [
        piece
        for piece, i in pieces.items()
        if not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i) or len(piece) == 1)
    ]
    # sentencepiece joins whichever neighbours give the earliest piece; the fast tokenizer wants the joins
    # spelled out
    merges = [
        (piece[:cut], piece[cut:])
        for piece in ordinary
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGINNING,
        eos_token=END,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, small and loadable by transformers 4 and 5."""
    tokenizer.save_pretrained(folder)
    config_file, model_file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that both versions know
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    compact = json.dumps(json.loads(model_file.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
    model_file.write_text(compact + "\n", encoding="utf-8")
